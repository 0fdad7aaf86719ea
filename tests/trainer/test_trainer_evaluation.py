"""The figures of an evaluation pass."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Failure, Owner, RolloutRequest, Status, TaskStamp, Timings, Trajectory
from services.trainer.checks import ExperimentFailed
from services.trainer.evaluation import Requests, eval_metrics, pass_hat, pass_requests, summary
from services.trainer.sampler import Task

TASKS = [Task("a", True), Task("b", True)]


def outcome(request: RolloutRequest, reward: float | None) -> Trajectory:
    return Trajectory(
        episode_id=request.episode_id,
        group_id=request.group_id,
        kind=request.kind,
        task=request.task,
        stamp=TaskStamp(source="s", digest="d"),
        status=Status.FAILED if reward is None else Status.SCORED,
        reward=reward,
        failure=Failure(who=Owner.USER, why="x") if reward is None else None,
        termination_reason="done",
        sampling=request.sampling,
        timings=Timings(started_at=0, total_s=1),
    )


@pytest.fixture
def asked(make_config: Callable[..., ExperimentConfig]) -> Requests:
    return pass_requests(make_config(), TASKS, "before", 0)


def test_the_reward_is_the_mean_over_tasks_and_failures_are_in_no_mean(asked: Requests) -> None:
    rewards = dict(zip([r.episode_id for r in asked.sampled], [1.0, 0.0, 1.0, None], strict=True))
    found = {r.episode_id: outcome(r, rewards[r.episode_id]) for r in asked.sampled}
    found |= {r.episode_id: outcome(r, reward) for r, reward in zip(asked.greedy, [1.0, None], strict=True)}
    result = summary(asked, found, version=4, wall_s=1.5)
    assert result.per_task == {"a": 0.5, "b": 1.0} and result.reward == 0.75
    assert result.greedy == 1.0 and result.failed == {"user": 1} and result.n_episodes == 3
    assert result.pass_hat == {"1": 0.75}
    assert eval_metrics(result)["eval-rollout/reward"] == 0.75


def test_a_pass_without_any_reward_is_a_failure_with_its_causes(asked: Requests) -> None:
    with pytest.raises(ExperimentFailed, match="user"):
        summary(asked, {r.episode_id: outcome(r, None) for r in asked.sampled}, 0, 0.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=5), min_size=1, max_size=4))
def test_pass_hat_is_the_mean_over_all_draws_of_k_episodes(tasks: list[list[float]]) -> None:
    for k, value in pass_hat(tasks).items():
        draws = [list(itertools.combinations(rewards, int(k))) for rewards in tasks]
        expected = sum(sum(all(draw) for draw in of_task) / len(of_task) for of_task in draws) / len(tasks)
        assert value == pytest.approx(expected)
