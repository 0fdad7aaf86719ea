"""Owns how a task's ``initial_state`` is brought about in a session, as upstream's `Environment.set_state` does it.

Order: initialization data into the databases, initialization actions, then the tool calls of the message history, made again. Refuses
(ValueError) a history that this environment would not have produced: replaying it would start the episode in another state than it tells.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from services.agent_runner.domains.base import EnvCall, Requestor, TaskSpec, ToolResult

Json = dict[str, Any]


class Restorable(Protocol):
    """What a session offers so that an initial state can be brought about in it."""

    def merge(self, side: Requestor, data: Json) -> None:
        """Merges ``initialization_data`` of one side into its database. Raises ValueError."""
        ...

    def run(self, call: EnvCall) -> Any:
        """Runs a function of the environment."""
        ...

    def call(self, name: str, arguments: Json, requestor: Requestor = "assistant") -> ToolResult:
        """Runs a tool."""
        ...

    def changes_state(self, name: str) -> bool:
        """Whether a tool is known and can change a database."""
        ...

    def sync(self) -> None:
        """Keeps the databases in step."""
        ...


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A tool call in a message history, with the text that it gave."""

    name: str
    arguments: Json
    requestor: Requestor
    content: str


def bring_about(session: Restorable, task: TaskSpec, *, solo: bool) -> None:
    """Does to a fresh session what the task's ``initial_state`` asks for. Raises ValueError, or what an initialization action raises."""
    if solo and any(message.get("role") == "user" for message in task.message_history):
        raise ValueError(f"task {task.task_id}: message_history has user messages, so it cannot be played solo")
    for side, key in (("assistant", "agent_data"), ("user", "user_data")):
        data = task.initialization_data.get(key)
        if data is not None:
            session.merge(cast("Requestor", side), data)
    for action in task.initialization:
        session.run(action)
    for recorded in recorded_calls(task.message_history):
        _repeat(session, task, recorded)
    session.sync()


def _repeat(session: Restorable, task: TaskSpec, recorded: RecordedCall) -> None:
    # Unknown tools changed nothing when they were called, and tools that only read would change nothing now.
    if not session.changes_state(recorded.name):
        return
    result = session.call(recorded.name, recorded.arguments, recorded.requestor)
    if _value(result.content) != _value(recorded.content):
        raise ValueError(
            f"task {task.task_id}: message_history: {recorded.name}({json.dumps(recorded.arguments)}) gave {result.content!r} here, "
            f"but {recorded.content!r} is recorded; record the history again with this data"
        )


def _value(content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


def recorded_calls(history: Sequence[Json]) -> Iterator[RecordedCall]:
    """The tool calls of a message history with their results, in order.

    Each message with tool calls must be followed by one tool message per call, in the same order and with the same ids. Raises ValueError.
    """
    messages = iter(history)
    for message in messages:
        if message.get("role") == "tool":
            raise ValueError("message_history: a tool message stands where no tool call waits for it")
        for call in message.get("tool_calls") or ():
            result = next(messages, None)
            if result is None or result.get("role") != "tool":
                raise ValueError(f"message_history: tool call {call.get('id')!r} is not followed by its tool message")
            if result.get("id") != call.get("id"):
                raise ValueError(f"message_history: tool call {call.get('id')!r} is followed by the result of {result.get('id')!r}")
            requestor = call.get("requestor", "assistant")
            yield RecordedCall(call["name"], call["arguments"], requestor, result.get("content") or "")
