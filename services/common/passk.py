"""Owns the figures of repeated trials: mean reward, pass^k and pass@k over tasks, each with a 95 % confidence interval. Pure functions.

Trials come as one sequence a task: the reward of each trial, or None where the trial failed. A failure is nobody's result: failed trials
are removed first, then tasks without a trial left, and k goes up to the smallest number of trials that a task has left.

The interval is over tasks, the independent draws here; the trials of one task are not. The primary method is the bootstrap over tasks
(percentiles, fixed seed: the same trials give the same interval), because it serves every figure and rewards between 0 and 1 alike.
Where each task contributes a plain 0 or 1 (single trials, pass^n of n trials) the figure is a proportion of tasks, for which the bootstrap
would claim certainty at 0 and 1; there it is Wilson's score interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Trials = Sequence[Sequence[float | None]]
Figure = Callable[[Sequence[float]], float]
"""The rewards of one task's trials -> what the task contributes."""

SUCCESS_TOLERANCE = 1e-6
RESAMPLES = 2000
Z_95 = 1.959963984540054
SEED = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def succeeded(reward: float) -> bool:
    """tau2's success: a reward of 1, give or take `SUCCESS_TOLERANCE`."""
    return abs(reward - 1.0) <= SUCCESS_TOLERANCE


def pass_hat_k(n: int, successes: int, k: int) -> float:
    """The chance that k fresh trials of a task all succeed, unbiased from n: C(s, k) / C(n, k) (tau-bench, arXiv 2406.12045).

    Raises ValueError where k is not in 1..n.
    """
    _check_k(n, k)
    return math.comb(successes, k) / math.comb(n, k)


def pass_at_k(n: int, successes: int, k: int) -> float:
    """The chance that at least one of k fresh trials succeeds, unbiased from n: 1 - C(n - s, k) / C(n, k) (arXiv 2107.03374).

    Raises ValueError where k is not in 1..n.
    """
    _check_k(n, k)
    return 1.0 - math.comb(n - successes, k) / math.comb(n, k)


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is outside 1..{n}, the number of trials")


def kept(trials: Trials) -> list[list[float]]:
    """The trials that did not fail, of the tasks that have any."""
    left = [[reward for reward in of_task if reward is not None] for of_task in trials]
    return [of_task for of_task in left if of_task]


def mean_reward(trials: Trials) -> Estimate:
    """Mean over tasks of the task's mean reward. Raises ValueError where every trial failed."""
    return _over_tasks(kept(trials), lambda rewards: sum(rewards) / len(rewards))


def pass_hat(trials: Trials) -> dict[int, Estimate]:
    """pass^k, mean over tasks, for every k that each task has trials for. Raises ValueError where every trial failed."""
    return _for_each_k(trials, pass_hat_k)


def pass_at(trials: Trials) -> dict[int, Estimate]:
    """pass@k, mean over tasks, for every k that each task has trials for. Raises ValueError where every trial failed."""
    return _for_each_k(trials, pass_at_k)


def _for_each_k(trials: Trials, formula: Callable[[int, int, int], float]) -> dict[int, Estimate]:
    left = kept(trials)

    def figure(k: int) -> Figure:
        return lambda rewards: formula(len(rewards), sum(map(succeeded, rewards)), k)

    return {k: _over_tasks(left, figure(k)) for k in range(1, min(map(len, left), default=1) + 1)}


def _over_tasks(trials: Sequence[Sequence[float]], figure: Figure) -> Estimate:
    if not trials:
        raise ValueError("trials: every one of them failed, so there is no figure")
    values = [figure(rewards) for rewards in trials]
    mean = sum(values) / len(values)
    if all(value in (0.0, 1.0) for value in values):
        low, high = wilson(round(sum(values)), len(values))
    else:
        low, high = bootstrap(values)
    return Estimate(mean, min(low, mean), max(high, mean))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927): honest for few trials and at 0 and 1, where others have no width."""
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean, from `RESAMPLES` resamples of ``values`` with a fixed seed (Efron 1979)."""
    given = np.asarray(values, float)
    draws = np.random.default_rng(SEED).integers(len(given), size=(RESAMPLES, len(given)), dtype=np.int32)
    low, high = np.quantile(given[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def combine(parts: Sequence[tuple[float, Estimate]]) -> Estimate:
    """The weighted sum of independent estimates, (weight, estimate) each.

    The interval is recovered from those of the parts (MOVER, Zou and Donner 2008): the distances to the lower ends, weighted, add up in
    squares, and those to the upper ends do.
    """
    value = sum(weight * part.value for weight, part in parts)
    below = math.hypot(*(weight * (part.value - part.low) for weight, part in parts))
    above = math.hypot(*(weight * (part.high - part.value) for weight, part in parts))
    return Estimate(value, value - below, value + above)
