"""Owns what this runner can play, for its routes: domains, splits, the task files that the config names, tasks, do-nothing floors.

Packages and task files are loaded in a thread, once, because that takes seconds. Refuses files that the config does not name: a request
must not choose what is read from the disk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from services.agent_runner.domains import DOMAINS, DomainBackend, TaskSpec, UnknownDomain, UnknownSplit, UnknownTask, open_backend, warm_up
from services.agent_runner.reward.floor import Floor, Floors, do_nothing_floor
from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.errors import BadRequest, NotFound, ServiceError
from services.common.wire.rollouts import TaskRef, TaskStamp

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The tasks of a split or of a task file."""

    backend: DomainBackend
    split: str
    tasks: Sequence[TaskSpec]


@dataclass(frozen=True, slots=True)
class DomainSummary:
    """One domain: its splits with their sizes, or why it cannot be had here."""

    domain: str
    source: str = ""
    splits: dict[str, int] = field(default_factory=dict[str, int])
    problem: str = ""


class Catalog:
    """What can be played. Errors are `BadRequest` and `NotFound` that name the field and what would be right."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self._floors = Floors(config.econfig.retail_reward)
        self._task_floors: dict[tuple[str, str, bool], float] = {}
        self._files = _task_files(config)
        self._known: dict[tuple[str, str], TaskSet] = {}
        # Imports hold a lock of their own, so loading two packages at once gains nothing.
        self._one_at_a_time = asyncio.Lock()

    async def preload(self) -> None:
        """Loads what the config trains on, so that no first episode waits for it. Raises whatever a package raises."""
        for ref in self._config.train_dataset.shares():
            found = await self.tasks(ref.domain, ref.split)
            await self._loaded(partial(warm_up, found.backend, ref.split))

    async def tasks(self, domain: str, split: str) -> TaskSet:
        """A task set."""
        if DatasetRef(domain, split).is_file and (domain, split) not in self._files:
            raise BadRequest(f"split: {split!r} is not a task file that train_dataset or valid_dataset names", param="split")
        if (domain, split) not in self._known:
            self._known[domain, split] = await self._explained(self._loaded(lambda: self._task_set(domain, split)))
        return self._known[domain, split]

    async def task(self, domain: str, split: str, task_id: str) -> tuple[DomainBackend, TaskSpec]:
        """One task with its back end."""
        backend = (await self.tasks(domain, split)).backend
        # In a thread for the sake of a wrong id: finding similar ones in a large split takes long.
        return backend, await self._explained(asyncio.to_thread(backend.task, split, task_id))

    async def stamp(self, ref: TaskRef) -> TaskStamp:
        """Which data a task is of; unknown where there is no such task."""
        try:
            backend, task = await self.task(ref.domain, ref.split, ref.task_id)
        except ServiceError:
            return TaskStamp(source="unknown", digest="")
        return TaskStamp(source=backend.source, digest=task.digest)

    async def floor(self, found: TaskSet, *, solo: bool) -> Floor:
        """What doing nothing earns on a task set."""
        return await self._floors.of(found.backend, found.split, solo=solo)

    async def task_floor(self, ref: TaskRef) -> float:
        """What doing nothing earns on one task; 0 where it cannot be played in this mode."""
        backend, task = await self.task(ref.domain, ref.split, ref.task_id)
        key = (task.domain, task.digest, ref.solo_mode)
        if key not in self._task_floors:
            variant = self._config.econfig.retail_reward
            computed = await asyncio.to_thread(do_nothing_floor, backend, [task], solo=ref.solo_mode, retail_reward=variant)
            self._task_floors[key] = computed.mean or 0.0
        return self._task_floors[key]

    async def domains(self) -> list[DomainSummary]:
        """Every domain there is. One that cannot be loaded says why."""
        return [await self._loaded(lambda name=name: self._summary(name)) for name in DOMAINS]

    async def default_split(self, domain: str) -> str:
        """The split that the config trains on, where it is of this domain, else the domain's own default."""
        for ref in self._config.train_dataset.shares():
            if ref.domain == domain:
                return ref.split
        return (await self._explained(self._loaded(lambda: self._open(domain)))).splits()[0]

    def _open(self, domain: str) -> DomainBackend:
        econfig = self._config.econfig
        return open_backend(domain, econfig.backend, retrieval=econfig.banking_retrieval)

    def _task_set(self, domain: str, split: str) -> TaskSet:
        backend = self._open(domain)
        return TaskSet(backend, split, backend.tasks(split))

    def _summary(self, domain: str) -> DomainSummary:
        try:
            backend = self._open(domain)
            return DomainSummary(domain, backend.source, {split: len(backend.tasks(split)) for split in backend.splits()})
        except Exception as error:  # noqa: BLE001 - boundary to packages and data files that may be missing or broken in any way
            return DomainSummary(domain, problem=f"{type(error).__name__}: {error}")

    async def _explained(self, loading: Awaitable[T]) -> T:
        try:
            return await loading
        except UnknownDomain as error:
            raise BadRequest(str(error), param="domain") from error
        except UnknownTask as error:
            raise NotFound(str(error), param="task_id", extra={"close": list(error.close)}) from error
        except (UnknownSplit, ValueError) as error:
            raise BadRequest(str(error), param="split") from error

    async def _loaded(self, load: Callable[[], T]) -> T:
        async with self._one_at_a_time:
            return await asyncio.to_thread(load)


def _task_files(config: ExperimentConfig) -> frozenset[tuple[str, str]]:
    refs = [*config.train_dataset.shares(), *config.valid_dataset.shares(), DatasetRef.parse(config.sft.dataset)]
    return frozenset((ref.domain, ref.split) for ref in refs if ref.is_file)
