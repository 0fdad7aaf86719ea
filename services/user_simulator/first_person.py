"""Owns turning what a scenario tells its customer ("You want your money back") into what the customer says ("I want my money back").

Rules of English for the second person as tau2's tasks use it. Refuses style: the words stay those of the scenario. What is in quotation
marks is somebody's speech already and is left alone.
"""

import re

_QUOTED = re.compile(r"(\"[^\"]*\"|“[^”]*”)")

_OBJECT_AFTER = (
    "to|for|with|of|from|by|at|about|around|against|without|behind|give|gives|gave|tell|tells|told|ask|asks|asked|let|lets|make|makes|made|help|helps"
    "|helped|charge|charges|charged|offer|offers|offered|send|sends|sent|show|shows|showed|owe|owes|owed|contact|contacts|contacted|call|calls"
    "|called|refund|refunds|allow|allows|allowed|want|wants|wanted|cause|causes|caused|need|needs|transfer|transfers|transferred|connect|connects"
    "|inform|informs|informed|notify|reimburse|compensate|assist|assists|provide|provides|thank|reassures?|refuses?|passes|pass"
)
_FINITE = "are|were|have|had|will|would|can|could|do|did|want|wanted|need|needed|know|think|live|also|just|only|should|must|prefer|like"

_RULES: tuple[tuple[str, str], ...] = (
    # tau2's own slips: "You name is …", "You mobile data is …".
    (r"\byou (?=(?:name|mobile data|mobile|reservation|user id|email|phone) )", "my "),
    (r"\byou are\b", "I am"),
    (r"\byou['’]re\b", "I'm"),
    (r"\byou aren['’]t\b", "I'm not"),
    (r"\byou were\b", "I was"),
    (r"\byou weren['’]t\b", "I wasn't"),
    (r"\bare you\b", "am I"),
    (r"\bwere you\b", "was I"),
    (r"\byourself\b", "myself"),
    (r"\byours\b", "mine"),
    (r"\byour\b", "my"),
    (rf"\b({_OBJECT_AFTER}) you\b(?! (?:{_FINITE})\b)(?!['’])", r"\1 me"),
    (r"\byou\b(?=\s*[.,;:!?)]|\s*$)", "me"),
    (r"\byou\b", "I"),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _RULES)


def first_person(text: str) -> str:
    """``text`` as its "you" would say it; a sentence that began with a capital still does."""
    return "".join(part if number % 2 else _turned(part) for number, part in enumerate(_QUOTED.split(text)))


def _turned(text: str) -> str:
    for pattern, replacement in _COMPILED:
        text = pattern.sub(lambda match, replacement=replacement: _like(match[0], match.expand(replacement)), text)
    return text


def _like(written: str, replaced: str) -> str:
    return replaced[0].upper() + replaced[1:] if written[0].isupper() else replaced
