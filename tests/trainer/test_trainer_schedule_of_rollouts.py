"""Which episodes are asked for and how many: the staleness rule and the sampler."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.config.laptop import DemonstrationMix
from services.common.ids import is_valid_id
from services.common.wire.rollouts import Kind, TaskRef
from services.trainer.sampler import Task, TaskSet, demonstrations, epoch_index, eval_group, mixed, task_ref, train_group
from services.trainer.staleness import Limits, capacity, max_age

TELECOM = DatasetRef("telecom", "small")
TASKS = [Task(f"[mobile_data_issue]{n}", True) for n in range(5)]
ONE = TaskRef(domain="telecom", split="small", task_id="[mobile_data_issue]2")
MakeConfig = Callable[..., ExperimentConfig]


@pytest.mark.parametrize(
    ("offpolicyness", "version", "running", "waiting", "expected"),
    [
        (0, 0, 0, 0, 4),  # one batch, and nothing more until it is trained
        (0, 0, 2, 2, 0),
        (0, 1, 0, 0, 4),
        (1, 0, 0, 0, 8),
        (1, 0, 0, 4, 4),  # a batch in training leaves room for the next
        (1, 3, 4, 4, 0),
        (1, 3, 4, 0, 4),
        (2, 0, 0, 0, 8),  # max_concurrent binds
        (2, 0, 8, 3, 0),
        (1, 9, 0, 0, 4),  # one step is left
        (1, 10, 0, 0, 0),
        (1, 0, 0, 99, 0),
    ],
)
def test_capacity_is_areals_rule_in_groups(offpolicyness: int, version: int, running: int, waiting: int, expected: int) -> None:
    limits = Limits(batch=4, max_offpolicyness=offpolicyness, max_concurrent=8, total_steps=10)
    assert capacity(limits, version=version, running=running, waiting=waiting) == expected


@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 20), st.integers(0, 30), st.integers(0, 30))
def test_capacity_never_lets_more_than_the_allowed_groups_be_unconsumed(
    batch: int, offpolicyness: int, version: int, running: int, waiting: int
) -> None:
    limits = Limits(batch, offpolicyness, 1000, 1000)
    room = capacity(limits, version=version, running=running, waiting=waiting)
    assert room == 0 or running + waiting + room <= (offpolicyness + 1) * batch


def test_age_limit_allows_one_overtaking_and_none_without_asynchrony() -> None:
    assert [max_age(Limits(4, offpolicyness, 8, 10)) for offpolicyness in (0, 1, 2)] == [0, 2, 3]


def test_the_limits_come_from_the_config(make_config: MakeConfig) -> None:
    assert Limits.of(make_config()) == Limits(batch=2, max_offpolicyness=1, max_concurrent=4, total_steps=3)
    assert Limits.of(make_config(rollout={"max_concurrent_rollouts": 7})).max_concurrent == 7


@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 1000))
def test_every_epoch_has_each_task_once(n: int, epoch: int, seed: int) -> None:
    assert sorted(epoch_index(n, epoch * n + offset, seed) for offset in range(n)) == list(range(n))


def test_the_same_counter_gives_the_same_requests(make_config: MakeConfig) -> None:
    config = make_config()
    assert train_group(config, ONE, 7, 3) == train_group(config, ONE, 7, 3)
    group = train_group(config, ONE, 7, 3)
    assert {request.group_id for request in group} == {f"{config.trial_name}-rl-00007"}
    assert len({request.seed for request in group}) == len({request.sampling.seed for request in group}) == 4
    assert all(is_valid_id(request.episode_id) and request.kind is Kind.TRAIN for request in group)


def test_a_task_file_travels_in_the_place_of_the_split(make_config: MakeConfig) -> None:
    ref = task_ref(make_config(econfig={"solo_mode": False}), DatasetRef.parse("retail:/data/tasks.jsonl"), TASKS[0])
    assert (ref.domain, ref.split, ref.solo_mode) == ("retail", "/data/tasks.jsonl", False)


def test_evaluation_passes_differ_in_ids_and_not_in_seeds(make_config: MakeConfig) -> None:
    config = make_config()
    before, after = (eval_group(config, name, ONE, 2, 0, greedy=False) for name in ("before", "after"))
    assert [r.seed for r in before] == [r.seed for r in after] and [r.sampling for r in before] == [r.sampling for r in after]
    assert not {r.episode_id for r in before} & {r.episode_id for r in after}
    greedy = eval_group(config, "before", ONE, 2, 0, greedy=True)
    assert [request.sampling.temperature for request in greedy] == [0.0]


def test_valid_dataset_may_set_the_episodes_of_a_pass(make_config: MakeConfig) -> None:
    config = make_config(valid_dataset={"n_samples": 5})
    assert len(eval_group(config, "before", ONE, 0, 0, greedy=False)) == 5


def test_demonstrations_have_the_qualities_of_the_mix(make_config: MakeConfig) -> None:
    config = make_config(sft={"n_demonstrations": 20, "mix": {"complete": 1, "gives_up": 1, "skips_step": 2}})
    requests = demonstrations(config, TaskSet(TELECOM, TASKS))
    assert Counter(r.demonstration.quality for r in requests if r.demonstration) == {"complete": 5, "gives_up": 5, "skips_step": 10}
    assert Counter(r.task.task_id for r in requests) == {task.task_id: 4 for task in TASKS}
    assert requests == demonstrations(config, TaskSet(TELECOM, TASKS))


def test_scenarios_take_turns_in_demonstrations_however_many_tasks_they_have(make_config: MakeConfig) -> None:
    tasks = [Task(f"common-{n}", True, "common") for n in range(40)] + [Task(f"rare-{n}", True, "rare") for n in range(2)]
    requests = demonstrations(make_config(sft={"n_demonstrations": 20}), TaskSet(TELECOM, tasks))
    played = Counter(request.task.task_id for request in requests)
    assert (played["rare-0"], played["rare-1"]) == (5, 5)
    assert sum(count for task_id, count in played.items() if task_id.startswith("common")) == 10
    assert max(count for task_id, count in played.items() if task_id.startswith("common")) == 1


def test_long_tasks_can_be_left_out_of_demonstrations() -> None:
    given = TaskSet(TELECOM, [Task(f"t{n}", True, n_actions=n) for n in range(6)])
    assert [task.task_id for task in given.up_to(3).tasks] == ["t0", "t1", "t2", "t3"]
    assert given.up_to(0).tasks == given.tasks


@given(st.integers(0, 50), st.tuples(*[st.floats(0.01, 5)] * 3))
def test_mixed_hands_out_exactly_what_is_asked_for(n: int, shares: tuple[float, float, float]) -> None:
    mix = DemonstrationMix(complete=shares[0], gives_up=shares[1], skips_step=shares[2])
    counts = Counter(mixed(mix, n, seed=1))
    assert counts.total() == n
    for quality, share in mix.model_dump().items():
        assert abs(counts[quality] - n * share / sum(shares)) < 1


def test_a_mix_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive share"):
        mixed(DemonstrationMix(complete=0, gives_up=0, skips_step=0), 3, 1)
