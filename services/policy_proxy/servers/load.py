"""Owns how many calls a policy server is given at a time: its own load figures, and a limit that follows them.

Additive increase, multiplicative decrease (Chiu and Jain 1989): a limit that is reached while nothing waits at the server grows by a
few calls a report; requests waiting there, or a key-value cache that is nearly full, shrink it. Refuses to go below one call.
"""

from dataclasses import dataclass
from typing import Any, cast

Json = dict[str, Any]

INITIAL_LIMIT = 64
INCREASE = 16
"""Calls a report; one report a second."""
DECREASE = 0.75
REFUSED_DECREASE = 0.5
"""After a server has refused a request because it has too many."""
NEARLY_REACHED = 0.8
"""A limit that is not used is not raised: nothing would be learnt."""
QUEUED_SHARE = 0.25
QUEUED_FREE = 4
"""Requests that may wait at a server, as a share of those running and as a number: they hide the round trip."""
FULL_CACHE = 0.97
"""Share of the key-value cache above which SGLang begins to retract requests."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What a server reports: requests running and waiting (of all clients), and the share of its key-value cache in use."""

    running: int
    queued: int
    token_usage: float

    @property
    def congested(self) -> bool:
        """Whether more requests would only wait there."""
        return self.queued > max(QUEUED_FREE, QUEUED_SHARE * self.running) or self.token_usage > FULL_CACHE


def read_loads(answer: Json) -> LoadFigures:
    """``GET /v1/loads``: one entry a data-parallel rank. Raises ValueError where the fields are not there."""
    loads: Any = answer.get("loads")
    if not isinstance(loads, list) or not loads:
        raise ValueError("loads: a list with an entry is needed")
    ranks = [cast("Json", rank) for rank in cast("list[Any]", loads) if isinstance(rank, dict)]
    try:
        running = sum(int(rank["num_running_reqs"]) for rank in ranks)
        queued = sum(int(rank["num_waiting_reqs"]) for rank in ranks)
        usage = max((float(rank.get("token_usage", 0.0)) for rank in ranks), default=0.0)
    except (KeyError, TypeError) as error:
        raise ValueError(f"loads: {error!r}") from error
    return LoadFigures(running, queued, usage)


class ConcurrencyLimit:
    """How many of our calls one server may have in flight."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = float(min(INITIAL_LIMIT, ceiling))
        self.others = 0
        """Requests of other clients there, as of the last report."""
        self.figures: LoadFigures | None = None

    @property
    def value(self) -> int:
        """Calls, at least 1."""
        return max(1, int(self._limit))

    def report(self, figures: LoadFigures, in_flight: int) -> None:
        """Takes a report; ``in_flight`` are our own calls there at that moment."""
        self.figures = figures
        self.others = max(0, figures.running + figures.queued - in_flight)
        if figures.congested:
            self._limit = max(1.0, min(self._limit, max(in_flight, 1)) * DECREASE)
        elif in_flight >= NEARLY_REACHED * self._limit:
            self._limit = min(self._limit + INCREASE, self._ceiling)

    def unreported(self, in_flight: int) -> None:
        """A server without load figures: the limit grows with use and only refusals shrink it."""
        if in_flight >= NEARLY_REACHED * self._limit:
            self._limit = min(self._limit + INCREASE, self._ceiling)

    def refused(self) -> None:
        """The server has refused a request for want of room."""
        self._limit = max(1.0, self._limit * REFUSED_DECREASE)
