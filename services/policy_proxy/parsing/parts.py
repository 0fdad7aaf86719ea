"""Owns the words of the package: how an answer is to be read, the parts it was read as, and the pieces that a stream of it is cut into."""

from collections.abc import Sequence
from typing import Any

import msgspec

Json = dict[str, Any]


class Reading(msgspec.Struct, frozen=True):
    """How one answer is to be read."""

    reasoning_parser: str
    """A name in SGLang's table, or "" for a model that does not reason in tags."""
    tool_call_parser: str
    in_reasoning: bool
    """Whether the prompt itself opened the think tag already."""
    with_tools: bool
    """Without tools nothing is a call, whatever it looks like."""
    tools: Sequence[Json] = ()
    """OpenAI tool schemas, for formats that write values without their types."""
    max_calls: int = 0
    """More calls than this are read as a malformed answer, so that none of them is made; 0 = any number."""


class ToolCall(msgspec.Struct, frozen=True):
    """A call as the policy made it; ``arguments`` is JSON text of an object."""

    name: str
    arguments: str


class Said(msgspec.Struct, frozen=True):
    """One answer in parts."""

    content: str
    reasoning: str | None
    """None where nothing was marked as reasoning; "" where the tags were there and empty."""
    tool_calls: tuple[ToolCall, ...]
    malformed: bool
    """A tool call could not be read. The whole answer after the reasoning is then ``content`` and no call of it is made."""
    problem: str = ""
    """What was wrong with the malformed call, where, and what was expected; for the policy to read. Offsets count in ``content``."""


class ReasoningDelta(msgspec.Struct, frozen=True):
    """More reasoning."""

    text: str


class ContentDelta(msgspec.Struct, frozen=True):
    """More content."""

    text: str


class CallDelta(msgspec.Struct, frozen=True):
    """A whole call, the ``index``-th of the answer."""

    index: int
    name: str
    arguments: str


Delta = ReasoningDelta | ContentDelta | CallDelta
