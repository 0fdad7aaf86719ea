"""Owns what a user turn may be: stop tokens, faults and their labels. Pure text in, labels out.

Refuses to repair: a turn is passed on as the model made it, with what is wrong about it.
"""

import re
from collections.abc import Sequence
from typing import Literal

from services.common.wire.users import Fault, UserSideMessage, UserToolCall

StopKind = Literal["stop", "transfer", "out_of_scope"]

STOP_TOKENS: dict[str, StopKind] = {"###STOP###": "stop", "###TRANSFER###": "transfer", "###OUT-OF-SCOPE###": "out_of_scope"}

_AGENT_PHRASES = re.compile(
    r"\b(how (can|may) i (help|assist) you|i(('| a)m|'ll be| will be) (happy|glad) to (help|assist)|thank you for (calling|contacting)"
    r"|is there anything else i can (help|assist))",
    re.IGNORECASE,
)
_INSTRUCTION_PHRASES = re.compile(
    r"(</?scenario>|task instructions|user simulat|simulation guidelines|persona:|as an ai\b|language model)", re.IGNORECASE
)


def stop_kind(content: str | None) -> StopKind | None:
    """Which stop token the text contains, anywhere in it."""
    return next((kind for token, kind in STOP_TOKENS.items() if token in (content or "")), None)


def fault_of(
    content: str | None, calls: Sequence[UserToolCall], history: Sequence[UserSideMessage], tool_names: frozenset[str]
) -> tuple[Fault, str]:
    """The first fault of a turn and what it is about; `Fault.OK` where there is none."""
    text = (content or "").strip()
    if not text and not calls:
        return Fault.EMPTY, "neither text nor a tool call"
    if text and calls:
        return Fault.OUT_OF_PROTOCOL, "text and tool calls in one message"
    unknown = [call.name for call in calls if call.name not in tool_names]
    if unknown:
        return Fault.OUT_OF_PROTOCOL, f"unknown tool {unknown[0]!r}"
    if match := _INSTRUCTION_PHRASES.search(text):
        return Fault.LEAKED_INSTRUCTIONS, match.group()
    if match := _AGENT_PHRASES.search(text):
        return Fault.ROLE_FLIP, match.group()
    if stop_kind(text) and not any(message.role == "user" for message in history):
        return Fault.PREMATURE_STOP, "a stop token in the user's first message"
    return Fault.OK, ""
