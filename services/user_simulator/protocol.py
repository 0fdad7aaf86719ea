"""Owns what ends a conversation: upstream tau2's three stop tokens. Pure text in, kind out."""

import re
from typing import Literal

StopKind = Literal["stop", "transfer", "out_of_scope"]

STOP_TOKENS: dict[str, StopKind] = {"###STOP###": "stop", "###TRANSFER###": "transfer", "###OUT-OF-SCOPE###": "out_of_scope"}

_ALMOST = re.compile(r"#{2,}\s*(stop|transfer|out[-_ ]of[-_ ]scope)\b", re.IGNORECASE)


def stop_kind(content: str | None) -> StopKind | None:
    """Which stop token the text contains, anywhere in it; the first of the table where there are several."""
    return next((kind for token, kind in STOP_TOKENS.items() if token in (content or "")), None)


def mistyped_stop(content: str) -> str | None:
    """What looks like a stop token and is none, such as ``##STOP##``; None where the text has a right one."""
    match = None if stop_kind(content) else _ALMOST.search(content)
    return match.group() if match else None
