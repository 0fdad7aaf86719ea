"""Owns telling reasoning from answer in text that comes in pieces. Tags and starting points per parser name are in `registry`.

Reasoning is what stands before the closing tag, if the answer begins with the opening tag or the prompt ended with it. Refuses to find
reasoning that begins in the middle of an answer: what was already streamed as content cannot become reasoning afterwards.
White space beside a tag is layout and belongs to neither part.
"""

from dataclasses import dataclass
from enum import StrEnum

from services.common.transitions import following
from services.policy_proxy.parsing.tags import find_first, settled

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a family of models marks its reasoning."""

    opens: str = THINK_OPEN
    closes: str = THINK_CLOSE
    call_tag: str = ""
    """A tag that ends reasoning which is never closed: some models go straight from thinking to calling."""
    always: bool = False
    """Whether every answer begins inside reasoning, because the prompt opened it."""


class State(StrEnum):
    """Where in the answer the reader stands."""

    UNDECIDED = "undecided"
    OPENED = "opened"
    MARGIN = "margin"
    REASONING = "reasoning"
    CALL_OR_REASONING = "call_or_reasoning"
    """A call tag came inside the reasoning: the end of the answer, or a closing tag, says which of the two it was."""
    GAP = "gap"
    ANSWER = "answer"


class Event(StrEnum):
    """What was found at the front of the text not yet read."""

    OPENING_TAG = "opening_tag"
    CLOSING_TAG = "closing_tag"
    CALL_TAG = "call_tag"
    WORDS = "words"


TRANSITIONS = {
    (State.UNDECIDED, Event.OPENING_TAG): State.OPENED,
    (State.UNDECIDED, Event.WORDS): State.ANSWER,
    (State.OPENED, Event.OPENING_TAG): State.OPENED,
    (State.OPENED, Event.WORDS): State.MARGIN,
    (State.MARGIN, Event.WORDS): State.REASONING,
    (State.REASONING, Event.CLOSING_TAG): State.GAP,
    (State.REASONING, Event.CALL_TAG): State.CALL_OR_REASONING,
    (State.CALL_OR_REASONING, Event.CLOSING_TAG): State.GAP,
    (State.GAP, Event.WORDS): State.ANSWER,
}


class ThinkReader:
    """Splits one answer. What `feed` and `finish` return is (more reasoning, more answer)."""

    def __init__(self, thinking: Thinking | None, *, in_reasoning: bool) -> None:
        self._thinking = thinking or Thinking()
        self._inner_tags = [tag for tag in (self._thinking.closes, self._thinking.call_tag) if tag]
        self._unread = ""
        self._scanned = 0
        self._reasoning: list[str] = []
        if thinking is None:
            self._state = State.ANSWER
        elif in_reasoning or thinking.always:
            self._state = State.OPENED
        else:
            self._state = State.UNDECIDED
        self._marked = self._state is State.OPENED
        self._steps = {
            State.UNDECIDED: self._decide,
            State.OPENED: self._skip_tags,
            State.MARGIN: self._skip_space,
            State.REASONING: self._reason,
            State.CALL_OR_REASONING: self._wait_for_close,
            State.GAP: self._skip_space,
        }

    @property
    def marked(self) -> bool:
        """Whether anything was marked as reasoning, even if it was empty."""
        return self._marked

    def feed(self, text: str) -> tuple[str, str]:
        """Reads on."""
        self._unread += text
        while self._state is not State.ANSWER and (event := self._steps[self._state]()) is not None:
            self._state = following(TRANSITIONS, self._state, event)
        answer = ""
        if self._state is State.ANSWER:
            answer, self._unread = self._unread, ""
        return self._take_reasoning(), answer

    def finish(self) -> tuple[str, str]:
        """What was still held back, now that nothing follows."""
        rest, self._unread = self._unread, ""
        match self._state:
            case State.CALL_OR_REASONING:
                return "", rest.lstrip()
            case State.OPENED | State.MARGIN | State.REASONING:
                # White space held back in REASONING would have led up to more words, and there are none.
                return (rest.strip() if self._state is not State.REASONING else rest.rstrip()), ""
            case State.UNDECIDED | State.GAP | State.ANSWER:
                return "", rest

    def _take_reasoning(self) -> str:
        taken = "".join(self._reasoning)
        self._reasoning.clear()
        return taken

    def _decide(self) -> Event | None:
        opens, text = self._thinking.opens, self._unread.lstrip()
        if text.startswith(opens):
            self._unread = text[len(opens) :]
            self._marked = True
            return Event.OPENING_TAG
        return None if opens.startswith(text) else Event.WORDS

    def _skip_tags(self) -> Event | None:
        opens = self._thinking.opens
        if self._unread.startswith(opens):
            self._unread = self._unread[len(opens) :]
            return Event.OPENING_TAG
        return None if opens.startswith(self._unread) else Event.WORDS

    def _skip_space(self) -> Event | None:
        self._unread = self._unread.lstrip()
        return Event.WORDS if self._unread else None

    def _reason(self) -> Event | None:
        at = find_first(self._unread, self._inner_tags)
        if at < 0:
            self._release(settled(self._unread, self._inner_tags))
            return None
        closes = self._thinking.closes
        if not self._unread.startswith(closes, at):
            self._release(len(self._unread[:at].rstrip()))
            self._scanned = 0
            return Event.CALL_TAG
        return self._close(at)

    def _wait_for_close(self) -> Event | None:
        closes = self._thinking.closes
        at = self._unread.find(closes, self._scanned)
        if at < 0:
            self._scanned = max(0, len(self._unread) - len(closes) + 1)
            return None
        return self._close(at)

    def _close(self, at: int) -> Event:
        self._reasoning.append(self._unread[:at].rstrip())
        self._unread = self._unread[at + len(self._thinking.closes) :]
        return Event.CLOSING_TAG

    def _release(self, length: int) -> None:
        self._reasoning.append(self._unread[:length])
        self._unread = self._unread[length:]
