"""Owns which task the next group takes where several datasets are mixed: pure functions of the shares, the seed and a counter.

The datasets take turns so evenly that at every moment each has had its share of the groups to within one group; nothing is drawn by lot.
Within a dataset the tasks come in shuffled epochs of its own.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from services.common.config.datasets import DatasetRef
from services.trainer.sampler import Task, TaskSet, epoch_index, seed_of


def turns(shares: Sequence[Fraction]) -> Iterator[int]:
    """Endlessly, which part comes next. ``shares`` are positive and sum to 1.

    After t turns part i has come t · shares[i] times, give or take 1 - 1 / (2n - 2) (Tijdeman, "The chairman assignment problem", 1980).
    So wherever t · shares are whole numbers, they are met exactly.
    """
    if len(shares) == 1:
        yield from itertools.repeat(0)
    slack = 1 - Fraction(1, 2 * len(shares) - 2)
    counts = [0] * len(shares)
    for turn in itertools.count(1):
        owed = [turn * share - count for share, count in zip(shares, counts, strict=True)]
        due = [i for i in range(len(shares)) if owed[i] >= 1 - slack]
        chosen = min(due, key=lambda i: (slack - owed[i]) / shares[i])
        counts[chosen] += 1
        yield chosen


class TaskMix:
    """The tasks of the training groups. The turns so far are remembered, because each depends on all before it."""

    def __init__(self, sets: Sequence[TaskSet], shares: Mapping[DatasetRef, Fraction], seed: int) -> None:
        self._sets = sets
        # A dataset by itself is shuffled by the experiment's seed; several of one length must not go through the same order.
        self._seeds = [seed if len(sets) == 1 else seed_of(seed, given.ref) for given in sets]
        self._turns = turns([shares[given.ref] for given in sets])
        self._taken: list[tuple[int, int]] = []
        """Per group: the index of its dataset, and how many groups that had had before."""
        self._counts = [0] * len(sets)

    def at(self, number: int) -> tuple[DatasetRef, Task]:
        """The task of the ``number``-th group (0-based)."""
        while len(self._taken) <= number:
            which = next(self._turns)
            self._taken.append((which, self._counts[which]))
            self._counts[which] += 1
        which, position = self._taken[number]
        chosen = self._sets[which]
        return chosen.ref, chosen.tasks[epoch_index(len(chosen.tasks), position, self._seeds[which])]
