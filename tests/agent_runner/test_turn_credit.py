"""One reward per agent call: AReaL's turn discount and the format penalty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agent_runner.reward.credit import turn_rewards


@pytest.mark.parametrize(
    ("reward", "n_turns", "discount", "errors", "expected"),
    [
        (1.0, 3, 1.0, [], [1.0, 1.0, 1.0]),
        (1.0, 3, 0.5, [], [0.25, 0.5, 1.0]),
        (0.0, 3, 1.0, [2], [-0.1, -0.1, -0.1]),
        (1.0, 3, 1.0, [1], [0.9, 0.9, 1.0]),
        (1.0, 3, 0.0, [0], [-0.1, 0.0, 1.0]),
        (1.0, 0, 1.0, [], []),
    ],
)
def test_examples(reward: float, n_turns: int, discount: float, errors: list[int], expected: list[float]):
    assert turn_rewards(reward, n_turns, turn_discount=discount, format_errors=errors, penalty=0.1) == pytest.approx(expected)


def test_an_error_in_a_call_that_was_never_made_is_refused():
    with pytest.raises(ValueError, match=r"format_errors \[3\]: the episode has 3 calls"):
        turn_rewards(1.0, 3, turn_discount=1.0, format_errors=[3], penalty=0.1)


@given(st.data(), st.floats(-2, 2), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_each_turn_has_the_discounted_sum_of_what_follows(data: st.DataObject, reward: float, n: int, discount: float, penalty: float):
    errors = data.draw(st.sets(st.integers(0, n - 1)))
    raw = [-penalty * (index in errors) + reward * (index == n - 1) for index in range(n)]
    expected = [sum(discount ** (j - i) * raw[j] for j in range(i, n)) for i in range(n)]
    assert turn_rewards(reward, n, turn_discount=discount, format_errors=errors, penalty=penalty) == pytest.approx(expected)
