"""Owns what the scripted user knows: a scenario's prose cut into things to say, each in the customer's own words.

tau2 writes scenarios in two ways: fields (airline, retail, telecom) and one piece of markdown with lines to say in quotation marks
(banking_knowledge) or plain prose (mock). Both become one `Script`. Refuses stage directions: how to behave is not said aloud.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from services.common.wire.users import Scenario
from services.user_simulator.first_person import first_person

DEFAULT_OPENING = "Hi, I need help."


@dataclass(frozen=True, slots=True)
class Line:
    """Something the user can say. ``cue`` is what the scenario says about when."""

    text: str
    cue: str = ""


@dataclass(frozen=True, slots=True)
class Errand:
    """A tool that the scenario has the user run without being asked. ``values`` are the quoted words beside it."""

    tool: str
    first: bool
    """Before the user's first message; otherwise when the agent is done."""
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """A scenario as things to say."""

    opening: str
    facts: tuple[Line, ...]
    """Who the user is."""
    unknown: tuple[Line, ...]
    """What the user does not know."""
    lines: tuple[Line, ...]
    """Wishes and conditions, said when the agent asks about them."""


def script_of(scenario: Scenario) -> Script:
    """The script of a scenario."""
    if scenario.reason_for_call or not scenario.task_instructions:
        return _from_fields(scenario.reason_for_call, scenario.known_info, scenario.unknown_info, scenario.task_instructions)
    return _from_prose(scenario.task_instructions)


# Cached, because a scenario is the same in each turn of its conversations.
@lru_cache(maxsize=4096)
def _from_fields(reason_for_call: str, known_info: str, unknown_info: str, task_instructions: str) -> Script:
    reason = [text for text in sentences(reason_for_call) if not _is_direction(text)]
    wishes = [text for text in sentences(task_instructions) if not _is_direction(text) and not _is_manner(text)]
    return Script(
        opening=_spoken(reason) or DEFAULT_OPENING,
        facts=_lines(sentences(known_info)),
        unknown=_lines(sentences(unknown_info)),
        lines=_lines([*reason, *wishes]),
    )


@lru_cache(maxsize=4096)
def _from_prose(text: str) -> Script:
    quoted = _quoted_lines(text)
    cued = [line for line in quoted if _OPENING_CUE.search(line.cue)]
    parts = sentences(_TELL.sub("You", _STOP.sub("", _QUOTE.sub("\n", text))))
    told = [part for part in parts if not _is_direction(part) and _WHOLE.search(part)]
    wishes = [part for part in told if not _is_fact(part) and _OWN.search(part)]
    begun = next((match[1] for part in parts if (match := _START.search(part))), None)
    asked = _spoken([begun] if begun else _requests(wishes))
    opening = cued[0].text if cued else asked or (quoted[0].text if quoted else DEFAULT_OPENING)
    return Script(
        opening=opening,
        facts=_lines(part for part in told if _is_fact(part)),
        unknown=_lines(part for part in told if _UNKNOWN.search(part)),
        lines=(*(line for line in quoted if line.text != opening), *_lines(wishes)),
    )


_TELL = re.compile(r"\btell the agent (?:that )?you\b", re.IGNORECASE)
_START = re.compile(r"^start by (?:saying|mentioning) (?:that )?(you\b.*)", re.IGNORECASE)
_QUOTE = re.compile(r"\"([^\"]{3,})\"|“([^”]{3,})”")
_STOP = re.compile(r"###[A-Z-]+###")
_OPENING_CUE = re.compile(r"\b(?:opening|start naturally|start by|begin by|say hello)\b", re.IGNORECASE)
MIN_QUOTED_WORDS = 4
"""Shorter quotations are names, not lines to say."""


def _quoted_lines(text: str) -> list[Line]:
    lines: list[Line] = []
    for match in _QUOTE.finditer(text):
        said = " ".join(_STOP.sub("", match[1] or match[2]).split())
        before = text[: match.start()].rsplit("\n", 1)[-1]
        if len(said.split()) >= MIN_QUOTED_WORDS and "the agent" not in said and not _NEVER_SAID.search(before):
            lines.append(Line(said, _clean(before)))
    return lines


_NEVER_SAID = re.compile(r"\b(?:never|don't|do not|not)\b[^.]*$", re.IGNORECASE)
_SPLIT = re.compile(r"(?<=[.!?])\s+(?=[\"“(]?[A-Z*])|\n+|\s\|\s")
_MARKS = re.compile(r"\*\*|^\s*(?:[-•]|\d+\.|#+)\s*|\((?=[^)]*\b(?:mention|reveal|provide|look up|upfront)\b)[^)]*\)", re.MULTILINE)


def sentences(text: str) -> list[str]:
    """``text`` in sentences and list items, without markdown and without what is not for the agent's ears."""
    return [cleaned for part in _SPLIT.split(text) if re.search(r"\w", cleaned := _clean(part))]


_CONDITION = re.compile(r"(?<=\w)[,;]? (?:but |and |and only |or )?(?:if|when|only if|even if) (?:the )?agents?\b.*", re.IGNORECASE)
"""What the user does if the agent does something is not for the agent's ears; the sentence before it is, if it is one."""
MIN_CUT_WORDS = 4


def _clean(text: str) -> str:
    text = " ".join(_MARKS.sub("", text).split())
    cut = _CONDITION.sub("", text)
    if cut != text and len(cut.split()) < MIN_CUT_WORDS:
        return ""
    return re.sub(r" +([.,;])", r"\1", cut)


_DIRECTION = re.compile(
    r"\bagents? (?:asks?|says?|insists?|tells?|offers?|refuses?|confirms?|explains?)\b|\bcustomer service rep|\bmention|\breveal"
    r"|\b(?:conversation|discussion|scenario|instructions?|tools?|role|responses?|make up|pretend|volunteer|make sure|be sure|guidelines)\b"
    r"|\bunder no circumstances\b|\bdo not bring\b|\bCRITICAL\b|\byour (?:first )?(?:reply|replies|message)\b"
    r"|^(?:if|when|once|after|before|only|always|never|don't|do not|be|provide|use|act|insist|explain|start|just deflect|note|report|say)\b"
    r"|^(?:then (?:submit|attempt)|call|accept|simply|let|push|important|default to|real customers?|a real customer)\b",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r"^you(?:r)? (?:are|speak|talk|tend|have a)\b(?! (?:to |willing|fine|happy|ok|okay|looking|also looking|trying|flexible with))"
    r"|^you (?:like|prefer) to (?:talk|say|speak|do|be)\b",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"^[A-Z].*\w+\W+\w+\W+\w.*[^:]$")
"""Of prose, only what stands on its own: no headings and no halves of sentences that a quotation was cut from."""
_OWN = re.compile(r"\byou(?:r|['’]\w+)?\b|^(?:create|update|request|then, request|mark|delete|add)\b", re.IGNORECASE)
"""Of prose, only what is about the customer or asks for something."""
_FACT = re.compile(
    r"\bname\b|\buser[ _]?id\b|\be-?mail\b|@\w|\bphone\b|\bdate of birth\b|\bDOB\b|\baddress\b|\bzip\b|\bincome\b|\bborn\b|\d{3}-\d{3,4}"
    r"|^(?:your character:? )?you are (?-i:[A-Z])|^your character\b|\bsubscription\b",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(r"\b(?:do not|don't|can't|cannot) (?:know|remember|recall|have)\b", re.IGNORECASE)


def _is_direction(text: str) -> bool:
    return bool(_DIRECTION.search(text))


def _is_manner(text: str) -> bool:
    return bool(_MANNER.search(text))


def _is_fact(text: str) -> bool:
    return bool(_FACT.search(text)) and not _UNKNOWN.search(text)


_WISH = re.compile(
    r"\b(?:want|need|looking for|would like|goal is|are calling|completed|now)\b|^(?:create|update|request|mark|delete|add)\b",
    re.IGNORECASE,
)


def _requests(parts: list[str]) -> list[str]:
    """The sentences that say what the user is after; the first ones where none does."""
    return [part for part in parts if _WISH.search(part)][:3] or parts[:2]


_ERRAND = re.compile(r"^(?P<first>first,? )?(?:after|once|when)?(?P<when>[^.]*?),? ?\buse (?:the )?`?(?P<tool>\w+)", re.IGNORECASE)
_VALUE = re.compile(r"'([^']+)'")


@lru_cache(maxsize=4096)
def errands_of(instructions: str, tools: frozenset[str]) -> tuple[Errand, ...]:
    """The tools that plain instructions have the user "use" by itself, in their order."""
    found: list[Errand] = []
    for part in sentences(instructions):
        match = _ERRAND.search(part)
        if match and match["tool"] in tools and (match["first"] or match["when"]):
            found.append(Errand(match["tool"], bool(match["first"]), tuple(_VALUE.findall(part))))
    return tuple(found)


_ORDERS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^((?:then|first|now),? )?request\b", re.IGNORECASE), r"\1I request"),
    (re.compile(r"^(create|update|mark|delete|add)\b", re.IGNORECASE), lambda match: f"Please {match[0].lower()}"),
    (re.compile(r"^your character(?: is|:)(?: you are)?", re.IGNORECASE), "You are"),
    (re.compile(r"^your (?:situation|goal):\s*", re.IGNORECASE), ""),
    (re.compile(r"^you will see that ", re.IGNORECASE), ""),
    (re.compile(r"\b(?:you )?ask (?:them|the agent) to\b", re.IGNORECASE), "please"),
    (re.compile(r"\b(?:you )?ask the agent for\b", re.IGNORECASE), "please give you"),
    (
        re.compile(r"\b(?:you (?:first |then )?)?ask (?:the agent )?(?=(?:if|whether|about|how|what|which|when|why)\b)", re.IGNORECASE),
        "you want to know ",
    ),
)
_TO_THE_AGENT = (
    (re.compile(r"\bthe agent is\b", re.IGNORECASE), "you are"),
    (re.compile(r"\bthe agent has\b", re.IGNORECASE), "you have"),
    (re.compile(r"\bthe agent (ask|give|help|need|offer|provide|recommend|say|show|suggest|want)s\b", re.IGNORECASE), r"you \1"),
    (re.compile(r"\bthe agent['’]s\b", re.IGNORECASE), "your"),
    (re.compile(r"\bthe agent\b", re.IGNORECASE), "you"),
)
"""Put after the first person: whom the scenario calls the agent is "you" for its customer."""


def _said(part: str) -> str:
    for pattern, replacement in _ORDERS:
        part = pattern.sub(replacement, part)
    said = first_person(part)
    for pattern, replacement in _TO_THE_AGENT:
        said = pattern.sub(replacement, said)
    return said[:1].upper() + said[1:]


def _spoken(parts: Iterable[str]) -> str:
    return " ".join(_ended(_said(part)) for part in parts)


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text.rstrip(',;: ')}."


def _lines(parts: Iterable[str]) -> tuple[Line, ...]:
    return tuple(Line(_ended(_said(part)), part) for part in parts)
