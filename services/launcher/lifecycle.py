"""Owns the states of a supervised process and the rule when it is started again. Pure: no clock, no process."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.transitions import following


class State(StrEnum):
    """Where a supervised process stands."""

    STOPPED = "stopped"
    """Not started yet, or stopped for good."""
    STARTING = "starting"
    """The process runs and has not answered yet."""
    HEALTHY = "healthy"
    DEAD = "dead"
    """The process is gone and nobody asked for it."""
    RESTARTING = "restarting"
    """Waits out its back-off."""


class Event(StrEnum):
    """What happens to a supervised process."""

    SPAWNED = "spawned"
    ANSWERED = "answered"
    EXITED = "exited"
    RETRY = "retry"
    GAVE_UP = "gave_up"
    STOP = "stop"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.SPAWNED): State.STARTING,
    (State.STARTING, Event.ANSWERED): State.HEALTHY,
    (State.STARTING, Event.EXITED): State.DEAD,
    (State.HEALTHY, Event.EXITED): State.DEAD,
    (State.DEAD, Event.RETRY): State.RESTARTING,
    (State.DEAD, Event.GAVE_UP): State.STOPPED,
    (State.RESTARTING, Event.SPAWNED): State.STARTING,
    (State.STOPPED, Event.STOP): State.STOPPED,
    (State.STARTING, Event.STOP): State.STOPPED,
    (State.HEALTHY, Event.STOP): State.STOPPED,
    (State.DEAD, Event.STOP): State.STOPPED,
    (State.RESTARTING, Event.STOP): State.STOPPED,
}


def advance(state: State, event: Event) -> State:
    """The state after ``event``. Raises `transitions.IllegalTransition` for a pair that is not in the table."""
    return following(TRANSITIONS, state, event)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a dead process again, and when to stop trying. Seconds."""

    first_delay_s: float = 0.2
    max_delay_s: float = 5.0
    window_s: float = 120.0
    """Deaths longer ago than this are forgiven."""
    limit: int = 10
    """Deaths within the window after which it is given up."""
    start_limit: int = 2
    """The same for a process that has never been healthy: what fails at once on a fresh start mostly fails for good."""


@dataclass(slots=True)
class Deaths:
    """The recent deaths of one process."""

    policy: RestartPolicy = RestartPolicy()
    times: deque[float] = field(default_factory=deque[float])

    def record(self, now: float, *, was_healthy: bool) -> float | None:
        """Counts a death at ``now`` (seconds, any monotonic clock). Returns the back-off before the next start, None to give up.

        The back-off doubles with each death in the window, from ``first_delay_s`` up to ``max_delay_s``.
        """
        self.times.append(now)
        while self.times and self.times[0] < now - self.policy.window_s:
            self.times.popleft()
        limit = self.policy.limit if was_healthy else self.policy.start_limit
        if len(self.times) >= limit:
            return None
        return min(self.policy.first_delay_s * 2.0 ** (len(self.times) - 1), self.policy.max_delay_s)
