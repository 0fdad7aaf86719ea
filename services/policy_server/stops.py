"""Owns stop strings: whether the text of the tokens generated last contains one. Refuses them where the model folder has no tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from services.common.errors import BadRequest

Matcher = Callable[[Sequence[int]], str | None]
"""The stop string that the last token of an output has completed, or None."""


class StopStrings:
    """Of one model folder; its tokenizer is read when a request first needs it."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "tokenizer.json"
        self._tokenizer: Tokenizer | None = None

    def matcher(self, stops: Sequence[str]) -> Matcher:
        """Looks for ``stops``. Raises BadRequest where there is no tokenizer to see text with."""
        if self._tokenizer is None:
            if not self._file.exists():
                raise BadRequest(f"sampling_params.stop: {self._file} is missing, use stop_token_ids", param="sampling_params.stop")
            self._tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer = self._tokenizer
        # A token is at least one byte of text, so no stop string reaches further back than this.
        window = max(len(stop.encode()) for stop in stops) + 1

        def match(output_ids: Sequence[int]) -> str | None:
            text = tokenizer.decode(list(output_ids[-window:]), skip_special_tokens=False)
            return next((stop for stop in stops if stop in text), None)

        return match
