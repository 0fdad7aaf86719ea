"""Owns the states of the wrapped model server and the rule when it is started again. Pure: no clock, no process."""

from dataclasses import dataclass
from enum import StrEnum

from services.common.transitions import following


class State(StrEnum):
    """Where the wrapped server stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    """The process runs and is not ready yet; a large model loads for minutes."""
    READY = "ready"
    BACKING_OFF = "backing_off"
    """It died, and the next start waits."""
    GIVEN_UP = "given_up"
    """It died too often in a row."""


class Event(StrEnum):
    """What happens to the wrapped server."""

    START = "start"
    ANSWERED = "answered"
    DIED = "died"
    EXHAUSTED = "exhausted"
    STOP = "stop"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.STARTING, Event.ANSWERED): State.READY,
    (State.STARTING, Event.DIED): State.BACKING_OFF,
    (State.READY, Event.DIED): State.BACKING_OFF,
    (State.BACKING_OFF, Event.START): State.STARTING,
    (State.BACKING_OFF, Event.EXHAUSTED): State.GIVEN_UP,
    (State.STOPPED, Event.STOP): State.STOPPED,
    (State.STARTING, Event.STOP): State.STOPPED,
    (State.READY, Event.STOP): State.STOPPED,
    (State.BACKING_OFF, Event.STOP): State.STOPPED,
    (State.GIVEN_UP, Event.STOP): State.STOPPED,
}


def advance(state: State, event: Event) -> State:
    """The state after ``event``. Raises `transitions.IllegalTransition` for a pair that is not in the table."""
    return following(TRANSITIONS, state, event)


@dataclass(slots=True)
class Restarts:
    """Counts deaths in a row. Seconds."""

    limit: int
    backoff_s: float
    backoff_max_s: float
    reset_after_s: float
    in_a_row: int = 0
    total: int = 0

    def after_death(self, lived_s: float) -> float | None:
        """How long to wait before the next start, None to give up. ``backoff_s``, doubled with each death in a row, up to the maximum."""
        if lived_s >= self.reset_after_s:
            self.in_a_row = 0
        if self.in_a_row >= self.limit:
            return None
        self.in_a_row += 1
        self.total += 1
        return min(self.backoff_s * 2.0 ** (self.in_a_row - 1), self.backoff_max_s)
