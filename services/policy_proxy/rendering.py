"""Owns the policy model's text form: its chat template and its tokenizer, read from the HF model folder.

Encoding is cut at end-of-turn tokens, where a byte-level tokenizer may be cut without changing its result (checked when loading), so
that the long system turn that all episodes share is tokenised once. Refuses models without a fast tokenizer or a chat template.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from tokenizers import Tokenizer

from services.common.wire.calls import Ids
from services.policy_proxy.template import ChatTemplate

SEGMENT_MIN_CHARS = 2048
"""Shorter segments cost less to encode than to look up and keep."""
SEGMENTS_KEPT = 64
"""Distinct system turns (one a ticket) kept as ids: about 100 kB each."""
OFF_LOOP_CHARS = 50_000
"""Longer new text (over about 15 ms) is encoded in a thread, so that other calls go on."""


class Renderer:
    """Messages to text, text to token ids, token ids to text."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, end_of_turn: str) -> None:
        eos_id = tokenizer.token_to_id(end_of_turn)
        if eos_id is None:
            raise ValueError(f"tokenizer_config.json: eos_token {end_of_turn!r} is not in the tokenizer's vocabulary")
        self.end_of_turn = end_of_turn
        self.eos_id: int = eos_id
        self.vocab_size: int = tokenizer.get_vocab_size()
        self._tokenizer = tokenizer
        self._template = template
        self._segments: OrderedDict[str, Ids] = OrderedDict()
        self._check_cuts()

    @classmethod
    def load(cls, folder: Path) -> "Renderer":
        """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat template. Raises ValueError naming what is missing."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing: actor.path must be an HF model folder with a fast tokenizer")
        config: dict[str, Any] = orjson.loads((folder / "tokenizer_config.json").read_bytes())
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: text for name in names if (text := _token_text(config.get(name))) is not None}
        if "eos_token" not in special:
            raise ValueError(f"{folder / 'tokenizer_config.json'}: eos_token is missing; it must be the token that ends a turn")
        template = ChatTemplate(_template_source(folder, config), special)
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), template, special["eos_token"])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. Raises `BadRequest` where the template refuses it."""
        return self._template.render(messages, tools, add_generation_prompt=add_generation_prompt, extra=extra or {})

    async def encode(self, text: str) -> Ids:
        """int32 [n]: the tokens of ``text``, special tokens recognised, none added."""
        if len(text) < SEGMENT_MIN_CHARS:
            return self._ids(text)
        turns = text.split(self.end_of_turn)
        segments = [turn + self.end_of_turn for turn in turns[:-1]] + turns[-1:]
        return np.concatenate([await self._segment(segment) for segment in segments])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    async def _segment(self, text: str) -> Ids:
        if len(text) < SEGMENT_MIN_CHARS:
            return self._ids(text)
        known = self._segments.get(text)
        if known is not None:
            self._segments.move_to_end(text)
            return known
        ids = await asyncio.to_thread(self._ids, text) if len(text) > OFF_LOOP_CHARS else self._ids(text)
        self._segments[text] = ids
        if len(self._segments) > SEGMENTS_KEPT:
            self._segments.popitem(last=False)
        return ids

    def _ids(self, text: str) -> Ids:
        # The batch form releases the GIL and computes no character offsets.
        return np.asarray(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, "<i4")

    def _check_cuts(self) -> None:
        left, right = f"a b{self.end_of_turn}", "\nc d e"
        if list(self._ids(left + right)) != [*self._ids(left), *self._ids(right)]:
            raise ValueError(
                f"tokenizer.json: cutting after {self.end_of_turn!r} changes the tokens of what follows; "
                "a byte-level tokenizer with that token marked as special is needed"
            )


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("content")
    return value if isinstance(value, str) else None


def _template_source(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if not isinstance(source, str):
        raise ValueError(f"{file} is missing, and tokenizer_config.json has no chat_template either")
    return source
