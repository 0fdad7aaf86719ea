"""Owns reading the model's answer: a chat completion in, text and tool calls out. Thinking is cut off, because the agent must not read it.

Refuses to guess: an answer that is no completion, or one that the server broke off, is a `BackendFailed`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from services.common.wire.users import UserToolCall

Json = dict[str, Any]

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_CLOSE = "</think>"


class BackendFailed(Exception):
    """The model gave no completion. ``retryable`` says whether the same request may succeed later."""

    def __init__(self, why: str, *, retryable: bool) -> None:
        super().__init__(why)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said. ``broken`` names a tool call that cannot be understood; it is not among ``calls``."""

    content: str | None
    calls: tuple[UserToolCall, ...] = ()
    broken: str | None = None


def read_completion(answer: Any) -> Said:
    """The first choice of a chat completion. Raises `BackendFailed`."""
    try:
        choice: Json = answer["choices"][0]
        message: Json = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise BackendFailed("the answer is no chat completion", retryable=False) from None
    if choice.get("finish_reason") == "abort":
        raise BackendFailed("the server aborted the generation", retryable=True)
    raw = message.get("content")
    text = spoken(raw) if isinstance(raw, str) else ""
    calls: list[UserToolCall] = []
    for call in cast("Sequence[Json]", message.get("tool_calls") or ()):
        try:
            calls.append(_read_call(call))
        except ValueError as error:
            return Said(text or None, broken=str(error))
    return Said(text or None, tuple(calls))


def spoken(content: str) -> str:
    """``content`` without thinking: no think blocks, and nothing before a closing tag whose opening one stood in the prompt."""
    return _THINKING.sub("", content).rpartition(_CLOSE)[2].strip()


def _read_call(raw: Json) -> UserToolCall:
    function: Json = raw.get("function") or {}
    name = str(function.get("name"))
    try:
        arguments: Any = json.loads(function.get("arguments") or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"arguments of {name} are not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments of {name} are not a JSON object")
    return UserToolCall(id=str(raw.get("id")), name=name, arguments=cast("Json", arguments))
