"""The figures of repeated trials, against brute force, against known values, and their intervals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.passk import (
    Estimate,
    bootstrap,
    combine,
    kept,
    mean_reward,
    pass_at,
    pass_at_k,
    pass_hat,
    pass_hat_k,
    succeeded,
    wilson,
)

rewards = st.sampled_from([0.0, 1.0, 0.5, None])
trials = st.lists(st.lists(rewards, min_size=1, max_size=5), min_size=1, max_size=5)
some_trials = trials.filter(lambda given: any(reward is not None for of_task in given for reward in of_task))
calm = settings(max_examples=60, deadline=None)


def draws(of_task: list[float], k: int) -> list[tuple[bool, ...]]:
    """Every way to draw k of a task's trials, as successes."""
    return list(itertools.combinations([reward == 1.0 for reward in of_task], k))


@calm
@given(some_trials)
def test_pass_hat_and_pass_at_are_the_means_over_all_draws_of_k_trials(given_trials: list[list[float | None]]) -> None:
    left = kept(given_trials)
    hats, ats = pass_hat(given_trials), pass_at(given_trials)
    assert list(hats) == list(ats) == list(range(1, min(map(len, left)) + 1))
    for k in hats:
        all_of = [sum(map(all, draws(of_task, k))) / len(draws(of_task, k)) for of_task in left]
        any_of = [sum(map(any, draws(of_task, k))) / len(draws(of_task, k)) for of_task in left]
        assert hats[k].value == pytest.approx(sum(all_of) / len(left))
        assert ats[k].value == pytest.approx(sum(any_of) / len(left))


@calm
@given(some_trials)
def test_every_interval_holds_its_figure_and_stays_within_0_and_1(given_trials: list[list[float | None]]) -> None:
    for estimate in [mean_reward(given_trials), *pass_hat(given_trials).values(), *pass_at(given_trials).values()]:
        assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12
        assert estimate.high - estimate.low >= 0


@given(st.integers(1, 12), st.data())
def test_pass_hat_falls_and_pass_at_rises_with_k(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    hats = [pass_hat_k(n, successes, k) for k in range(1, n + 1)]
    ats = [pass_at_k(n, successes, k) for k in range(1, n + 1)]
    assert hats == sorted(hats, reverse=True) and ats == sorted(ats)
    assert hats[0] == pytest.approx(successes / n) == pytest.approx(ats[0])


def test_failed_trials_are_removed_first_and_bound_k() -> None:
    with_failures = [[1.0, None, 0.0, 1.0], [1.0, 1.0, None, None], [None, None, None, None]]
    assert kept(with_failures) == [[1.0, 0.0, 1.0], [1.0, 1.0]]
    found = pass_hat(with_failures)
    assert {k: estimate.value for k, estimate in found.items()} == pytest.approx({1: (2 / 3 + 1) / 2, 2: (1 / 3 + 1) / 2})
    assert mean_reward(with_failures).value == pytest.approx((2 / 3 + 1) / 2)
    for figure in (mean_reward, pass_hat, pass_at):
        with pytest.raises(ValueError, match="every one of them failed"):
            figure([[None], [None]])


@pytest.mark.parametrize(("reward", "is_success"), [(1.0, True), (1 - 5e-7, True), (1 - 2e-6, False), (0.5, False), (1 + 2e-6, False)])
def test_success_is_a_reward_of_one(reward: float, is_success: bool) -> None:
    assert succeeded(reward) is is_success


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_trials_is_refused(k: int) -> None:
    for formula in (pass_hat_k, pass_at_k):
        with pytest.raises(ValueError, match=r"outside 1\.\.3"):
            formula(3, 1, k)


def test_wilson_has_its_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_single_trials_get_wilson_and_repeated_ones_the_bootstrap() -> None:
    single = [[1.0]] * 7 + [[0.0]] * 3
    assert (mean_reward(single).low, mean_reward(single).high) == wilson(7, 10)
    repeated = [[1.0, 0.0]] * 4 + [[1.0, 1.0]] * 4
    assert (mean_reward(repeated).low, mean_reward(repeated).high) == bootstrap([0.5] * 4 + [1.0] * 4)
    # pass^2 of two trials is 0 or 1 a task again.
    assert (pass_hat(repeated)[2].low, pass_hat(repeated)[2].high) == wilson(4, 8)
    assert mean_reward([[1.0, 1.0]] * 20).low == wilson(20, 20)[0] < 0.9


def test_the_same_trials_give_the_same_interval() -> None:
    given_trials = [[0.25 * n, 1.0] for n in range(4)]
    assert mean_reward(given_trials) == mean_reward(given_trials)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 experiments of 30 tasks with 4 trials each, whose chance of success is uniform over tasks: the mean is 0.5, pass^2 is 1/3."""
    rng = np.random.default_rng(7)
    covered = {"mean": 0, "pass^2": 0, "single": 0}
    for _ in range(200):
        chance = rng.random(30)
        outcomes = (rng.random((30, 4)) < chance[:, None]).astype(float).tolist()
        for name, estimate, truth in (
            ("mean", mean_reward(outcomes), 1 / 2),
            ("pass^2", pass_hat(outcomes)[2], 1 / 3),
            ("single", mean_reward([row[:1] for row in outcomes]), 1 / 2),
        ):
            covered[name] += estimate.low <= truth <= estimate.high
    assert all(count / 200 > 0.9 for count in covered.values()), covered


def test_a_weighted_sum_has_the_interval_of_independent_parts() -> None:
    one, other = Estimate(0.5, 0.4, 0.6), Estimate(0.8, 0.7, 0.85)
    both = combine([(0.25, one), (0.75, other)])
    assert both.value == pytest.approx(0.725)
    assert both.value - both.low == pytest.approx(math.hypot(0.25 * 0.1, 0.75 * 0.1))
    assert both.high - both.value == pytest.approx(math.hypot(0.25 * 0.1, 0.75 * 0.05))
    alone = combine([(1.0, other)])
    assert (alone.value, alone.low, alone.high) == pytest.approx((other.value, other.low, other.high))
    assert str(other) == "0.800 [0.700, 0.850]"
