"""Owns judging a user turn: which fault it has, if any. Pure: the turn, the conversation and the scenario in, a label out.

Built for precision: a label costs a resample and stays on the record, so each rule needs words that a customer does not say, and what is
in quotation marks or reported ("I was told …") is not the customer's own. Refuses to repair: what is wrong is named, the text stays.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.common.wire.users import Fault, UserSideMessage, UserToolCall
from services.user_simulator.protocol import mistyped_stop, stop_kind

Verdict = tuple[Fault, str]
OK: Verdict = (Fault.OK, "")

MIN_SCENARIO_WORDS = 6
MIN_GUIDELINE_WORDS = 8
"""Shorter sentences are repeated by chance."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A user turn and what it is judged by."""

    content: str | None
    calls: Sequence[UserToolCall]
    history: Sequence[UserSideMessage]
    tool_names: frozenset[str]
    scenario: str = ""
    guidelines: str = ""

    @property
    def text(self) -> str:
        """What is said, without surrounding white space."""
        return (self.content or "").strip()


def judge(turn: Turn) -> Verdict:
    """The first fault of a turn and what it is about; `OK` where there is none."""
    for rule in (_empty, _out_of_protocol, _leaked, _role_flip, _premature_stop):
        verdict = rule(turn)
        if verdict is not OK:
            return verdict
    return OK


def _empty(turn: Turn) -> Verdict:
    return OK if turn.text or turn.calls else (Fault.EMPTY, "neither text nor a tool call")


_CALL_AS_TEXT = re.compile(r"</?tool_call>|\A\s*(```(json)?\s*)?\{\s*\"name\"\s*:")


def _out_of_protocol(turn: Turn) -> Verdict:
    if turn.text and turn.calls:
        return Fault.OUT_OF_PROTOCOL, "text and tool calls in one message"
    unknown = next((call.name for call in turn.calls if call.name not in turn.tool_names), None)
    if unknown is not None:
        return Fault.OUT_OF_PROTOCOL, f"unknown tool {unknown!r}"
    if _CALL_AS_TEXT.search(turn.text):
        return Fault.OUT_OF_PROTOCOL, "a tool call written as text"
    if almost := mistyped_stop(turn.text):
        return Fault.OUT_OF_PROTOCOL, f"a mistyped stop token: {almost}"
    return OK


_LEAK = re.compile(
    r"</?scenario>|<persona_guidelines>|\buser simulat(?:or|ion)\b|\bsimulation guidelines\b"
    r"|^\W*(?:task instructions|reason for call|known info|unknown info|persona)\W*:"
    r"|\bmy (?:task|scenario|role-?play) instructions\b|\bmy instructions (?:say|state|tell me)\b"
    r"|\b(?:according to|per) (?:my|the) scenario\b|\bthe scenario (?:does not|doesn't) (?:provide|say|mention|specify)\b"
    r"|\bas an ai(?: language model| assistant)?,? i\b|\bi(?:'m| am) (?:just |only )?an? (?:large |ai )?language model\b",
    re.IGNORECASE | re.MULTILINE,
)


def _leaked(turn: Turn) -> Verdict:
    if match := _LEAK.search(turn.text):
        return Fault.LEAKED_INSTRUCTIONS, match.group()
    said = _plain(turn.text)
    quoted = next((sentence for sentence in private_sentences(turn.scenario, turn.guidelines) if sentence in said), None)
    return OK if quoted is None else (Fault.LEAKED_INSTRUCTIONS, quoted)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")


@lru_cache(maxsize=4096)
def private_sentences(scenario: str, guidelines: str) -> tuple[str, ...]:
    """Sentences that only instructions contain, in plain form: those that address the customer as "you", and the guidelines' own.

    What the scenario puts in quotation marks is meant to be said, and is left out.
    """
    addressed = [text for text in _sentences(_QUOTED.sub("", scenario)) if text.startswith(("you ", "your ", "you're "))]
    told = [text for text in addressed if len(text.split()) >= MIN_SCENARIO_WORDS]
    return (*told, *(text for text in _sentences(guidelines) if len(text.split()) >= MIN_GUIDELINE_WORDS))


def _sentences(text: str) -> list[str]:
    return [plain for part in _SENTENCE_END.split(text) if (plain := _plain(part))]


def _plain(text: str) -> str:
    """Lower case, white space collapsed, without list marks, emphasis and the stop at the end."""
    return " ".join(text.lower().replace("*", "").split()).strip("-.!? ")


_ID = r"(?:user id|order (?:number|id)|reservation (?:number|id|code)|account number|zip ?code|date of birth)"
_AGENT = re.compile(
    r"\bhow (?:can|may) (?:i|we) (?:help|assist) you\b"
    r"|\bis there anything else (?:that )?(?:i|we) can (?:(?:help|assist) you|do for you)\b"
    r"|\bthank you for (?:calling|contacting|reaching out to) (?:us\b|our\b|customer (?:service|support))"
    r"|\A\W*thank you for (?:calling|contacting us)\s*[.!,]"
    r"|\bi(?:'d| would|'ll| will|'m| am) (?:be )?(?:happy|glad) to (?:help|assist) you with your\b"
    rf"|\b(?:please|could you|can you|may i have)[^.?!]{{0,40}} your (?:\w+ )?{_ID}\b"
    r"|\b(?:let me|i(?:'ll| will)) (?:look up|pull up|check|access) your (?:account|reservation|order|booking|profile)\b"
    r"|\bi(?:'ve| have) (?:successfully )?(?:cancell?ed|updated|processed|refunded|modified|exchanged|booked|issued) your\b"
    r"|\byou are being transferred to\b|\bi(?:'m| am|'ll| will)(?: now)? transfer(?:ring)? you\b"
    r"|\bi(?:'m| am) your (?:virtual |ai )?(?:customer (?:service|support) )?(?:agent|representative|assistant)\b",
    re.IGNORECASE,
)
_REPORTED = re.compile(
    r"\b(?:said|says?|saying|told|tells?|asked|asks?|asking|heard|hear|promised|read|wrote|e-?mail|message|recording|voicemail)\b",
    re.IGNORECASE,
)


def _role_flip(turn: Turn) -> Verdict:
    text = _QUOTED.sub("", turn.text)
    for match in _AGENT.finditer(text):
        sentence = re.split(r"[.?!\n]", text[: match.start()])[-1]
        if not _REPORTED.search(sentence):
            return Fault.ROLE_FLIP, match.group()
    return OK


_ASKS_PERMISSION = re.compile(
    r"\b(?:do you (?:confirm|agree|want (?:me|us) to)|please confirm|can you confirm|would you like (?:me|us) to|shall i|should i|may i"
    r"|(?:ready|okay|ok|like|want|wish) to proceed|proceed\b[^.?!]*\?|\(yes/no\)|yes or no)",
    re.IGNORECASE,
)
_GRANTS = re.compile(r"\b(?:yes|yeah|yep|sure|go ahead|please (?:do|proceed)|i confirm|confirmed|proceed)\b", re.IGNORECASE)
_REFUSES = re.compile(r"\b(?:no|not|don't|do not|never|instead|cancel that|stop)\b", re.IGNORECASE)
_DONE = re.compile(
    r"\b(?:resolved|working|fixed|anything else|everything (?:else )?(?:looks|is)|was|has been|have been|transfer)\b", re.IGNORECASE
)
_TRANSFER = re.compile(
    r"transfer|human|escalat|specialist|supervisor|representative|colleague|connect you|hold on|another (?:agent|department)", re.IGNORECASE
)


def _premature_stop(turn: Turn) -> Verdict:
    stop = stop_kind(turn.text)
    if stop is None:
        return OK
    if not any(message.role == "user" for message in turn.history):
        return Fault.PREMATURE_STOP, "a stop token in the user's first message"
    heard = [message.content or "" for message in turn.history if message.role == "assistant"]
    if stop == "transfer" and not any(_TRANSFER.search(text) for text in heard):
        return Fault.PREMATURE_STOP, "the agent has said nothing about a transfer"
    if stop == "stop" and turn.history[-1].role == "assistant" and _hangs_up_on_the_work(heard[-1], turn.text):
        return Fault.PREMATURE_STOP, "permission and a stop token in one message: the agent could not act on it"
    return OK


def _hangs_up_on_the_work(agent: str, user: str) -> bool:
    """Whether the agent waits for permission and the user gives it while hanging up, so that what was agreed is never done."""
    question = agent.strip().splitlines()[-1] if agent.strip() else ""
    answer = user.replace("###STOP###", "")
    waits = _ASKS_PERMISSION.search(question) and not _DONE.search(question)
    return bool(waits and _GRANTS.search(answer) and not _REFUSES.search(answer))
