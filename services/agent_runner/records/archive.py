"""Owns reading a trial's trajectories back from the store and packing them as one results file (`results.export`) with their figures.

Refuses to leave out failed episodes in silence: the summary counts them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from services.agent_runner.catalog import Catalog
from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.records.results import ResultsInfo, export
from services.agent_runner.store import StoreClient
from services.common import passk
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind, TaskRef, Trajectory


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which trajectories."""

    domain: str
    solo: bool
    kind: str = Kind.EVAL
    split: str | None = None
    policy_version: int | None = None
    """Only episodes whose calls were all answered by this version."""

    def keeps(self, one: Trajectory) -> bool:
        """Whether a trajectory is wanted."""
        task = one.task
        if (task.domain, task.solo_mode) != (self.domain, self.solo) or self.split not in (None, task.split):
            return False
        return self.policy_version is None or one.policy_versions == [self.policy_version]


@runtime_checkable
class KnowsToolKinds(Protocol):
    """A back end that says of its tools whether they read or write."""

    def tool_kinds(self) -> Mapping[str, str]:
        """Tool name -> read, write, think or generic."""
        ...


async def read_archive(store: StoreClient, wanted: Wanted) -> list[Trajectory]:
    """The trajectories, with messages, in completion order. Raises `RemoteError`."""
    found: list[Trajectory] = []
    after = 0
    while True:
        heads, following = await store.page(after, kind=wanted.kind)
        for head in heads:
            if wanted.keeps(head) and (whole := await store.get(head.episode_id)) is not None:
                found.append(whole)
        if following == after:
            return found
        after = following


@dataclass(frozen=True, slots=True)
class Packed:
    """A results file and what it shows."""

    results: dict[str, Any]
    """In tau2's format."""
    figures: list[str]
    """Lines for people: episodes, mean reward beside the floor, pass^k."""


async def pack(config: ExperimentConfig, catalog: Catalog, wanted: Wanted, trajectories: Sequence[Trajectory]) -> Packed:
    """The results file of ``trajectories``. Raises ValueError where there are none."""
    if not trajectories:
        raise ValueError(f"the store has no trajectory with {wanted}")
    played = list(dict.fromkeys(one.task for one in trajectories))
    found = {ref.task_id: await catalog.task(ref.domain, ref.split, ref.task_id) for ref in played}
    tasks = {task_id: task for task_id, (_, task) in found.items()}
    results = export(trajectories, tasks, info=_info(config, wanted, *found[played[0].task_id]))
    floors = [await catalog.task_floor(ref) for ref in played]
    lines = [f"{len(trajectories)} episodes of {len(tasks)} tasks", *figures(trajectories, sum(floors) / len(floors))]
    return Packed(results, lines)


def figures(trajectories: Sequence[Trajectory], floor: float) -> list[str]:
    """Mean reward beside the floor of doing nothing on the same tasks, and pass^k, each with its 95 % interval, one a line."""
    trials: dict[TaskRef, list[float | None]] = defaultdict(list)
    for one in trajectories:
        trials[one.task].append(one.reward)
    failed = sum(one.failure is not None for one in trajectories)
    if failed == len(trajectories):
        return [f"all {failed} failed"]
    rewards = list(trials.values())
    lines = [f"mean reward {passk.mean_reward(rewards)}, do-nothing floor {floor:.3f}, {failed} failed episodes left out"]
    return lines + [f"pass^{k} {estimate}" for k, estimate in passk.pass_hat(rewards).items()]


def _info(config: ExperimentConfig, wanted: Wanted, backend: DomainBackend, task: TaskSpec) -> ResultsInfo:
    env, gen = config.econfig, config.gconfig
    return ResultsInfo(
        domain=wanted.domain,
        policy=backend.policy(task, solo=wanted.solo),
        solo=wanted.solo,
        max_steps=env.max_steps,
        max_errors=env.max_errors,
        seed=config.seed,
        agent_model=f"{config.experiment_name}/{config.trial_name}",
        agent_arguments={"temperature": 0.0 if gen.greedy else gen.temperature, "top_p": gen.top_p, "max_tokens": gen.max_new_tokens},
        user_model=env.user_llm,
        user_arguments=env.user_llm_args or {},
        user_guidelines=None if wanted.solo else backend.user_guidelines(task),
        tool_kinds=backend.tool_kinds() if isinstance(backend, KnowsToolKinds) else {},
        retrieval=env.banking_retrieval if wanted.domain == "banking_knowledge" else None,
    )
