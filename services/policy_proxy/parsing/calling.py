"""Owns telling tool calls from text in an answer that comes in pieces, whatever the format.

Content streams until a tag begins. From there on all text is kept, and read at the end: only then is it known whether every call can be
read, and if one cannot, none is made and the whole answer is text. Refuses to guess at half a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from services.common.transitions import following
from services.policy_proxy.parsing.parts import Json, ToolCall
from services.policy_proxy.parsing.tags import find_first, settled

MAX_REASON = 300
"""Characters of a reason that are kept."""


class Malformed(Exception):
    """A tool call that cannot be read. Never leaves this package."""

    def __init__(self, what: str, at: int, number: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at
        """The character of the text given to `ToolCallFormat.read` where it went wrong."""
        self.number = number
        """Which call of the answer, from 1."""


class Calls(msgspec.Struct, frozen=True):
    """What was read from text that begins with a tag."""

    calls: tuple[ToolCall, ...]
    trailing: str = ""
    """Text after the calls, in formats where it is part of what was said."""


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """How a family of models writes calls."""

    openers: tuple[str, ...]
    """The tags that calls begin with."""
    shape: str
    """What a call should look like, for the policy to read."""
    read: Callable[[str, Sequence[Json]], Calls | None]
    """(text that begins with an opener, tool schemas) -> its calls; None where it turns out to be plain text. Raises `Malformed`."""
    bare: str = ""
    """A character that calls begin with where it is the very first of the answer, without any tag."""


class Outcome(msgspec.Struct, frozen=True):
    """The end of an answer: ``content`` comes after all that was released before."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    problem: str = ""


class State(StrEnum):
    """Where in the answer the reader stands."""

    START = "start"
    TEXT = "text"
    CALLS = "calls"


class Event(StrEnum):
    """What was found at the front of the text not yet read."""

    BARE_CALL = "bare_call"
    WORDS = "words"
    TAG = "tag"


TRANSITIONS = {
    (State.START, Event.BARE_CALL): State.CALLS,
    (State.START, Event.WORDS): State.TEXT,
    (State.TEXT, Event.TAG): State.CALLS,
}


class CallReader:
    """Reads one answer, its reasoning already taken off."""

    def __init__(self, form: ToolCallFormat, tools: Sequence[Json]) -> None:
        self._format = form
        self._tools = tools
        self._state = State.START
        self._unread = ""
        self._released = 0
        self._kept: list[str] = []

    def feed(self, text: str) -> str:
        """Reads on; what is returned is content for certain."""
        self._unread += text
        content: list[str] = []
        while (event := self._step(content)) is not None:
            self._state = following(TRANSITIONS, self._state, event)
        return "".join(content)

    def finish(self) -> Outcome:
        """What was still held back, read as calls where a tag had begun."""
        text = "".join(self._kept) + self._unread
        if self._state is not State.CALLS:
            return Outcome(text)
        body = text.lstrip()
        try:
            read = self._format.read(body, self._tools)
        except Malformed as wrong:
            return Outcome(text, problem=self._problem(wrong, self._released + len(text) - len(body)))
        if read is None:
            return Outcome(text)
        gap = " " if read.trailing and self._released else ""
        return Outcome(gap + read.trailing, read.calls)

    def _step(self, content: list[str]) -> Event | None:
        match self._state:
            case State.START:
                if not self._unread:
                    return None
                return Event.BARE_CALL if self._unread[0] == self._format.bare else Event.WORDS
            case State.TEXT:
                at = find_first(self._unread, self._format.openers)
                release = settled(self._unread, self._format.openers) if at < 0 else len(self._unread[:at].rstrip())
                content.append(self._unread[:release])
                self._released += release
                self._unread = self._unread[release:]
                return None if at < 0 else Event.TAG
            case State.CALLS:
                self._kept.append(self._unread)
                self._unread = ""
                return None

    def _problem(self, wrong: Malformed, offset: int) -> str:
        return f"tool call {wrong.number}, at character {offset + wrong.at}: {printable(wrong.what)}. Expected: {self._format.shape}"


def printable(what: str) -> str:
    """A reason that may hold words of the policy, cut to a readable length and safe to be written in UTF-8."""
    return what[:MAX_REASON].encode(errors="backslashreplace").decode()
