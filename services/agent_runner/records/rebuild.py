"""Owns bringing a fresh session to where a recorded conversation had got: its tool calls are made again and their results compared.

Refuses to smooth over a difference: each one is reported, and the world is then what the calls made of it now.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.agent_runner.conversation.messages import Json
from services.agent_runner.conversation.thinking import NOTED, THINK_TOOL
from services.agent_runner.domains import Requestor, Session, ToolResult


@dataclass(frozen=True, slots=True)
class Difference:
    """A tool call whose result is not the recorded one."""

    index: int
    """Of the result in the recorded messages."""
    tool: str
    recorded: ToolResult
    now: ToolResult

    def __str__(self) -> str:
        return f"messages[{self.index}]: {self.tool} gave {self.recorded.content[:300]!r} then and {self.now.content[:300]!r} now"


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded tool call with its result."""

    index: int
    requestor: Requestor
    name: str
    arguments: dict[str, Any]
    recorded: ToolResult


def reexecute(session: Session, messages: Sequence[Json], *, skip: int = 0) -> list[Difference]:
    """Makes the tool calls of recorded messages (`messages.for_record`) again, in order, and returns where results differ.

    ``skip`` leaves out the first messages: a fresh session has its task's ``message_history`` behind it already. A call at the very end
    that has no result yet is left to whoever continues. Raises ValueError for messages that are no recorded conversation.
    """
    differences: list[Difference] = []
    for step in recorded_steps(messages, skip=skip):
        if step.name == THINK_TOOL and step.recorded == ToolResult(NOTED):
            continue
        now = session.call(step.name, step.arguments, step.requestor)
        if now != step.recorded:
            differences.append(Difference(step.index, step.name, step.recorded, now))
    return differences


def recorded_steps(messages: Sequence[Json], *, skip: int = 0) -> list[Step]:
    """The tool calls of recorded messages that have a result. Raises ValueError where a result answers no call."""
    steps: list[Step] = []
    owed: list[Json] = []
    requestor: Requestor = "assistant"
    for index, message in enumerate(messages):
        if message.get("role") != "tool":
            owed = list(message.get("tool_calls") or ())
            requestor = "user" if message.get("role") == "user" else "assistant"
            continue
        if not owed:
            raise ValueError(f"messages[{index}]: a tool result that answers no call before it")
        call = owed.pop(0)
        if index >= skip:
            steps.append(_step(index, requestor, call, message))
    return steps


def _step(index: int, requestor: Requestor, call: Json, result: Json) -> Step:
    if call.get("id") != result.get("tool_call_id"):
        raise ValueError(f"messages[{index}].tool_call_id: {result.get('tool_call_id')!r} is not the call before it, {call.get('id')!r}")
    function: Json = call.get("function") or {}
    try:
        arguments: Any = json.loads(function["arguments"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"messages[{index}]: the call it answers has no readable arguments: {error!r}") from error
    recorded = ToolResult(result.get("content") or "", bool(result.get("error")))
    return Step(index, requestor, str(function.get("name")), arguments, recorded)
