"""What a call is worth, and the rows that are handed out: against the plain recurrence and against the token tree."""

from dataclasses import dataclass
from typing import Any

import pytest
from areal_agent import arrays_of
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.wire.calls import CallRecord, pack_ids, pack_logprobs, rows_of
from services.common.wire.sessions import Reward
from services.policy_proxy.sessions.export import areal_interactions, rows
from services.policy_proxy.sessions.returns import leaves, returns, without_orphans

VALUES = st.floats(-5, 5, allow_nan=False)
DISCOUNTS = st.floats(0, 1)


@dataclass(frozen=True)
class Call:
    call_id: str
    parent: str | None = None


def tree(*parents: int | None) -> list[Call]:
    return [Call(f"c{index}", None if parent is None else f"c{parent}") for index, parent in enumerate(parents)]


def reward(index: int | None, value: float | None, **fields: Any) -> Reward:
    return Reward(call_id=None if index is None else f"c{index}", value=value, **fields)


def in_order(calls: list[Call], rewards: list[Reward], discount: float) -> list[float]:
    return list(returns(calls, rewards, discount).values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | VALUES, min_size=1, max_size=12), DISCOUNTS, st.data())
def test_on_one_chain_it_is_areals_recurrence(values: list[float | None], discount: float, data: st.DataObject) -> None:
    """Whether a reward was given to a call or to everything until it makes no difference there."""
    calls = tree(None, *range(len(values) - 1))
    rewards = [reward(index, value, whole=data.draw(st.booleans())) for index, value in enumerate(values)]
    expected, following = [], 0.0
    for value in reversed(values):
        following = following * discount + (value or 0.0)
        expected.insert(0, following)
    assert in_order(calls, rewards, discount) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(*(st.none() | st.integers(0, i - 1) if i else st.none() for i in range(n)))), st.data()
)
def test_on_a_tree_a_reward_reaches_what_its_call_extends_and_nothing_else(parents: tuple[int | None, ...], data: st.DataObject) -> None:
    calls, discount = tree(*parents), data.draw(DISCOUNTS)
    index = data.draw(st.integers(0, len(calls) - 1))
    worth = in_order(calls, [reward(index, 1.0)], discount)
    expected, at, distance = [0.0] * len(calls), index, 0
    while at is not None:
        expected[at] = discount**distance
        at, distance = parents[at], distance + 1
    assert worth == pytest.approx(expected)


def test_branches_do_not_mix() -> None:
    """c0 - c1 - c3, with a second answer c2 to c0's next prompt, and another conversation c4 - c5."""
    calls = tree(None, 0, 0, 1, None, 4)
    assert in_order(calls, [reward(3, 1.0), reward(2, 10.0), reward(5, 100.0)], 0.5) == [5.25, 0.5, 10.0, 1.0, 50.0, 100.0]


def test_a_reward_of_the_session_reaches_every_branch_and_each_call_once() -> None:
    calls = tree(None, 0, 0, 1, None, 4)
    assert in_order(calls, [reward(None, 1.0)], 0.5) == [0.25, 0.5, 1.0, 1.0, 0.5, 1.0]
    assert in_order(calls, [reward(2, 1.0, whole=True)], 0.5) == [0.5, 1.0, 1.0, 0.0, 0.0, 0.0], "what came later did not earn it"


def test_rewards_without_a_value_or_a_call_count_nothing_and_names_add_up() -> None:
    given_rewards = [reward(0, None), reward(9, 3.0), reward(1, 1.0), reward(1, 0.5, name="format")]
    assert in_order(tree(None, 0), given_rewards, 1.0) == [1.5, 1.5]


def record(index: int, parent: int | None, prompt: list[int], output: list[int], *, logprobs: bool = True) -> CallRecord:
    return CallRecord(
        call_id=f"c{index}",
        session_id="s",
        ordinal=index,
        parent=None if parent is None else f"c{parent}",
        prompt=pack_ids(prompt),
        output=pack_ids(output),
        logprobs=pack_logprobs([-0.5 * (index + 1)] * len(output)) if logprobs else None,
        versions=[(index, len(output))],
        finish_reason="stop",
    )


CALLS = [
    record(0, None, [1, 2], [3, 4]),
    record(1, 0, [5], [6]),
    record(2, 1, [7, 8], [9, 9], logprobs=False),
    record(3, 0, [5], [5, 5, 5]),
]
"""c3 is the same prompt as c1 and was not gone on with."""


def columns(row: Any) -> dict[str, list[Any]]:
    tokens = row.tokens
    names = ("ids", "loss_mask", "logprobs", "versions", "turn_ids")
    return {name: getattr(tokens, name).tolist() for name in names}


def test_individual_rows_are_the_calls_and_train_their_own_output() -> None:
    found = rows(CALLS[::-1], [reward(2, 1.0)], discount=0.5)
    assert [row.call_id for row in found] == ["c0", "c1", "c2", "c3"]
    assert [row.reward for row in found] == [0.25, 0.5, 1.0, 0.0]
    assert columns(found[1]) == {
        "ids": [1, 2, 3, 4, 5, 6],
        "loss_mask": [0, 0, 0, 0, 0, 1],
        "logprobs": [0, 0, 0, 0, 0, -1.0],
        "versions": [-1, -1, -1, -1, -1, 1],
        "turn_ids": [-1, -1, -1, -1, -1, 0],
    }
    for row, known in zip(found, rows_of(CALLS), strict=True):
        assert row.tokens.ids.tolist() == known.ids.tolist()


def test_concatenated_rows_are_the_leaves_and_train_every_output_on_the_way() -> None:
    found = rows(CALLS, [reward(None, 1.0)], style="concat")
    assert [row.call_id for row in found] == ["c2", "c3"]
    assert columns(found[0]) == {
        "ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 9],
        "loss_mask": [0, 0, 1, 1, 0, 1, 0, 0, 1, 1],
        "logprobs": [0, 0, -0.5, -0.5, 0, -1.0, 0, 0, 0, 0],
        "versions": [-1, -1, 0, 0, -1, 1, -1, -1, 2, 2],
        "turn_ids": [-1, -1, 0, 0, -1, 1, -1, -1, 2, 2],
    }
    assert found[1].tokens.turn_ids.tolist() == [-1, -1, 0, 0, -1, 1, 1, 1]


def test_what_an_agent_asked_twice_is_kept_once() -> None:
    assert [row.call_id for row in rows(CALLS, [], drop_orphans=True)] == ["c0", "c1", "c2"]
    prompts = {call.call_id: call.prompt for call in CALLS}
    assert without_orphans([CALLS[0], CALLS[1], CALLS[3]], prompts) == {"c0", "c3"}, "of two ends the later one"
    assert leaves(CALLS) == {"c2", "c3"}


def test_a_missing_parent_is_named() -> None:
    with pytest.raises(ValueError, match="call c1 extends c0, which is not in the session"):
        rows(CALLS[1:], [])


def test_areals_tensors() -> None:
    interactions = areal_interactions(rows(CALLS, [reward(2, 1.0)], discount=0.5))
    assert list(interactions) == ["c0", "c1", "c2", "c3"]
    one = arrays_of(interactions["c1"])
    assert (one["reward"], one["interaction_id"]) == (0.5, "c1")
    tensors = one["tensor_dict"]
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "input_ids": ("int64", (1, 6)),
        "loss_mask": ("int64", (1, 6)),
        "logprobs": ("float32", (1, 6)),
        "versions": ("int64", (1, 6)),
        "turn_ids": ("int32", (1, 6)),
        "attention_mask": ("bool", (1, 6)),
        "rewards": ("float32", (1,)),
        "original_rewards": ("float32", (1,)),
    }
    assert tensors["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert tensors["attention_mask"].all()
    assert tensors["rewards"].tolist() == tensors["original_rewards"].tolist() == [0.5]
