"""The turn protocol against a model of upstream's `Orchestrator.step`, written down here a second time, on random conversations."""

import json
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from services.agent_runner.conversation.messages import Malformed, Message, ToolCall, for_record, read_agent_message, read_record, spoken
from services.agent_runner.conversation.protocol import Conversation, Role, Termination, agent_sees, user_sees
from services.agent_runner.domains import ToolResult

TEXTS = st.sampled_from([None, "", "hello", "###STOP###", "so ###TRANSFER###", "###OUT-OF-SCOPE###", "x ###STOP### y"])
NAMES = st.lists(st.sampled_from(["look", "fix", "done"]), max_size=3)


@dataclass(frozen=True)
class Said:
    """What a participant says when it is its turn, and how the environment takes it."""

    text: str | None
    names: tuple[str, ...]
    errors: tuple[bool, ...]


SAID = st.builds(
    lambda text, names, errors: Said(text if text or names else "well", tuple(names), tuple(errors[: len(names)])),
    TEXTS,
    NAMES,
    st.lists(st.booleans(), min_size=3, max_size=3),
)


@dataclass
class Upstream:
    """orchestrator.py at 1.0.1, half duplex: `initialize`, `step`, `check_communication_error`, `_check_termination`."""

    solo: bool
    max_steps: int
    max_errors: int
    validate: bool
    to: str = "user"
    done: bool = False
    reason: str = ""
    steps: int = 0
    errors: int = 0
    caller: str = ""
    owed: Said | None = None
    roles: list[str] = field(default_factory=lambda: ["assistant"])

    def __post_init__(self) -> None:
        if self.solo:
            self.to, self.roles = "agent", []

    def finish(self, reason: str) -> None:
        self.done, self.reason = True, reason

    def step(self, said: Said) -> None:
        """One step; ``said`` is consumed by whoever speaks."""
        first = self.solo and not self.roles
        if self.to == "env":
            assert self.owed is not None
            self.errors += sum(self.owed.errors)
            self.roles += ["tool"] * len(self.owed.names)
            self.to, self.owed = self.caller, None
        elif self.to == "user":
            self.speak("user", said, self.user_stops(said))
        elif not self.agent(said) or first:
            return
        self.steps += 1
        if self.to != "env":
            if self.steps >= self.max_steps:
                self.finish("max_steps")
            if self.errors >= self.max_errors:
                self.finish("too_many_errors")

    def agent(self, said: Said) -> bool:
        """The agent's turn; False where upstream raises instead of going on, which is the policy's error here."""
        if not self.solo:
            self.speak("agent", said, None)
            return True
        if not said.names:
            self.roles.append("assistant")
            self.finish("agent_error")
            return False
        if "done" in said.names:
            said = Said("###STOP###", (), ())
        stops = "###STOP###" in (said.text or "")
        self.speak("agent", said, "agent_stop" if stops else None)
        if stops and said.names:
            # In the first message upstream takes it for a stop, and its evaluator raises on calls without results.
            self.finish("agent_error")
            return False
        return True

    def speak(self, who: str, said: Said, reason: str | None) -> None:
        self.roles.append("assistant" if who == "agent" else "user")
        if reason:
            self.finish(reason)
        if said.names:
            self.to, self.caller, self.owed = "env", who, said
        else:
            self.to = "user" if who == "agent" else "agent"
        if self.validate and said.names and (said.text or "").strip():
            self.finish(f"{who}_error")

    def user_stops(self, said: Said) -> str | None:
        tokens = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
        return "user_stop" if not said.names and any(token in (said.text or "") for token in tokens) else None


def speak(talk: Conversation, said: Said) -> None:
    number = len(talk.messages)
    calls = tuple(ToolCall(f"{number}-{index}", name, {}) for index, name in enumerate(said.names))
    if talk.speaker is Role.AGENT:
        talk.agent_said(Message("assistant", said.text, calls))
    else:
        talk.user_said(Message("user", said.text, calls))


@given(st.lists(SAID, max_size=30), st.booleans(), st.integers(1, 20), st.integers(1, 6), st.booleans())
def test_every_conversation_goes_as_upstreams_would(script: list[Said], solo: bool, max_steps: int, max_errors: int, enforce: bool):
    ours = Conversation(solo=solo, max_steps=max_steps, max_errors=max_errors, enforce=enforce)
    theirs = Upstream(solo, max_steps, max_errors, enforce)
    for said in script:
        if ours.speaker is Role.ENV:
            assert theirs.owed is not None
            ours.env_said([ToolResult("x", error) for error in theirs.owed.errors])
            theirs.step(said)
            assert_same(ours, theirs)
        if ours.speaker is None:
            break
        speak(ours, said)
        theirs.step(said)
        assert_same(ours, theirs)


def assert_same(ours: Conversation, theirs: Upstream) -> None:
    assert [message.role for message in ours.messages] == theirs.roles
    assert (ours.steps, ours.errors) == (theirs.steps, theirs.errors)
    assert ours.termination == (Termination(theirs.reason) if theirs.done else None)
    if not theirs.done:
        assert ours.speaker == theirs.to
    assert ours.agent_view() == [message for message in ours.messages if agent_sees(message)]
    assert ours.user_view() == [message for message in ours.messages if user_sees(message)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
CALL = st.fixed_dictionaries(
    {"id": st.text(max_size=3), "type": st.just("function")},
    optional={"function": st.fixed_dictionaries({}, optional={"name": st.text(max_size=3), "arguments": JSON | JSON.map(json.dumps)})},
)


@given(st.none() | st.text(max_size=8), st.none() | st.lists(CALL, max_size=2), st.none() | st.text(max_size=4))
def test_whatever_a_model_says_is_a_message_or_malformed(content: str | None, calls: list[dict[str, object]] | None, reasoning: str | None):
    raw = {"role": "assistant", "content": content, "tool_calls": calls, "reasoning_content": reasoning}
    try:
        message = read_agent_message(raw)
    except Malformed as error:
        assert str(error)
        assert error.in_call == (str(error) != "empty message: neither text nor a tool call")
        return
    assert message.has_text or message.tool_calls
    assert len(message.tool_calls) == len(calls or [])
    again = read_record(json.loads(json.dumps(for_record(message))))
    assert (again.content, again.tool_calls) == (message.content, message.tool_calls)


@given(st.lists(st.sampled_from(["<think>", "</think>", "thought", " ", "said"]), max_size=8))
def test_think_tags_are_never_spoken(parts: list[str]):
    assert "think>" not in spoken("".join(parts))
