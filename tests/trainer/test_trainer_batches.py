"""Which episodes of a batch are trained on, and how their credit becomes a step."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_helpers import PREFIX, make_row

from services.common.config import ExperimentConfig
from services.common.config.experiment import DynamicFilterConfig
from services.common.wire.calls import CallRecord, encode_call, pack_ids, pack_logprobs
from services.common.wire.rollouts import Failure, Kind, Owner, Sampling, Status, TaskRef, TaskStamp, Timings, Trajectory
from services.common.wire.store import Episode, Group
from services.trainer.batches import Chosen, Delivered, Member, Rules, Sample, decode, delivered_stats, select
from services.trainer.ppo import credit, minibatches

RULES = Rules(version=3, max_age=2, max_row_tokens=40, filter=DynamicFilterConfig())


def member(name: str, reward: float | None = 1.0, problem: str = "", version: int = 3, **row: object) -> Member:
    return Member(name, reward, [make_row([*PREFIX, 1, 2], 2, version=version, **row)], problem)  # type: ignore[arg-type]


def reasons(*members: Member, rules: Rules = RULES) -> dict[str, str]:
    return select([Delivered("g", list(members))], rules).drops


def test_a_mixed_group_is_trained_whole() -> None:
    selection = select([Delivered("g", [member("a"), member("b", 0.0)])], RULES)
    assert selection.trained == ["a", "b"] and not selection.drops


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("x", None, "failed_user"), "failed_user"),
        (member("x", 1.0, "incomplete"), "incomplete"),
        (member("x", 1.0, version=0), "stale"),
        (member("x", 1.0, logprobs=False), "no_logprobs"),
        (Member("x", 1.0, [make_row(list(range(41)), 2, version=3)], ""), "over_length"),
    ],
)
def test_a_bad_member_is_dropped_alone(bad: Member, reason: str) -> None:
    assert reasons(member("a"), member("b", 0.0), bad) == {"x": reason}


def test_too_few_comparable_members_drop_the_group() -> None:
    assert reasons(member("a"), member("b", None, "failed_env")) == {"a": "group_too_small", "b": "failed_env"}


@pytest.mark.parametrize(("reward", "reason"), [(1.0, "filtered_all_success"), (0.0, "filtered_all_fail")])
def test_groups_without_signal_are_filtered_on_both_sides(reward: float, reason: str) -> None:
    assert reasons(member("a", reward), member("b", reward)) == {"a": reason, "b": reason}
    unfiltered = Rules(version=3, max_age=2, max_row_tokens=40, filter=None)
    assert reasons(member("a", reward), member("b", reward), rules=unfiltered) == {}


def test_staleness_counts_from_the_oldest_token() -> None:
    row = make_row([*PREFIX, 1, 2], 2)
    mixed = Member("x", 1.0, [row.__class__(**{**_fields(row), "versions": np.asarray([0, 3], np.int32)})], "")
    assert reasons(member("a"), member("b", 0.0), mixed) == {"x": "stale"}


def _fields(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__struct_fields__}  # type: ignore[attr-defined]


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from(["", "incomplete"]), st.integers(0, 3)), min_size=1, max_size=5
        ),
        max_size=5,
    )
)
def test_every_episode_is_either_trained_or_dropped(shape: list[list[tuple[float | None, str, int]]]) -> None:
    groups = [
        Delivered(
            f"g{g}",
            [
                member(f"g{g}-{i}", reward, problem or ("failed_env" if reward is None else ""), version)
                for i, (reward, problem, version) in enumerate(members)
            ],
        )
        for g, members in enumerate(shape)
    ]
    selection = select(groups, RULES)
    everyone = [m.episode_id for group in groups for m in group.members]
    assert sorted([*selection.trained, *selection.drops]) == sorted(everyone)
    stats = delivered_stats(groups, selection.drops)
    assert stats["rollout/accepted"] == len(selection.trained) and stats["rollout/n_episodes"] == len(everyone)


def trajectory(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "episode_id": "e",
        "group_id": "g",
        "kind": Kind.TRAIN,
        "task": TaskRef(task_id="t"),
        "stamp": TaskStamp(source="s", digest="d"),
        "status": Status.SCORED,
        "reward": 1.0,
        "termination_reason": "done",
        "sampling": Sampling(),
        "timings": Timings(started_at=0, total_s=1),
    }
    return Trajectory.model_validate(base | changes).model_dump(mode="json")


def test_what_cannot_be_read_is_a_member_with_a_problem() -> None:
    failed = trajectory(status=Status.FAILED, reward=None, failure=Failure(who=Owner.JUDGE, why="x"))
    episodes = [
        Episode(trajectory=trajectory(), calls=[], complete=True),
        Episode(trajectory=trajectory(), calls=[b"junk"], complete=True),
        Episode(trajectory=failed, calls=[], complete=False),
        Episode(trajectory={"episode_id": "e", "schema_version": 1}, calls=[], complete=True),
    ]
    found = decode(Group(group_id="g", episodes=episodes))
    assert [member.problem for member in found.members] == ["incomplete", "corrupt", "failed_judge", "corrupt"]


def call(number: int, *, silent: bool = False) -> bytes:
    """A call with two generated tokens, or with none."""
    output, versions = ([], []) if silent else ([5, 6], [(3, 2)])
    record = CallRecord(
        call_id=f"c{number}",
        session_id="s",
        ordinal=number,
        prompt=pack_ids([1, 2, number]),
        output=pack_ids(output),
        logprobs=pack_logprobs([-1.0] * len(output)),
        versions=versions,
        finish_reason="stop",
    )
    return encode_call(record)


def decoded(turn_rewards: list[float], calls: list[bytes]) -> Member:
    episode = Episode(trajectory=trajectory(turn_rewards=turn_rewards), calls=calls, complete=True)
    return decode(Group(group_id="g", episodes=[episode])).members[0]


def test_rewards_of_turns_go_to_the_rows_of_their_calls() -> None:
    found = decoded([0.25, 0.5, 1.0], [call(0), call(1, silent=True), call(2)])
    assert found.turn_rewards == [0.25, 1.0] and len(found.rows) == 2 and not found.problem
    selection = select([Delivered("g", [found, member("b", 0.0)])], RULES)
    assert selection.chosen[0].samples[0].turn_rewards == [0.25, 1.0]


@pytest.mark.parametrize("same", [[], [1.0], [1.0, 1.0], [1.0, 1.0, 1.0]])
def test_rewards_of_turns_that_say_nothing_new_are_those_of_the_episode(same: list[float]) -> None:
    found = decoded(same, [call(0), call(1)])
    assert found.turn_rewards is None and not found.problem


def test_rewards_of_turns_that_do_not_fit_the_calls_are_a_problem_and_no_guess() -> None:
    found = decoded([0.5, 1.0], [call(0)])
    assert found.problem == "turn_rewards_mismatch"
    assert reasons(found, member("a"), member("b", 0.0)) == {"e": "turn_rewards_mismatch"}


def test_episodes_are_counted_by_domain_where_there_are_several() -> None:
    airline, telecom = ("airline", "s"), ("telecom", "s")
    members = [
        Member("a", 1.0, [], "", origin=airline),
        Member("b", 0.0, [], "", origin=airline),
        Member("c", 1.0, [], "", origin=telecom),
        Member("d", None, [], "failed_user"),
    ]
    stats = delivered_stats([Delivered("g", members)], {})
    assert (stats["rollout/reward/airline"], stats["rollout/n_episodes/airline"], stats["rollout/reward/telecom"]) == (0.5, 2, 1)
    assert not [name for name in delivered_stats([Delivered("g", members[:2])], {}) if name.endswith("airline")]


def chosen(*rewards: float, rows: int = 2, group: str = "g", turn_rewards: list[float] | None = None) -> Chosen:
    """Episodes of ``rows`` rows each; the turns of the first one earned ``turn_rewards``."""
    samples = [
        Sample(f"{group}{i}", reward, [make_row([*PREFIX, i, 2], 2) for _ in range(rows)], None if i else turn_rewards)
        for i, reward in enumerate(rewards)
    ]
    return Chosen(group, samples)


def test_credit_is_normalised_over_episodes_and_spread_over_their_rows(make_config: Callable[..., ExperimentConfig]) -> None:
    config = make_config(actor={"reward_norm": {"mean_level": "group", "std_level": None, "eps": 0}})
    batch = credit([chosen(1.0, 0.0), chosen(1.0, 0.0, 0.0, 0.0, rows=1, group="h")], config)
    np.testing.assert_allclose(batch.advantages, [0.5, 0.5, -0.5, -0.5, 0.75, -0.25, -0.25, -0.25])
    assert batch.sample_of_row == [0, 0, 1, 1, 2, 3, 4, 5]


def test_credit_of_turns_is_shaped_and_normalised_as_that_of_episodes(make_config: Callable[..., ExperimentConfig]) -> None:
    """Shaped by (r - 0.5) · 10 the turns are -1 and 5, the other episode is -5; the centre is (2 - 5) / 2."""
    shape = {"reward_bias": -0.5, "reward_scaling": 10.0}
    config = make_config(actor={"reward_norm": {"mean_level": "group", "std_level": None, "eps": 0}, **shape})
    batch = credit([chosen(1.0, 0.0, turn_rewards=[0.4, 1.0])], config)
    np.testing.assert_allclose(batch.advantages, [-1 + 1.5, 5 + 1.5, -5 + 1.5, -5 + 1.5])


def test_minibatches_partition_the_rows_and_keep_episodes_together(make_config: Callable[..., ExperimentConfig]) -> None:
    batch = credit([chosen(1.0, 0.0, 0.0), chosen(1.0, 0.0, group="h")], make_config())
    parts = minibatches(batch, 2)
    assert sorted(i for part in parts for i in part) == list(range(10))
    owners = [{batch.sample_of_row[i] for i in part} for part in parts]
    assert len(parts) == 2 and not owners[0] & owners[1]
    assert len(minibatches(batch, 99)) == 5
