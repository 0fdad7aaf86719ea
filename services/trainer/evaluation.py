"""Owns an evaluation pass: asking for the episodes, waiting for all of them, and the figures.

The weights do not change during a pass. The outcome is computed from the store's trajectories, so a pass goes on after a crash. An
episode that failed finally has no reward: it is counted and listed, never taken for a 0.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind, RolloutRequest, Trajectory
from services.common.wire.store import AckBatchBody, Batch, LeaseBatchBody
from services.trainer.checks import ExperimentFailed
from services.trainer.sampler import Task, eval_group
from services.trainer.state import Evaluation
from services.trainer.store_client import StoreClient

log = logging.getLogger(__name__)

LEASE_GROUPS = 64
BATCH_TTL_S = 300.0
POLL_S = 1.0
REASON = "eval"

Between = Callable[[], Awaitable[None]]
Progress = Callable[[int, int], Awaitable[None]]
"""(episodes that are back, episodes asked for)."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The episodes of a pass."""

    sampled: list[RolloutRequest]
    greedy: list[RolloutRequest]
    """One a task, or none at all."""


async def evaluate(
    config: ExperimentConfig, store: StoreClient, tasks: Sequence[Task], name: str, version: int, between: Between, progress: Progress
) -> Evaluation:
    """One pass at policy version ``version``. ``between`` runs while episodes are awaited."""
    started = time.perf_counter()
    asked = pass_requests(config, tasks, name, version)
    wanted = {request.episode_id for request in asked.sampled + asked.greedy}
    # Asked until the store knows all of them and none is open: requests that a killed Redis forgot are made again.
    while await store.enqueue(asked.sampled + asked.greedy) or any(await store.groups(Kind.EVAL)):
        await _settle(store, f"{config.trial_name}-evaluator", wanted, version, between, progress)
    found = {t.episode_id: t for t in await store.trajectories(Kind.EVAL) if t.episode_id in wanted}
    return summary(asked, found, version, time.perf_counter() - started)


def pass_requests(config: ExperimentConfig, tasks: Sequence[Task], name: str, version: int) -> Requests:
    """Every episode of a pass."""

    def all_tasks(greedy: bool) -> list[RolloutRequest]:
        return [r for number in range(len(tasks)) for r in eval_group(config, name, tasks, number, version, greedy=greedy)]

    return Requests(all_tasks(False), all_tasks(True) if config.evaluator.greedy else [])


async def _settle(store: StoreClient, consumer: str, wanted: set[str], version: int, between: Between, progress: Progress) -> None:
    """Takes evaluated groups off the store as they become ready, until all are back. They are dropped there with the reason ``eval``."""
    back: set[str] = set()
    while True:
        body = LeaseBatchBody(
            consumer_id=consumer, kind=Kind.EVAL, n_groups=LEASE_GROUPS, ttl_s=BATCH_TTL_S, wait_s=POLL_S, allow_partial=True
        )
        if batch := await store.lease(body):
            episodes = episodes_of(batch)
            await store.ack(
                batch.batch_id, AckBatchBody(trained=[], dropped=dict.fromkeys(episodes, REASON), step=version, policy_version=version)
            )
            back |= wanted & set(episodes)
            await progress(len(back), len(wanted))
            if back == wanted:
                return
            continue
        ready, running = await store.groups(Kind.EVAL)
        if not ready and not running:
            return
        await between()


def episodes_of(batch: Batch) -> list[str]:
    """Ids of all episodes of a batch."""
    return [str(episode.trajectory["episode_id"]) for group in batch.groups for episode in group.episodes]


def summary(asked: Requests, found: Mapping[str, Trajectory], version: int, wall_s: float) -> Evaluation:
    """The figures of a pass. Tasks without a reward are in none of the means. Raises `ExperimentFailed` where no episode has a reward."""
    sampled, greedy = _rewards(asked.sampled, found), _rewards(asked.greedy, found)
    trajectories = [found[r.episode_id] for r in asked.sampled if r.episode_id in found]
    failed = dict(Counter(str(t.failure.who) for t in trajectories if t.failure))
    if not sampled:
        raise ExperimentFailed(f"evaluation: none of {len(asked.sampled)} episodes has a reward; failed: {failed}")
    per_task = {task: sum(rewards) / len(rewards) for task, rewards in sampled.items()}
    return Evaluation(
        version=version,
        reward=sum(per_task.values()) / len(per_task),
        greedy=sum(sum(r) / len(r) for r in greedy.values()) / len(greedy) if greedy else None,
        pass_hat=pass_hat(list(sampled.values())),
        n_tasks=len(per_task),
        n_episodes=sum(t.reward is not None for t in trajectories),
        failed=failed,
        per_task=per_task,
        wall_s=wall_s,
    )


def _rewards(requests: Sequence[RolloutRequest], found: Mapping[str, Trajectory]) -> dict[str, list[float]]:
    """task id -> rewards of its episodes that have one; tasks without any are left out."""
    rewards: dict[str, list[float]] = {}
    for request in requests:
        trajectory = found.get(request.episode_id)
        if trajectory is not None and trajectory.reward is not None:
            rewards.setdefault(request.task.task_id, []).append(trajectory.reward)
    return rewards


def pass_hat(rewards_by_task: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass^k for every k that each task has episodes for: the chance that k fresh episodes of a task all succeed, mean over tasks.

    Unbiased from n episodes with s successes: C(s, k) / C(n, k) (tau-bench, arXiv 2406.12045). Success is a reward of 1.
    """
    outcomes = [(len(rewards), sum(reward >= 1 - 1e-6 for reward in rewards)) for rewards in rewards_by_task]
    largest = min(n for n, _ in outcomes)
    return {str(k): sum(math.comb(s, k) / math.comb(n, k) for n, s in outcomes) / len(outcomes) for k in range(1, largest + 1)}


def eval_metrics(outcome: Evaluation) -> dict[str, float]:
    """The figures under AReaL's ``eval-rollout/``."""
    metrics = {
        "eval-rollout/reward": outcome.reward,
        "eval-rollout/n_episodes": float(outcome.n_episodes),
        "eval-rollout/failed": float(sum(outcome.failed.values())),
        "timeperf/eval": outcome.wall_s,
        **{f"eval-rollout/pass^{k}": value for k, value in outcome.pass_hat.items()},
    }
    return metrics if outcome.greedy is None else metrics | {"eval-rollout/greedy_reward": outcome.greedy}
