"""Owns driving a conversation: asks whoever must speak, runs tool calls, until the protocol says it is over.

Tools of a back end whose calls are always short run inline, others in a thread with a deadline. Refuses to interpret failures: what a
participant raises passes through.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.agent_runner.conversation.messages import Json, Malformed, Message, ToolCall, read_agent_message
from services.agent_runner.conversation.offloop import off_loop
from services.agent_runner.conversation.protocol import REQUESTORS, Conversation, Role, Termination
from services.agent_runner.domains import Requestor, Session, ToolResult


class ContextExceeded(Exception):
    """The policy's context cannot hold the conversation any more."""


class Agent(Protocol):
    """The side that is trained or evaluated."""

    async def reply(self, history: list[Message]) -> Json:
        """The next assistant message in OpenAI form. ``history`` is the same list every time, grown at its end.

        Raises `ContextExceeded`, or whatever its transport raises.
        """
        ...


class User(Protocol):
    """The simulated customer."""

    async def reply(self, history: list[Message]) -> Message:
        """The next user message: text or tool calls. Raises where the user cannot be had."""
        ...


@dataclass(slots=True)
class Clock:
    """Seconds spent per role. ``waiting_for`` and ``since`` say what is going on now."""

    agent_s: float = 0.0
    user_s: float = 0.0
    env_s: float = 0.0
    waiting_for: Role = Role.ENV
    since: float = 0.0

    def begin(self, role: Role) -> None:
        """Starts the time of one turn."""
        self.waiting_for, self.since = role, time.monotonic()

    def end(self) -> float:
        """Books the time since `begin` and returns it."""
        spent = time.monotonic() - self.since
        if self.waiting_for is Role.AGENT:
            self.agent_s += spent
        elif self.waiting_for is Role.USER:
            self.user_s += spent
        else:
            self.env_s += spent
        return spent


@dataclass(frozen=True, slots=True)
class Tools:
    """How the tool calls of one episode are run."""

    session: Session
    inline: bool = True
    """Whether every call is short enough for the event loop."""
    timeout_s: float = 60.0
    """Deadline of the calls of one message that run in a thread."""

    async def run(self, calls: Sequence[ToolCall], requestor: Requestor) -> list[ToolResult]:
        """Runs calls in order. Raises `offloop.Stuck`."""
        names = ", ".join(call.name for call in calls)
        return await off_loop(self.inline, self.timeout_s, names, lambda: self._run(calls, requestor))

    def _run(self, calls: Sequence[ToolCall], requestor: Requestor) -> list[ToolResult]:
        return [self.session.call(call.name, call.arguments, requestor) for call in calls]


@dataclass(slots=True)
class Trace:
    """What is noted of an episode besides its messages."""

    clock: Clock = field(default_factory=Clock)
    format_errors: list[int] = field(default_factory=list[int])
    """Turns of the agent (0 is the first) whose tool call could not be parsed."""
    on_step: Callable[[Role, float], None] = lambda role, seconds: None
    """Told after every step who spoke, and how long it took."""


async def play(conversation: Conversation, agent: Agent, user: User | None, tools: Tools, trace: Trace) -> None:
    """Plays until the conversation has ended. ``user`` is None exactly in solo mode.

    Raises `ContextExceeded` where not even the first call of the agent fits.
    """
    while (speaker := conversation.speaker) is not None:
        trace.clock.begin(speaker)
        try:
            if speaker is Role.ENV:
                conversation.env_said(await tools.run(conversation.pending_calls(), REQUESTORS[conversation.caller]))
            elif speaker is Role.AGENT:
                await _agent_turn(conversation, agent, trace)
            else:
                assert user is not None, "solo conversations have no user turn"
                conversation.user_said(await user.reply(conversation.user_view()))
        finally:
            seconds = trace.clock.end()
        trace.on_step(speaker, seconds)


async def _agent_turn(conversation: Conversation, agent: Agent, trace: Trace) -> None:
    try:
        raw = await agent.reply(conversation.agent_view())
    except ContextExceeded as error:
        if not conversation.turns:
            # The policy has not filled it: the context is too small for the task.
            raise
        conversation.cut(Termination.CONTEXT, str(error))
        return
    try:
        conversation.agent_said(read_agent_message(raw))
    except Malformed as error:
        if error.in_call:
            trace.format_errors.append(conversation.turns)
        conversation.agent_failed(unread(raw), error)


def unread(raw: Json) -> Message:
    """An agent's message that cannot be processed, kept for the record with its tool calls as they came."""
    content, calls = raw.get("content"), raw.get("tool_calls")
    text = content if isinstance(content, str) else None
    return Message("assistant", text, private=raw, note={"tool_calls": calls} if calls else None)
