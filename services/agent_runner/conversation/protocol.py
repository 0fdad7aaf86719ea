"""Owns tau2's turn protocol as a state machine without I/O: who speaks next, what routes where, when an episode ends.

Equal to upstream's half-duplex orchestrator at 1.0.1, except that a message upstream cannot process (empty, malformed arguments, no
tool call in solo mode) ends the episode as the policy's `agent_error` instead of raising. Refuses to execute anything: see `orchestrator`.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from services.agent_runner.conversation.messages import Malformed, Message, ToolCall
from services.agent_runner.domains import STOP_TOOL, Requestor, ToolResult

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
    USER_ERROR = "user_error"
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

SPEAKERS: dict[str, Role] = {"assistant": Role.AGENT, "user": Role.USER}
REQUESTORS: dict[Role, Requestor] = {Role.AGENT: "assistant", Role.USER: "user"}
BLAMED = {Role.AGENT: Termination.AGENT_ERROR, Role.USER: Termination.USER_ERROR}


class Conversation:
    """One episode's conversation and its state.

    ``speaker`` is who must speak next, None once the episode has ended; exactly the matching ``*_said`` method may then be called.
    ``history`` is what the task begins with: it counts as nobody's step, turn or error. ``enforce`` ends the episode where a message has
    both text and tool calls (upstream's ``validate_communication``). Raises ValueError for a history that cannot have happened.
    """

    def __init__(self, *, solo: bool, max_steps: int, max_errors: int, history: Sequence[Message] = (), enforce: bool = False) -> None:
        self.solo = solo
        self._max_steps = max_steps
        self._max_errors = max_errors
        self._enforce = enforce
        self.messages: list[Message] = []
        self._agent_view: list[Message] = []
        self._user_view: list[Message] = []
        self.steps = 0
        self.errors = 0
        """Failed tool calls of both sides together, never reset."""
        self.turns = 0
        """Calls of the agent so far. The greeting, the history and a recorded continuation are none."""
        self.termination: Termination | None = None
        self.detail = ""
        self._to = Role.AGENT
        self._from: Role = Role.USER
        self._owed: tuple[ToolCall, ...] = ()
        self._begin(history)
        self.n_given = len(self.messages)
        """How many messages were there before anybody spoke."""

    def _begin(self, history: Sequence[Message]) -> None:
        if not history:
            if not self.solo:
                self._add(Message("assistant", GREETING))
                self._from, self._to = Role.AGENT, Role.USER
            return
        check_history(history, solo=self.solo)
        for message in history:
            self._add(message)
        self._go_on_from(history)

    def _go_on_from(self, history: Sequence[Message]) -> None:
        """Who speaks after a given history follows from its last message."""
        last = history[-1]
        if last.role == "tool":
            self._from, self._to = Role.ENV, Role.USER if last.requestor == "user" else Role.AGENT
            return
        speaker = SPEAKERS[last.role]
        self._route(speaker, last)
        if speaker is Role.USER and _user_stops(last):
            self._end(Termination.USER_STOP)
        self._check_form(speaker, last)

    @property
    def speaker(self) -> Role | None:
        """Who must speak next."""
        return None if self.termination else self._to

    def agent_view(self) -> list[Message]:
        """What the agent has seen: its own messages, the user's text, results of its own tools. Only ever grows; not to be written to."""
        return self._agent_view

    def user_view(self) -> list[Message]:
        """What the user has seen: its own messages, the agent's text, results of its own tools. Only ever grows; not to be written to."""
        return self._user_view

    def pending_calls(self) -> Sequence[ToolCall]:
        """The tool calls that the environment must answer, in order."""
        self._expect(Role.ENV)
        return self._owed

    @property
    def caller(self) -> Role:
        """Who made the pending calls."""
        return self._from

    def agent_said(self, message: Message) -> None:
        """The agent's turn."""
        self._expect(Role.AGENT)
        # A solo agent's first message is upstream's initialization, which is no step.
        opening = self.solo and not self.messages
        self.turns += 1
        stopping = self.solo and any(call.name == STOP_TOOL for call in message.tool_calls)
        if stopping:
            # Whatever else the message carried is discarded, as upstream does.
            message = replace(message, content=STOP, tool_calls=())
        self._add(message)
        if self.solo and not stopping and not message.tool_calls:
            self._end(Termination.AGENT_ERROR, "a solo agent sent text instead of a tool call")
            return
        self._route(Role.AGENT, message)
        if self.solo and STOP in (message.content or ""):
            if message.tool_calls:
                self._end(Termination.AGENT_ERROR, "a stop token beside tool calls")
                return
            self._to = Role.USER
            self._end(Termination.AGENT_STOP)
        self._check_form(Role.AGENT, message)
        if not opening:
            self._count_step()

    def agent_failed(self, raw: Message, why: Malformed) -> None:
        """The agent's turn, with a message that cannot be processed: the policy's error, scored 0."""
        self._expect(Role.AGENT)
        self.turns += 1
        self._add(raw)
        self._end(Termination.AGENT_ERROR, str(why))

    def user_said(self, message: Message) -> None:
        """The user's turn."""
        self._expect(Role.USER)
        self._add(message)
        self._route(Role.USER, message)
        if _user_stops(message):
            self._end(Termination.USER_STOP)
        self._check_form(Role.USER, message)
        self._count_step()

    def env_said(self, results: Sequence[ToolResult]) -> None:
        """The environment's answer to all pending calls, in order."""
        requestor = REQUESTORS[self.caller]
        for call, result in zip(self.pending_calls(), results, strict=True):
            self.errors += result.error
            self._add(Message("tool", result.content, requestor=requestor, tool_call_id=call.id, error=result.error))
        self._from, self._to = Role.ENV, self._from
        self._count_step()

    def said(self, messages: Sequence[Message]) -> None:
        """Goes through a recorded continuation as if it happened now, every step and error counted, but no turn.

        Raises ValueError where it breaks the protocol.
        """
        turns, done = self.turns, 0
        while done < len(messages):
            message = messages[done]
            if message.role == "tool":
                answers = messages[done : done + len(self.pending_calls())]
                self.env_said([ToolResult(answer.content or "", answer.error) for answer in answers])
                done += len(answers)
                continue
            (self.agent_said if message.role == "assistant" else self.user_said)(message)
            done += 1
        self.turns = turns

    def cut(self, why: Termination, detail: str = "") -> None:
        """Ends the episode from outside: the context is full, or time is up."""
        self._end(why, detail)

    def _expect(self, role: Role) -> None:
        if self.speaker is not role:
            raise ValueError(f"protocol: {role} may not speak now, {self.speaker or 'nobody'} may")

    def _add(self, message: Message) -> None:
        self.messages.append(message)
        if agent_sees(message):
            self._agent_view.append(message)
        if user_sees(message):
            self._user_view.append(message)

    def _route(self, speaker: Role, message: Message) -> None:
        self._from, self._to = speaker, ROUTES[speaker, bool(message.tool_calls)]
        self._owed = message.tool_calls

    def _check_form(self, speaker: Role, message: Message) -> None:
        if self._enforce and message.tool_calls and message.has_text:
            self._end(BLAMED[speaker], f"the {speaker} sent text and tool calls in one message")

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


def agent_sees(message: Message) -> bool:
    """Whether a message is part of the agent's history: everything but the user's tool traffic."""
    if message.role == "user":
        return not message.tool_calls
    return message.role == "assistant" or message.requestor == "assistant"


def user_sees(message: Message) -> bool:
    """Whether a message is part of the user's history: everything but the agent's tool traffic."""
    if message.role == "assistant":
        return not message.tool_calls
    return message.role == "user" or message.requestor == "user"


def _user_stops(message: Message) -> bool:
    return not message.tool_calls and any(token in (message.content or "") for token in USER_STOPS)


def check_history(history: Sequence[Message], *, solo: bool) -> None:
    """Whether a conversation can have begun like this. Raises ValueError that says where it cannot.

    Every call is followed by its result, by whoever made it; nobody says nothing; a solo history is the agent's tool traffic alone.
    """
    owed: list[tuple[str, Requestor]] = []
    for index, message in enumerate(history):
        where = f"message_history[{index}]"
        if message.role == "tool":
            if not owed or owed.pop(0) != (message.tool_call_id, message.requestor):
                raise ValueError(f"{where}: a tool result that answers no call before it")
            continue
        if owed:
            raise ValueError(f"{where}: {len(owed)} tool results are missing before it")
        if not message.tool_calls and not message.has_text:
            raise ValueError(f"{where}: neither text nor a tool call")
        if solo and (message.role == "user" or not message.tool_calls):
            raise ValueError(f"{where}: a solo conversation has only tool calls of the agent and their results")
        owed = [(call.id, REQUESTORS[SPEAKERS[message.role]]) for call in message.tool_calls]
    if owed and history[-1].role == "tool":
        raise ValueError(f"message_history: {len(owed)} tool results are missing at its end")
