"""Owns which episodes are asked for, in which order and with which seeds: pure functions of the config and a counter.

The same counter gives the same requests with the same ids, so asking again after a crash is harmless (the store knows them already).
"""

import hashlib
import random
from collections.abc import Container, Sequence
from dataclasses import dataclass

from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.config.laptop import DemonstrationMix
from services.common.wire.rollouts import Demonstration, Kind, RolloutRequest, Sampling, TaskRef


@dataclass(frozen=True, slots=True)
class Task:
    """What the agent runner's listing says of a task."""

    task_id: str
    solo: bool
    scenario: str = ""
    """Equal for tasks that tell the agent the same."""
    digest: str = ""
    """Of the task's content."""
    n_actions: int = 0
    """Reference actions."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The tasks of a dataset that can be played, sorted by id."""

    ref: DatasetRef
    tasks: list[Task]
    floor: float | None = None
    """Mean reward of an agent that does nothing; None where it is not known."""

    @property
    def digest(self) -> str:
        """sha256 over the names and contents of all tasks."""
        content = "\n".join(f"{task.task_id} {task.digest}" for task in self.tasks)
        return hashlib.sha256(content.encode()).hexdigest()

    def without(self, excluded: Container[str]) -> "TaskSet":
        """The tasks whose ids are not ``excluded``. They are another set, so the floor is not theirs."""
        return TaskSet(self.ref, [task for task in self.tasks if task.task_id not in excluded])

    def up_to(self, max_actions: int) -> "TaskSet":
        """The tasks with at most so many reference actions; 0 is no limit. They have no floor either."""
        return TaskSet(self.ref, [task for task in self.tasks if not max_actions or task.n_actions <= max_actions])


def seed_of(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


def epoch_index(n: int, position: int, seed: int) -> int:
    """Which of ``n`` items stands at ``position`` of endlessly many epochs, each shuffled by itself."""
    epoch, offset = divmod(position, n)
    order = list(range(n))
    random.Random(seed_of(seed, "epoch", epoch)).shuffle(order)
    return order[offset]


def policy_sampling(config: ExperimentConfig, seed: int, *, greedy: bool = False) -> Sampling:
    """``gconfig`` on the wire."""
    temperature = 0.0 if greedy or config.gconfig.greedy else config.gconfig.temperature
    return Sampling(temperature=temperature, top_p=config.gconfig.top_p, max_tokens=config.gconfig.max_new_tokens, seed=seed)


def task_ref(config: ExperimentConfig, ref: DatasetRef, task: Task) -> TaskRef:
    """A task of the dataset ``ref``."""
    return TaskRef(domain=ref.domain, split=ref.split, task_id=task.task_id, solo_mode=config.econfig.solo_mode)


def train_group(config: ExperimentConfig, task: TaskRef, number: int, version: int) -> list[RolloutRequest]:
    """The requests of the ``number``-th group (0-based)."""
    group_id = f"{config.trial_name}-rl-{number:05d}"
    return [
        RolloutRequest(
            episode_id=f"{group_id}-{index}",
            group_id=group_id,
            sample_index=index,
            group_size=config.gconfig.n_samples,
            kind=Kind.TRAIN,
            task=task,
            sampling=policy_sampling(config, seed_of(config.seed, group_id, index)),
            max_steps=config.econfig.max_steps,
            seed=seed_of(config.seed, group_id, index, "env"),
            policy_version=version,
        )
        for index in range(config.gconfig.n_samples)
    ]


def eval_group(config: ExperimentConfig, name: str, task: TaskRef, number: int, version: int, *, greedy: bool) -> list[RolloutRequest]:
    """The requests of the evaluation pass ``name`` for its ``number``-th task. The seeds are those of every other pass."""
    size = 1 if greedy else config.valid_dataset.n_samples or config.evaluator.n_samples
    group_id = f"{config.trial_name}-eval-{name}-{'greedy' if greedy else 'sampled'}-{number:04d}"
    seeds = [seed_of(config.evaluator.seed, number, index, greedy) for index in range(size)]
    return [
        RolloutRequest(
            episode_id=f"{group_id}-{index}",
            group_id=group_id,
            sample_index=index,
            group_size=size,
            kind=Kind.EVAL,
            task=task,
            sampling=policy_sampling(config, seed, greedy=greedy),
            max_steps=config.econfig.max_steps,
            seed=seed,
            policy_version=version,
        )
        for index, seed in enumerate(seeds)
    ]


def demonstrations(config: ExperimentConfig, given: TaskSet) -> list[RolloutRequest]:
    """The requests of all demonstrations, with the qualities in the shares of ``sft.mix``.

    Scenarios take turns, each over shuffled epochs of its own tasks: in telecom/full two thirds of the tasks tell the agent the same,
    and the rest would hardly be demonstrated.
    """
    qualities = mixed(config.sft.mix, config.sft.n_demonstrations, config.seed)
    scenarios = by_scenario(given.tasks)
    requests: list[RolloutRequest] = []
    for number, quality in enumerate(qualities):
        episode_id = f"{config.trial_name}-demo-{number:05d}"
        task = stratified(scenarios, number, seed_of(config.seed, "demo"))
        requests.append(
            RolloutRequest(
                episode_id=episode_id,
                group_id=episode_id,
                kind=Kind.DEMO,
                task=task_ref(config, given.ref, task),
                sampling=policy_sampling(config, 0),
                max_steps=config.econfig.max_steps,
                seed=seed_of(config.seed, episode_id),
                demonstration=Demonstration.model_validate({"quality": quality}),
            )
        )
    return requests


def by_scenario(tasks: Sequence[Task]) -> list[tuple[str, list[Task]]]:
    """The tasks of each scenario, scenarios by name."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.scenario, []).append(task)
    return sorted(groups.items())


def stratified(scenarios: Sequence[tuple[str, list[Task]]], number: int, seed: int) -> Task:
    """The ``number``-th task where scenarios take turns."""
    turn, which = divmod(number, len(scenarios))
    scenario, tasks = scenarios[which]
    return tasks[epoch_index(len(tasks), turn, seed_of(seed, scenario))]


def mixed(mix: DemonstrationMix, n: int, seed: int) -> list[str]:
    """``n`` qualities in the shares of ``mix`` (largest remainder), shuffled. Raises ValueError where all shares are 0."""
    shares = mix.model_dump()
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("sft.mix: all shares are 0; give at least one quality a positive share")
    exact = {quality: n * share / total for quality, share in shares.items()}
    counts = {quality: int(value) for quality, value in exact.items()}
    by_remainder = sorted(exact, key=lambda quality: counts[quality] - exact[quality])
    for quality in by_remainder[: n - sum(counts.values())]:
        counts[quality] += 1
    qualities = [quality for quality, count in counts.items() for _ in range(count)]
    random.Random(seed_of(seed, "mix")).shuffle(qualities)
    return qualities
