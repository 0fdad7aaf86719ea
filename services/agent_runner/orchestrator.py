"""Owns driving a conversation: asks whoever must speak, runs tool calls, until the protocol says it is over.

Tool code runs inline, because a telecom call takes a hundredth of a millisecond. Refuses to interpret failures: what a participant
raises passes through.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from services.agent_runner.domains import Session, ToolResult
from services.agent_runner.messages import Json, Malformed, Message, read_agent_message
from services.agent_runner.protocol import Conversation, Role, Termination


class ContextExceeded(Exception):
    """The policy's context cannot hold the conversation any more."""


class Agent(Protocol):
    """The side that is trained or evaluated."""

    async def reply(self, history: list[Message]) -> Json:
        """The next assistant message in OpenAI form. Raises `ContextExceeded`, or whatever its transport raises."""
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

    def end(self) -> None:
        """Books the time since `begin`."""
        spent = time.monotonic() - self.since
        if self.waiting_for is Role.AGENT:
            self.agent_s += spent
        elif self.waiting_for is Role.USER:
            self.user_s += spent
        else:
            self.env_s += spent


async def play(conversation: Conversation, agent: Agent, user: User | None, session: Session, clock: Clock) -> None:
    """Plays until the conversation has ended. ``user`` is None exactly in solo mode."""
    while (speaker := conversation.speaker) is not None:
        clock.begin(speaker)
        try:
            if speaker is Role.ENV:
                conversation.env_said(_execute(conversation, session))
            elif speaker is Role.AGENT:
                await _agent_turn(conversation, agent)
            else:
                assert user is not None, "solo conversations have no user turn"
                conversation.user_said(await user.reply(conversation.user_view()))
        finally:
            clock.end()


async def _agent_turn(conversation: Conversation, agent: Agent) -> None:
    try:
        raw = await agent.reply(conversation.agent_view())
    except ContextExceeded as error:
        conversation.cut(Termination.CONTEXT, str(error))
        return
    try:
        message = read_agent_message(raw)
    except Malformed as error:
        content = raw.get("content")
        conversation.agent_failed(
            Message(
                "assistant",
                content if isinstance(content, str) else None,
                private=raw,
                note={"tool_calls": raw["tool_calls"]} if raw.get("tool_calls") else None,
            ),
            error,
        )
        return
    conversation.agent_said(message)


def _execute(conversation: Conversation, session: Session) -> list[ToolResult]:
    requestor = "user" if conversation.caller is Role.USER else "assistant"
    return [session.call(call.name, call.arguments, requestor) for call in conversation.pending_calls()]
