"""Owns the task sets of a domain: splits and task files, parsed once per process, with an index by task id."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from services.agent_runner.domains.base import TaskSpec, UnknownSplit, UnknownTask
from services.agent_runner.domains.taskfile import is_task_file, read_task_file

DEFAULT_SPLIT = "base"

Loader = Callable[[], tuple[Sequence[dict[str, Any]], Mapping[str, Sequence[str]]]]
"""Gives the raw tasks in file order and the ids of each split."""


class TaskSets:
    """The tasks of one domain. ``folder`` is the domain's name in task files, where it differs from ``domain``."""

    def __init__(self, domain: str, folder: str, load: Loader) -> None:
        self._domain = domain
        self._folder = folder
        self._load = load
        self._files: dict[str, tuple[TaskSpec, ...]] = {}
        self._index: dict[str, dict[str, TaskSpec]] = {}

    def splits(self) -> Sequence[str]:
        """The names of the splits, upstream's default first."""
        return tuple(sorted(self._splits, key=lambda name: name != DEFAULT_SPLIT))

    def tasks(self, split: str) -> Sequence[TaskSpec]:
        """The tasks of a split or of a task file. Raises `UnknownSplit`, `InvalidTaskFile`."""
        if split in self._splits:
            return self._splits[split]
        if not is_task_file(split):
            known = ", ".join(self.splits())
            raise UnknownSplit(f"split: {self._domain} has no split {split!r}; it has {known}; or name a .json or .jsonl task file")
        if split not in self._files:
            self._files[split] = read_task_file(split, self._domain, self._folder)
        return self._files[split]

    def task(self, split: str, task_id: str) -> TaskSpec:
        """One task. Raises `UnknownSplit`, `UnknownTask`, `InvalidTaskFile`."""
        if split not in self._index:
            self._index[split] = {task.task_id: task for task in self.tasks(split)}
        task = self._index[split].get(task_id)
        if task is None:
            close = difflib.get_close_matches(task_id, list(self._index[split]), n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UnknownTask(f"task_id: {self._domain}/{split} has no task {task_id!r}{hint}", close)
        return task

    @cached_property
    def _splits(self) -> dict[str, tuple[TaskSpec, ...]]:
        raw, members = self._load()
        tasks = [TaskSpec(self._domain, task) for task in raw]
        chosen = {name: frozenset(ids) for name, ids in members.items()}
        return {name: tuple(task for task in tasks if task.task_id in ids) for name, ids in chosen.items()}
