"""Owns tau2's turn protocol as a state machine without I/O: who speaks next, what routes where, when an episode ends.

Equal to upstream's half-duplex orchestrator at 1.0.1, except that a message upstream cannot process (empty, malformed arguments, no
tool call in solo mode) ends the episode as the policy's `agent_error` instead of raising. Refuses to execute anything: see `orchestrator`.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from services.agent_runner.domains import STOP_TOOL, ToolResult
from services.agent_runner.messages import Malformed, Message, ToolCall

GREETING = "Hi! How can I help you today?"
STOP = "###STOP###"
USER_STOPS = (STOP, "###TRANSFER###", "###OUT-OF-SCOPE###")


class Role(StrEnum):
    """A participant."""

    AGENT = "agent"
    USER = "user"
    ENV = "env"


class Termination(StrEnum):
    """Why an episode ended (upstream's words)."""

    USER_STOP = "user_stop"
    AGENT_STOP = "agent_stop"
    MAX_STEPS = "max_steps"
    TOO_MANY_ERRORS = "too_many_errors"
    AGENT_ERROR = "agent_error"
    CONTEXT = "context_window_exceeded"
    TIMEOUT = "timeout"


ROUTES: dict[tuple[Role, bool], Role] = {
    (Role.AGENT, True): Role.ENV,
    (Role.AGENT, False): Role.USER,
    (Role.USER, True): Role.ENV,
    (Role.USER, False): Role.AGENT,
}
"""(who spoke, whether with tool calls) -> who hears it. Text beside tool calls goes to the environment with them and reaches nobody.
The environment answers whoever called it."""


class Conversation:
    """One episode's conversation and its state.

    ``speaker`` is who must speak next, None once the episode has ended; exactly the matching ``*_said`` method may then be called.
    """

    def __init__(self, *, solo: bool, max_steps: int, max_errors: int) -> None:
        self.solo = solo
        self._max_steps = max_steps
        self._max_errors = max_errors
        self.messages: list[Message] = []
        self.steps = 0
        self.errors = 0
        """Failed tool calls of both sides together, never reset."""
        self.turns = 0
        """Messages of the agent, the greeting not counted."""
        self.termination: Termination | None = None
        self.detail = ""
        self._to = Role.AGENT
        self._from: Role = Role.USER
        if not solo:
            self.messages.append(Message("assistant", GREETING))
            self._from, self._to = Role.AGENT, Role.USER

    @property
    def speaker(self) -> Role | None:
        """Who must speak next."""
        return None if self.termination else self._to

    def agent_view(self) -> list[Message]:
        """What the agent has seen: its own messages, the user's text, results of its own tools."""
        return [
            message
            for message in self.messages
            if message.role == "assistant"
            or (message.role == "user" and not message.tool_calls)
            or (message.role == "tool" and message.requestor == "assistant")
        ]

    def user_view(self) -> list[Message]:
        """What the user has seen: its own messages, the agent's text, results of its own tools."""
        return [
            message
            for message in self.messages
            if message.role == "user"
            or (message.role == "assistant" and not message.tool_calls)
            or (message.role == "tool" and message.requestor == "user")
        ]

    def pending_calls(self) -> Sequence[ToolCall]:
        """The tool calls that the environment must answer, in order."""
        self._expect(Role.ENV)
        return self.messages[-1].tool_calls

    @property
    def caller(self) -> Role:
        """Who made the pending calls."""
        return self._from

    def agent_said(self, message: Message) -> None:
        """The agent's turn."""
        self._expect(Role.AGENT)
        first = not self.messages
        self.turns += 1
        stopping = self.solo and any(call.name == STOP_TOOL for call in message.tool_calls)
        if stopping:
            # Whatever else the message carried is discarded, as upstream does.
            message = replace(message, content=STOP, tool_calls=())
        self.messages.append(message)
        if self.solo and not stopping and not message.tool_calls:
            self._end(Termination.AGENT_ERROR, "a solo agent sent text instead of a tool call")
            return
        self._route(Role.AGENT, message)
        if self.solo and STOP in (message.content or ""):
            if self._to is Role.ENV and not first:
                self._end(Termination.AGENT_ERROR, "a stop token beside tool calls")
                return
            self._to = Role.USER
            self._end(Termination.AGENT_STOP)
        # A solo agent's first message is upstream's initialization, which is no step.
        if not (self.solo and first):
            self._count_step()

    def agent_failed(self, raw: Message, why: Malformed) -> None:
        """The agent's turn, with a message that cannot be processed: the policy's error, scored 0."""
        self._expect(Role.AGENT)
        self.turns += 1
        self.messages.append(raw)
        self._end(Termination.AGENT_ERROR, str(why))

    def user_said(self, message: Message) -> None:
        """The user's turn."""
        self._expect(Role.USER)
        self.messages.append(message)
        self._route(Role.USER, message)
        if not message.tool_calls and any(token in (message.content or "") for token in USER_STOPS):
            self._end(Termination.USER_STOP)
        self._count_step()

    def env_said(self, results: Sequence[ToolResult]) -> None:
        """The environment's answer to all pending calls, in order."""
        requestor = "user" if self.caller is Role.USER else "assistant"
        for call, result in zip(self.pending_calls(), results, strict=True):
            self.errors += result.error
            self.messages.append(Message("tool", result.content, requestor=requestor, tool_call_id=call.id))
        self._from, self._to = Role.ENV, self._from
        self._count_step()

    def cut(self, why: Termination, detail: str = "") -> None:
        """Ends the episode from outside: the context is full, or time is up."""
        self._end(why, detail)

    def _expect(self, role: Role) -> None:
        if self.speaker is not role:
            raise ValueError(f"protocol: {role} may not speak now, {self.speaker or 'nobody'} may")

    def _route(self, speaker: Role, message: Message) -> None:
        self._from, self._to = speaker, ROUTES[speaker, bool(message.tool_calls)]

    def _count_step(self) -> None:
        """Limits are looked at after every step that does not wait for the environment, and win over a stop on that very step."""
        self.steps += 1
        if self._to is Role.ENV:
            return
        if self.steps >= self._max_steps:
            self._end(Termination.MAX_STEPS)
        if self.errors >= self._max_errors:
            self._end(Termination.TOO_MANY_ERRORS)

    def _end(self, why: Termination, detail: str = "") -> None:
        self.termination, self.detail = why, detail
