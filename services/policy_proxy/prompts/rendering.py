"""Owns the policy model's text form: its chat template and its tokenizer, read from the HF model folder.

Encoding is cut at end-of-turn tokens, where a byte-level tokenizer may be cut without changing its result (checked when loading), so
that turns seen before (the long system turn above all) are not tokenised again. Refuses models without a fast tokenizer or a chat template.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from tokenizers import Tokenizer

from services.common.wire.calls import Ids
from services.policy_proxy.prompts.known_texts import KnownTexts
from services.policy_proxy.prompts.template import ChatTemplate
from services.policy_proxy.prompts.template_files import DEFAULT, WITH_TOOLS, load_templates
from services.policy_proxy.prompts.token_bytes import TokenBytes, is_byte_level

SEGMENT_MIN_CHARS = 2048
"""Shorter texts, such as what is new in a call, are encoded as they are."""
OFF_LOOP_CHARS = 50_000
"""More new text than this (over about 15 ms) is encoded in a thread, so that other calls go on."""
TOKENS_BY_NAME = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Renderer:
    """Messages to text, text to token ids, token ids to text."""

    def __init__(self, tokenizer: Tokenizer, templates: Mapping[str, ChatTemplate], end_of_turn: str) -> None:
        eos_id = tokenizer.token_to_id(end_of_turn)
        if eos_id is None:
            raise ValueError(f"tokenizer_config.json: eos_token {end_of_turn!r} is not in the tokenizer's vocabulary")
        self.end_of_turn = end_of_turn
        self.eos_id: int = eos_id
        self.vocab_size: int = tokenizer.get_vocab_size()
        self._tokenizer = tokenizer
        self._templates = dict(templates)
        self._segments = KnownTexts()
        self._bytes = TokenBytes(tokenizer)
        self._is_byte_level = is_byte_level(tokenizer)
        self._check_cuts()

    @classmethod
    def load(cls, folder: Path, chat_template: str = "") -> "Renderer":
        """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat templates, or the file that ``chat_template`` names instead.

        Raises ValueError naming what is missing.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing: actor.path must be an HF model folder with a fast tokenizer")
        config: dict[str, Any] = orjson.loads((folder / "tokenizer_config.json").read_bytes())
        special = {name: text for name in TOKENS_BY_NAME if (text := _token_text(config.get(name))) is not None}
        if "eos_token" not in special:
            raise ValueError(f"{folder / 'tokenizer_config.json'}: eos_token is missing; it must be the token that ends a turn")
        templates = load_templates(folder, config, special, chat_template)
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), templates, special["eos_token"])

    def template(self, tools: Sequence[Mapping[str, Any]]) -> ChatTemplate:
        """The chat template for a request with these tools."""
        named = WITH_TOOLS if tools and WITH_TOOLS in self._templates else DEFAULT
        return self._templates[named]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. Raises `BadRequest` where the template refuses it."""
        return self.template(tools).render(messages, tools, add_generation_prompt=add_generation_prompt, extra=extra or {})

    async def encode(self, text: str) -> Ids:
        """int32 [n]: the tokens of ``text``, special tokens recognised, none added."""
        if len(text) < SEGMENT_MIN_CHARS:
            return self._ids(text)
        turns = text.split(self.end_of_turn)
        segments = [turn + self.end_of_turn for turn in turns[:-1]] + turns[-1:]
        known = {segment: self._segments.get(segment) for segment in segments}
        new = [segment for segment, ids in known.items() if ids is None]
        off_loop = sum(map(len, new)) > OFF_LOOP_CHARS
        encoded = await asyncio.to_thread(self._all_ids, new) if off_loop else self._all_ids(new)
        for segment, ids in zip(new, encoded, strict=True):
            known[segment] = ids
            self._segments.put(segment, ids)
        return np.concatenate([ids for segment in segments if (ids := known[segment]) is not None])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        return self._bytes.text(ids) if self._is_byte_level else self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; they need not be whole characters. Empty for ids that are no token."""
        return self._bytes[token]

    def _all_ids(self, texts: Sequence[str]) -> list[Ids]:
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> Ids:
        # The batch form releases the GIL and computes no character offsets.
        return np.asarray(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, "<i4")

    def _check_cuts(self) -> None:
        left, right = f"a b{self.end_of_turn}", "\n c d  e"
        cut = [*self._ids(left), *self._ids(right)]
        if list(self._ids(left + right)) != cut or self.decode(cut) != left + right or self.decode(list(self._ids(right))) != right:
            raise ValueError(
                f"tokenizer.json: cutting after {self.end_of_turn!r} changes the tokens of what follows, or their text; "
                "a byte-level tokenizer with that token marked as special is needed"
            )


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("content")
    return value if isinstance(value, str) else None
