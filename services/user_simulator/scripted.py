"""Owns the scripted user: deterministic and without a model, for every domain, for tests and runs that must not need one. A stand-in for
a customer.

Tells its reason for calling, says who it is when asked, answers from its scenario, runs the tools it is asked to run and repeats what they
said, agrees, and hangs up. Each turn follows from the conversation and the seed alone. Refuses to do twice what a second time would undo or
double: it reports the first result instead.
"""

import re
from collections.abc import Sequence

from services.common.wire.users import UserToolCall, UserTurnBody, UserTurnReply
from services.user_simulator.protocol import stop_kind
from services.user_simulator.requests import (
    SLOTS,
    Confirm,
    Decide,
    Goodbye,
    Identify,
    Json,
    Request,
    RunTool,
    RunTools,
    Transferred,
    understand,
)
from services.user_simulator.scenario import Errand, Line, errands_of, script_of

UNCLEAR = ("I'm not sure what you mean.", "Sorry, I don't know how to do that.", "I can't tell you more than I have.")
AGREED = ("Yes, please go ahead.", "Yes, that works for me.", "Sure, please do that.")
INDIFFERENT = ("I have no preference.", "Whatever you think is best.", "That is up to you.")
THANKS = ("Thank you, that is all.", "Great, thanks for your help.", "That's everything, thank you.")
UNKNOWN = "I don't have that information."
GIVE_UP_AFTER = 3
"""So many turns in a row that it did not understand, and the user gives up."""
MAX_TURNS = 60
NOT_TWICE = ("toggle_", "submit_", "apply_", "make_", "deposit_", "call_discoverable_")
"""Beginnings of tools that a second time would undo or double what was done."""
MIN_SHARED_WORDS = 2
"""Between what the agent says and what is told to it; an open question needs one."""

_AGAIN = re.compile(r"\b(?:again|once more|one more time|retry)\b", re.IGNORECASE)
_WANTED_STATE = re.compile(r"\b(?:(?:turn|switch)\b[^.?!]*?\b(on|off)\b(?! (?:your|the|my)\b)|(en|dis)able)", re.IGNORECASE)
_STATE = re.compile(r"\bnow (on|off)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9#$]{3,}")
_COMMON = frozenset(
    _WORD.findall(
        "the and you your for are was were have has with that this can could would please what which when where who how tell let know like"
        " want need will from about any there not but all our out its also just does did them they then than some more been being may"
    )
)


def scripted_turn(body: UserTurnBody) -> UserTurnReply:
    """The user's next turn: text or one tool call, never both."""
    turn = _Turn(body)
    if turn.runs_tools:
        return turn.after_a_result()
    if len(turn.said) >= MAX_TURNS:
        return _say("###STOP###")
    return turn.answer() if turn.said else turn.begin()


class _Turn:
    """One turn in the making."""

    def __init__(self, body: UserTurnBody) -> None:
        self._seed = body.seed
        self._history = body.messages
        self._tools: dict[str, Json] = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in body.tools}
        self._script = script_of(body.scenario)
        self._errands = errands_of(body.scenario.task_instructions, frozenset(self._tools)) if self._tools else ()
        self._agent = next((message.content or "" for message in reversed(body.messages) if message.role == "assistant"), "")
        self.runs_tools = body.messages[-1].role == "tool"
        self.said = [message.content or "" for message in body.messages if message.role == "user" and not message.tool_calls]

    def begin(self) -> UserTurnReply:
        """What comes before anything else: its own errands, then the reason for the call."""
        return self._errand(first=True) or _say(self._script.opening)

    def after_a_result(self) -> UserTurnReply:
        """Goes on with what was asked for, and then says what the tools said."""
        if not self.said:
            return self.begin()
        asked = understand(self._agent, self._tools)
        return self._goodbye() if isinstance(asked, Goodbye) else self._run(asked.calls if isinstance(asked, RunTools) else ())

    def answer(self) -> UserTurnReply:
        """The reply to what the agent has just said."""
        asked = understand(self._agent, self._tools)
        if isinstance(asked, RunTools):
            return self._run(asked.calls)
        if isinstance(asked, Transferred):
            return _say("###TRANSFER###")
        # A conversation that began before this user did: it has not said yet what it wants.
        if not self._said(self._script.opening) and not isinstance(asked, Identify | Confirm):
            return _say(self._script.opening)
        return self._goodbye() if isinstance(asked, Goodbye) else _say(self._reply(asked))

    def _reply(self, asked: Request) -> str:
        if isinstance(asked, Confirm):
            return self._one_of(AGREED)
        told = self._identified(asked.slots) if isinstance(asked, Identify) else None
        if told := told or self._recalled(1 if isinstance(asked, Decide) else MIN_SHARED_WORDS):
            return told
        if isinstance(asked, Identify):
            return UNKNOWN
        if isinstance(asked, Decide):
            return self._one_of(INDIFFERENT)
        gave_up = len(self.said) >= GIVE_UP_AFTER and all(text in UNCLEAR for text in self.said[-GIVE_UP_AFTER:])
        return "###OUT-OF-SCOPE###" if gave_up else self._one_of(UNCLEAR)

    def _run(self, asked: Sequence[RunTool]) -> UserTurnReply:
        """The next of the calls asked for, or after the last of them what came of all."""
        earlier, made = self._calls()
        done = [self._done(call, earlier) for call in asked]
        to_do = [call for call, before in zip(asked, done, strict=True) if before is None]
        if len(made) < len(to_do):
            return self._call(to_do[len(made)].name, to_do[len(made)].arguments)
        already = [f"I have done that already. {self._told(before)}" for before in done if before is not None]
        return _say("\n".join([*already, *(self._told(call) for call in made)]) or self._one_of(UNCLEAR))

    def _done(self, asked: RunTool, earlier: Sequence[UserToolCall]) -> UserToolCall | None:
        """The earlier call that makes this one superfluous, if there is one."""
        if not asked.name.startswith(NOT_TWICE) or _AGAIN.search(self._agent):
            return None
        same = next((call for call in reversed(earlier) if call.name == asked.name and call.arguments == asked.arguments), None)
        if same is None:
            return None
        result = self._result(same)
        wanted, state = _WANTED_STATE.search(self._agent), _STATE.search(result)
        is_other = wanted and state and ((wanted[1] or "").lower() == "on" or wanted[2] == "en") != (state[1].lower() == "on")
        return None if result.startswith("Error") or is_other else same

    def _goodbye(self) -> UserTurnReply:
        return self._errand(first=False) or _say(f"{self._one_of(THANKS)} ###STOP###")

    def _errand(self, *, first: bool) -> UserTurnReply | None:
        """The next thing its scenario has the user do by itself, as a call; None where all is done."""
        made = {call.name for message in self._history for call in message.tool_calls}
        due: Errand | None = next((one for one in self._errands if one.first is first and one.tool not in made), None)
        if due is None:
            return None
        schema = self._tools[due.tool]
        return self._call(due.tool, dict(zip(schema.get("required") or schema.get("properties") or {}, due.values, strict=False)))

    def _call(self, name: str, arguments: Json) -> UserTurnReply:
        earlier, made = self._calls()
        return UserTurnReply(tool_calls=[UserToolCall(id=f"user_call_{len(earlier) + len(made)}", name=name, arguments=arguments)])

    def _calls(self) -> tuple[list[UserToolCall], list[UserToolCall]]:
        """The user's calls before the agent's last message, and since."""
        last = max((number for number, message in enumerate(self._history) if message.role == "assistant"), default=-1)
        parts = self._history[: last + 1], self._history[last + 1 :]
        before, since = ([call for message in part for call in message.tool_calls] for part in parts)
        return before, since

    def _told(self, call: UserToolCall) -> str:
        return f"I ran {call.name}. It says: {self._result(call) or 'nothing'}"

    def _result(self, call: UserToolCall) -> str:
        return next((message.content or "" for message in self._history if message.tool_call_id == call.id), "")

    def _identified(self, slots: Sequence[str]) -> str | None:
        """What the user knows of what is asked for; what it knows that it does not know, too."""
        script = self._script
        if not slots:
            return " ".join(line.text for line in script.facts[:2]) or None
        found = [_first(SLOTS[slot][1], (*script.facts, *script.unknown, *script.lines)) for slot in slots]
        return " ".join(dict.fromkeys(line.text for line in found if line is not None)) or None

    def _recalled(self, min_shared: int) -> str | None:
        """The line that has most words in common with the question, of those not said yet."""
        question = _words(self._agent)
        script = self._script
        fresh = [line for line in (*script.lines, *script.facts, *script.unknown) if not self._said(line.text)]
        shared = [len(question & _words(f"{line.cue} {line.text}")) for line in fresh]
        best = max(shared, default=0)
        return fresh[shared.index(best)].text if best >= min_shared else None

    def _said(self, text: str) -> bool:
        return any(text in said for said in self.said)

    def _one_of(self, variants: tuple[str, ...]) -> str:
        return variants[self._seed % len(variants)]


def _first(pattern: re.Pattern[str], lines: Sequence[Line]) -> Line | None:
    return next((line for line in lines if pattern.search(line.text)), None)


def _words(text: str) -> set[str]:
    words = (word.removesuffix("s") for word in _WORD.findall(text.lower()) if word not in _COMMON)
    return set(words)


def _say(text: str) -> UserTurnReply:
    return UserTurnReply(content=text, stop=stop_kind(text))
