"""The figures of an evaluation pass."""

from collections.abc import Callable, Sequence

import pytest
from trainer_helpers import task_set

from services.common.config import ExperimentConfig
from services.common.passk import mean_reward, pass_hat
from services.common.wire.rollouts import Failure, Owner, RolloutRequest, Status, TaskStamp, Timings, Trajectory
from services.trainer.checks import ExperimentFailed
from services.trainer.evaluation import Requests, eval_metrics, pass_requests, summary

MakeConfig = Callable[..., ExperimentConfig]
TASKS = task_set("telecom/small", 2, floor=0.2)


def outcome(request: RolloutRequest, reward: float | None, *, truncated: str = "") -> Trajectory:
    return Trajectory(
        episode_id=request.episode_id,
        group_id=request.group_id,
        kind=request.kind,
        task=request.task,
        stamp=TaskStamp(source="s", digest="d"),
        status=Status.FAILED if reward is None else Status.TRUNCATED if truncated else Status.SCORED,
        reward=reward,
        failure=Failure(who=Owner.USER, why="x") if reward is None else None,
        termination_reason=truncated or "done",
        sampling=request.sampling,
        timings=Timings(started_at=0, total_s=1),
    )


def outcomes(requests: Sequence[Sequence[RolloutRequest]], rewards: Sequence[float | None]) -> dict[str, Trajectory]:
    """Trajectories for the requests, in their order."""
    flat = [request for of_task in requests for request in of_task]
    return {request.episode_id: outcome(request, reward) for request, reward in zip(flat, rewards, strict=True)}


@pytest.fixture
def asked(make_config: MakeConfig) -> list[Requests]:
    return pass_requests(make_config(), [TASKS], "before", 0)


def test_the_reward_is_the_mean_over_tasks_and_failures_are_in_no_mean(asked: list[Requests]) -> None:
    found = outcomes(asked[0].sampled, [1.0, 0.0, 1.0, None]) | outcomes(asked[0].greedy, [1.0, None])
    result = summary(asked, found, version=4, wall_s=1.5)
    total = result.total
    assert result.per_task == {"telecom/small": {"[task]0": 0.5, "[task]1": 1.0}}
    assert total.reward == result.datasets["telecom/small"].reward == mean_reward([[1.0, 0.0], [1.0]])
    assert total.reward.value == 0.75 and total.reward.low < 0.75 < total.reward.high
    assert total.greedy is not None and total.greedy.value == 1.0 and total.greedy.low < 0.5
    assert (total.failed, total.n_episodes, total.n_tasks, total.left_out) == ({"user": 1}, 3, 2, 0)
    assert {k: estimate.value for k, estimate in total.pass_hat.items()} == {"1": 0.75}
    assert total.floor == 0.2


def test_a_task_without_any_reward_is_left_out_and_counted(asked: list[Requests]) -> None:
    result = summary(asked, outcomes(asked[0].sampled, [1.0, 0.0, None, None]), 0, 0.0)
    assert (result.total.n_tasks, result.total.left_out, result.total.reward.value) == (1, 1, 0.5)
    assert result.per_task == {"telecom/small": {"[task]0": 0.5}}
    assert result.total.greedy is None


def test_truncated_episodes_are_counted_by_cause_and_stay_in_the_mean(asked: list[Requests]) -> None:
    found = outcomes(asked[0].sampled, [1.0, 1.0, 1.0, 1.0])
    for request, cause in zip(asked[0].sampled[0], ("max_steps", "context"), strict=True):
        found[request.episode_id] = outcome(request, 0.0, truncated=cause)
    result = summary(asked, found, 0, 0.0)
    assert result.total.truncated == {"max_steps": 1, "context": 1} and result.total.reward.value == 0.5


def test_a_pass_without_any_reward_is_a_failure_with_its_causes(asked: list[Requests]) -> None:
    with pytest.raises(ExperimentFailed, match=r"none of 4 episodes on telecom/small .*user"):
        summary(asked, outcomes(asked[0].sampled, [None] * 4), 0, 0.0)


def test_several_datasets_are_reported_each_and_weighted_together(make_config: MakeConfig) -> None:
    config = make_config(
        valid_dataset={"path": "", "mix": {"telecom/test": 3, "airline/test": 1}}, evaluator={"greedy": False}, econfig={"solo_mode": False}
    )
    sets = [task_set("telecom/test", 2, floor=0.0), task_set("airline/test", 3, floor=0.4)]
    asked = pass_requests(config, sets, "before", 0)
    assert len({r.episode_id for part in asked for r in part.all}) == len({r.seed for part in asked for r in part.all}) == 10
    found = outcomes(asked[0].sampled, [1.0, 1.0, 1.0, 0.0]) | outcomes(asked[1].sampled, [0.0, 0.0, 0.0, 1.0, 1.0, None])
    result = summary(asked, found, 0, 0.0)
    telecom, airline = result.datasets["telecom/test"], result.datasets["airline/test"]
    assert (telecom.reward, airline.reward) == (mean_reward([[1, 1], [1, 0]]), mean_reward([[0, 0], [0, 1], [1]]))
    assert result.total.reward.value == pytest.approx(0.75 * telecom.reward.value + 0.25 * airline.reward.value)
    assert list(telecom.pass_hat) == ["1", "2"] and list(airline.pass_hat) == list(result.total.pass_hat) == ["1"]
    assert telecom.pass_hat["2"] == pass_hat([[1, 1], [1, 0]])[2]
    assert result.total.floor == pytest.approx(0.1) and (telecom.floor, airline.floor) == (0.0, 0.4)
    assert (result.total.n_tasks, result.total.n_episodes, result.total.failed) == (5, 9, {"user": 1})
    metrics = eval_metrics(result)
    assert metrics["eval-rollout/reward"] == result.total.reward.value
    assert metrics["eval-rollout/reward/airline/test"] == airline.reward.value and metrics["eval-rollout/floor/airline/test"] == 0.4
    assert metrics["eval-rollout/pass^2/telecom/test"] == telecom.pass_hat["2"].value


def test_a_floor_that_one_dataset_does_not_know_is_not_known_of_all(make_config: MakeConfig) -> None:
    config = make_config(valid_dataset={"path": "", "mix": {"telecom/a": 1, "telecom/b": 1}}, evaluator={"greedy": False})
    asked = pass_requests(config, [task_set("telecom/a", 1, floor=0.1), task_set("telecom/b", 1)], "before", 0)
    result = summary(asked, outcomes(asked[0].sampled + asked[1].sampled, [1.0] * 4), 0, 0.0)
    assert result.total.floor is None and "eval-rollout/floor" not in eval_metrics(result)
