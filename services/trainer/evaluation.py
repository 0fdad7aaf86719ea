"""Owns an evaluation pass: asking for the episodes, waiting for all of them, and the figures of each dataset and of all together.

The weights do not change during a pass. The outcome is computed from the store's trajectories, so a pass goes on after a crash. An
episode that failed finally has no reward: it is counted and listed, never taken for a 0.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.common.config import ExperimentConfig
from services.common.passk import Estimate, combine, mean_reward, pass_hat
from services.common.wire.rollouts import Kind, RolloutRequest, Status, Trajectory
from services.common.wire.store import AckBatchBody, Batch, LeaseBatchBody
from services.trainer.batches import origin_of
from services.trainer.checks import ExperimentFailed
from services.trainer.sampler import TaskSet, eval_group, task_ref
from services.trainer.sources import admit_sources
from services.trainer.state import Evaluation, Score, State
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
    """The episodes of a pass on one dataset."""

    given: TaskSet
    share: float
    """In the figures over all datasets."""
    sampled: list[list[RolloutRequest]]
    """Per task."""
    greedy: list[list[RolloutRequest]]
    """Per task one, or none at all."""

    @property
    def all(self) -> list[RolloutRequest]:
        """Every episode, the sampled ones first."""
        return [request for of_task in self.sampled + self.greedy for request in of_task]


async def evaluate(
    config: ExperimentConfig, store: StoreClient, sets: Sequence[TaskSet], name: str, state: State, between: Between, progress: Progress
) -> Evaluation:
    """One pass at the state's policy version. ``between`` runs while episodes are awaited.

    Raises `ExperimentFailed` where a dataset has no reward at all, or episodes from another source than the run's (`admit_sources`).
    """
    started, version = time.perf_counter(), state.step
    asked = pass_requests(config, sets, name, version)
    requests = [request for part in asked for request in part.all]
    wanted = {request.episode_id for request in requests}
    # Asked until the store knows all of them and none is open: requests that a killed Redis forgot are made again.
    while await store.enqueue(requests) or any(await store.groups(Kind.EVAL)):
        await _settle(store, f"{config.trial_name}-evaluator", wanted, version, between, progress)
    found = {t.episode_id: t for t in await store.trajectories(Kind.EVAL) if t.episode_id in wanted}
    admit_sources(state, map(origin_of, found.values()), f"evaluation {name}")
    return summary(asked, found, version, time.perf_counter() - started)


def pass_requests(config: ExperimentConfig, sets: Sequence[TaskSet], name: str, version: int) -> list[Requests]:
    """Every episode of a pass. Tasks are numbered through all datasets."""
    shares = config.valid_dataset.shares()
    asked: list[Requests] = []
    first = 0
    for given in sets:
        refs = list(enumerate((task_ref(config, given.ref, task) for task in given.tasks), first))
        sampled = [eval_group(config, name, ref, number, version, greedy=False) for number, ref in refs]
        greedy = [eval_group(config, name, ref, number, version, greedy=True) for number, ref in refs] if config.evaluator.greedy else []
        asked.append(Requests(given, float(shares[given.ref]), sampled, greedy))
        first += len(refs)
    return asked


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


def summary(asked: Sequence[Requests], found: Mapping[str, Trajectory], version: int, wall_s: float) -> Evaluation:
    """The figures of a pass. Raises `ExperimentFailed` where no episode of a dataset has a reward."""
    scores = {str(part.given.ref): score(part, found) for part in asked}
    per_task = {str(part.given.ref): _task_means(part, found) for part in asked}
    total = combined([(part.share, scores[str(part.given.ref)]) for part in asked])
    return Evaluation(version=version, total=total, datasets=scores, per_task=per_task, wall_s=wall_s)


def score(asked: Requests, found: Mapping[str, Trajectory]) -> Score:
    """The figures of one dataset."""
    sampled, greedy = _trials(asked.sampled, found), _trials(asked.greedy, found)
    trajectories = [found[r.episode_id] for of_task in asked.sampled for r in of_task if r.episode_id in found]
    failed = Counter(str(t.failure.who) for t in trajectories if t.failure)
    n_tasks = sum(map(_any_reward, sampled))
    if not n_tasks:
        raise ExperimentFailed(
            f"evaluation: none of {len(trajectories)} episodes on {asked.given.ref} has a reward; failed: {dict(failed)}"
        )
    return Score(
        reward=mean_reward(sampled),
        greedy=mean_reward(greedy) if any(map(_any_reward, greedy)) else None,
        pass_hat={str(k): estimate for k, estimate in pass_hat(sampled).items()},
        floor=asked.given.floor,
        n_tasks=n_tasks,
        left_out=len(sampled) - n_tasks,
        n_episodes=sum(t.reward is not None for t in trajectories),
        failed=dict(failed),
        truncated=dict(Counter(t.termination_reason for t in trajectories if t.status is Status.TRUNCATED)),
    )


def combined(parts: Sequence[tuple[float, Score]]) -> Score:
    """The figures over several datasets: means weighted by share, counts added up. pass^k up to the smallest k of all."""
    shares, scores = [share for share, _ in parts], [part for _, part in parts]

    def weighted(estimates: Sequence[Estimate | None]) -> Estimate | None:
        known = [(share, estimate) for share, estimate in zip(shares, estimates, strict=True) if estimate is not None]
        return combine(known) if len(known) == len(parts) else None

    hats = {k: weighted([part.pass_hat.get(k) for part in scores]) for k in scores[0].pass_hat}
    floors = [share * part.floor for share, part in parts if part.floor is not None]
    return Score(
        reward=combine([(share, part.reward) for share, part in parts]),
        greedy=weighted([part.greedy for part in scores]),
        pass_hat={k: estimate for k, estimate in hats.items() if estimate is not None},
        floor=sum(floors) if len(floors) == len(parts) else None,
        n_tasks=sum(part.n_tasks for part in scores),
        left_out=sum(part.left_out for part in scores),
        n_episodes=sum(part.n_episodes for part in scores),
        failed=dict(sum((Counter(part.failed) for part in scores), Counter[str]())),
        truncated=dict(sum((Counter(part.truncated) for part in scores), Counter[str]())),
    )


def _trials(requests: Sequence[Sequence[RolloutRequest]], found: Mapping[str, Trajectory]) -> list[list[float | None]]:
    """Per task the rewards of its episodes; None where one failed or is missing."""
    trajectories = [[found.get(request.episode_id) for request in of_task] for of_task in requests]
    return [[None if trajectory is None else trajectory.reward for trajectory in of_task] for of_task in trajectories]


def _any_reward(rewards: Sequence[float | None]) -> bool:
    return any(reward is not None for reward in rewards)


def _task_means(asked: Requests, found: Mapping[str, Trajectory]) -> dict[str, float]:
    """Task id -> mean reward of the sampled episodes that have one."""
    trials = zip(asked.given.tasks, _trials(asked.sampled, found), strict=True)
    return {task.task_id: mean_reward([rewards]).value for task, rewards in trials if _any_reward(rewards)}


def eval_metrics(outcome: Evaluation) -> dict[str, float]:
    """The figures under AReaL's ``eval-rollout/``; those of a dataset end in its name."""
    metrics = {**_score_metrics(outcome.total, ""), "timeperf/eval": outcome.wall_s}
    for name, part in outcome.datasets.items():
        metrics |= _score_metrics(part, f"/{name}")
    return metrics


def _score_metrics(part: Score, suffix: str) -> dict[str, float]:
    estimates = {"reward": part.reward, "greedy_reward": part.greedy, **{f"pass^{k}": value for k, value in part.pass_hat.items()}}
    plain = {"n_episodes": part.n_episodes, "failed": sum(part.failed.values()), "truncated": sum(part.truncated.values())}
    figures = {name: estimate.value for name, estimate in estimates.items() if estimate is not None} | plain
    if part.floor is not None:
        figures["floor"] = part.floor
    return {f"eval-rollout/{name}{suffix}": float(value) for name, value in figures.items()}
