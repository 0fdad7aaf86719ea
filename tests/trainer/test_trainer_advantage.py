"""Properties of credit assignment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config.experiment import ActorConfig, NormConfig
from services.trainer.advantage import normalise, shaped_reward, turn_advantages

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


episodes = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.1, 0.3, 1.0]), st.integers(1, 7), st.sampled_from([0.0, 0.1, 1 / 3])),
    min_size=1,
    max_size=12,
)
rules = st.sampled_from([None, GROUP, NormConfig(), NormConfig(mean_level="group", std_level=None, mean_leave1out=True)])


@given(episodes, rules)
def test_turns_that_all_earned_the_reward_of_the_episode_are_normalised_as_the_episode_is_to_the_bit(
    items: list[tuple[str, float, int, float]], norm: NormConfig | None
) -> None:
    names, reward_S = [item[0] for item in items], np.asarray([item[1] for item in items])
    turns = [np.full(item[2], item[1]) for item in items]
    expected_S = normalise(reward_S, names, norm)
    for advantage_T, expected in zip(turn_advantages(turns, reward_S, names, norm), expected_S, strict=True):
        assert (advantage_T == expected).all()


@given(episodes)
def test_a_group_has_mean_zero_with_every_episode_weighing_the_same_whatever_its_turns_earned(
    items: list[tuple[str, float, int, float]],
) -> None:
    names, reward_S = [item[0] for item in items], np.asarray([item[1] for item in items])
    turns = [item[1] * 0.9 ** np.arange(item[2])[::-1] - item[3] for item in items]
    found = turn_advantages(turns, reward_S, names, NormConfig(mean_level="group", std_level=None))
    for name in set(names):
        assert abs(np.mean([found[s].mean() for s in range(len(items)) if names[s] == name])) < 1e-9


def test_turn_advantages_of_an_example_worked_out_by_hand() -> None:
    """Two episodes of one group: a success of three turns, discounted by 1/2, and a failure of two with a penalty of 0.2 on its first."""
    turns = [np.asarray([0.25, 0.5, 1.0]), np.asarray([-0.2, 0.0])]
    reward_S = np.asarray([1.0, 0.0])
    # Mean turns are 7/12 and -1/10, so the centre is 29/120; the episode rewards 1 and 0 have a standard deviation of √½.
    centre, scale = 29 / 120, 0.5**0.5
    found = turn_advantages(turns, reward_S, ["g", "g"], NormConfig(mean_level="group", std_level="group", eps=0.0))
    assert found[0] == pytest.approx([(0.25 - centre) / scale, (0.5 - centre) / scale, (1.0 - centre) / scale])
    assert found[1] == pytest.approx([(-0.2 - centre) / scale, (0.0 - centre) / scale])


def test_a_penalty_keeps_its_size_where_it_is_all_that_differs() -> None:
    turns = [np.asarray([0.0, -0.1]), np.asarray([0.0, 0.0])]
    found = turn_advantages(turns, np.zeros(2), ["g", "g"], NormConfig(mean_level="group", std_level="group", eps=0.0))
    assert np.concatenate(found) == pytest.approx([0.025, -0.075, 0.025, 0.025])
