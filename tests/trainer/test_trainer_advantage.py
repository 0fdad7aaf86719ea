"""Properties of credit assignment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config.experiment import ActorConfig, NormConfig
from services.trainer.advantage import normalise, shaped_reward, turn_returns

GROUP = NormConfig(mean_level="group", std_level="group")
groups = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 5)), min_size=1, max_size=20)


@given(groups)
def test_every_group_has_mean_zero(items: list[tuple[str, float]]) -> None:
    names, values = [name for name, _ in items], np.asarray([value for _, value in items])
    out = normalise(values, names, GROUP)
    for name in set(names):
        assert abs(out[np.asarray(names) == name].mean()) < 1e-6


@given(groups, st.integers(-10, 10), st.sampled_from([0.5, 2, 4]))
def test_shift_and_scale_of_all_rewards_change_nothing(items: list[tuple[str, float]], shift: int, scale: float) -> None:
    names, values = [name for name, _ in items], np.round([value for _, value in items])
    exact = NormConfig(mean_level="group", std_level="group", eps=0.0)
    np.testing.assert_allclose(normalise(values * scale + shift, names, exact), normalise(values, names, exact), atol=1e-6)


@given(groups)
def test_order_does_not_matter(items: list[tuple[str, float]]) -> None:
    names, values = [name for name, _ in items], np.asarray([value for _, value in items])
    back = normalise(values[::-1], names[::-1], GROUP)[::-1]
    np.testing.assert_allclose(normalise(values, names, GROUP), back, atol=1e-9)


def test_a_group_without_spread_gets_exactly_zero() -> None:
    assert (normalise(np.asarray([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], GROUP) == 0).all()


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    rloo = NormConfig(mean_level="group", std_level=None, mean_leave1out=True, eps=0.0)
    np.testing.assert_allclose(normalise(np.asarray([1.0, 0.0, 0.0]), ["a"] * 3, rloo), [1.0, -0.5, -0.5])


def test_batch_statistics_are_weighted_by_tokens() -> None:
    batch = NormConfig(mean_level="batch", std_level=None, eps=0.0)
    np.testing.assert_allclose(normalise(np.asarray([1.0, 0.0]), ["a", "b"], batch, np.asarray([3.0, 1.0])), [0.25, -0.75])


def test_no_rule_leaves_values_alone() -> None:
    np.testing.assert_array_equal(normalise(np.asarray([3.0, 1.0]), ["a", "a"], None), [3.0, 1.0])


def test_rewards_are_biased_scaled_and_clipped() -> None:
    actor = ActorConfig(reward_bias=-0.5, reward_scaling=10, reward_clip=4)
    np.testing.assert_allclose(shaped_reward(np.asarray([0.0, 0.6, 1.0]), actor), [-4, 1, 4])


@given(st.floats(-3, 3), st.integers(1, 8))
def test_without_discount_every_turn_gets_the_advantage_of_the_episode(advantage: float, turns: int) -> None:
    np.testing.assert_allclose(turn_returns(advantage, turns, 1.0, [False] * turns, 0.1), advantage)


def test_discount_runs_backwards_and_a_malformed_call_costs_its_turn() -> None:
    assert turn_returns(1.0, 3, 0.5, [False, True, False], 0.1) == pytest.approx([0.25, 0.4, 1.0])
