"""Owns reading what the policy said: reasoning in ``<think>`` tags and tool calls in ``<tool_call>`` tags (Qwen 2.5 / Hermes JSON).

Pure text in, parts out. Refuses to guess: if any tool call of an answer is malformed, the whole answer stays text, flagged, so that no
half of it is executed and the agent loop can say what was wrong.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import orjson

TOOL_CALL_PARSERS = frozenset({"qwen25", "qwen", "hermes"})
REASONING_PARSERS = frozenset({"qwen3", ""})
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the policy made it; ``arguments`` is JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """One answer in parts."""

    content: str
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    malformed: bool


def read_answer(text: str, *, reasoning_parser: str, in_reasoning: bool, with_tools: bool) -> Said:
    """Splits an answer (without its end-of-turn token). ``in_reasoning``: the prompt itself opened the think tag already."""
    reasoning, rest = split_reasoning(text, in_reasoning) if reasoning_parser else (None, text)
    if not with_tools or CALL_OPEN not in rest:
        return Said(rest, reasoning, (), malformed=False)
    calls = read_tool_calls(rest)
    if calls is None:
        return Said(rest, reasoning, (), malformed=True)
    return Said(rest[: rest.index(CALL_OPEN)].strip(), reasoning, calls, malformed=False)


def split_reasoning(text: str, in_reasoning: bool) -> tuple[str | None, str]:
    """(reasoning, rest). An unclosed think tag makes everything after it reasoning."""
    if not in_reasoning:
        if not text.lstrip().startswith(THINK_OPEN):
            return None, text
        text = text.lstrip().removeprefix(THINK_OPEN)
    reasoning, closed, rest = text.partition(THINK_CLOSE)
    return reasoning.strip(), rest.strip() if closed else ""


def read_tool_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls in ``text``, or None where a tag is not closed or a body is not ``{"name": …, "arguments": {…}}``."""
    bodies = _CALL.findall(text)
    if text.count(CALL_OPEN) != len(bodies):
        return None
    calls = [_read_call(body) for body in bodies]
    if any(call is None for call in calls):
        return None
    return tuple(call for call in calls if call is not None)


def _read_call(body: str) -> ToolCall | None:
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    name = fields.get("name")
    arguments = fields.get("arguments", fields.get("parameters"))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, orjson.dumps(arguments).decode())
