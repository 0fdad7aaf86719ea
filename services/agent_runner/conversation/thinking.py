"""Owns the thinking tool (``econfig.add_thinking_tool``): a place to write thoughts down, which is no part of any environment.

Refuses to touch the world: a session behind it never sees the call, and no database changes.
"""

from collections.abc import Sequence
from typing import Any

from services.agent_runner.domains import Action, EnvCall, Requestor, Session, ToolResult

THINK_TOOL = "think"
NOTED = "Your thoughts are noted. Please go on."
THINK_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": THINK_TOOL,
        "description": "Writes a thought into the conversation, where only you can read it. Changes nothing. Use it only where it helps.",
        "parameters": {
            "properties": {"thoughts": {"title": "Thoughts", "type": "string"}},
            "required": ["thoughts"],
            "title": "parameters",
            "type": "object",
        },
    },
}


def with_thinking_tool(schemas: Sequence[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """``schemas`` with the thinking tool at ``index``."""
    return [*schemas[:index], THINK_SCHEMA, *schemas[index:]]


class ThinkingSession:
    """A session whose agent may think aloud."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner

    def call(self, name: str, arguments: dict[str, Any], requestor: Requestor = "assistant") -> ToolResult:
        """Answers the agent's thoughts and passes everything else on."""
        if name != THINK_TOOL or requestor != "assistant":
            return self._inner.call(name, arguments, requestor)
        if set(arguments) != {"thoughts"}:
            return ToolResult(f"Error: {THINK_TOOL} takes one argument, thoughts", error=True)
        return ToolResult(NOTED)

    def run(self, call: EnvCall) -> Any:
        """As the session behind."""
        return self._inner.run(call)

    def replay(self, action: Action) -> None:
        """As the session behind."""
        self._inner.replay(action)

    def fingerprint(self) -> tuple[str, str]:
        """As the session behind."""
        return self._inner.fingerprint()

    def db_hashes(self) -> tuple[str | None, str | None]:
        """As the session behind."""
        return self._inner.db_hashes()
