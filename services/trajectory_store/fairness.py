"""Owns how the free capacity of a worker is shared between trials. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What one trial wants."""

    trial: str
    queued: int
    """Episodes that could be leased now."""
    running: int


def shares(demands: Sequence[Demand], limit: int) -> dict[str, int]:
    """Episodes to lease from each trial: max-min fairness over running episodes.

    Each of ``limit`` places goes to the trial that has the fewest running, ties in the given order. Trials with nothing queued get none.
    """
    given = dict.fromkeys((demand.trial for demand in demands), 0)
    for _ in range(limit):
        hungry = [demand for demand in demands if demand.queued > given[demand.trial]]
        if not hungry:
            break
        poorest = min(hungry, key=lambda demand: demand.running + given[demand.trial])
        given[poorest.trial] += 1
    return {trial: count for trial, count in given.items() if count}
