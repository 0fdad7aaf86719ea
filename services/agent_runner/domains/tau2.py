"""Owns the back end on upstream tau2-bench (sierra-research, 1.0 or newer, Python 3.12 or newer): its tools, databases and task files.

Upstream's package ``__init__`` imports its runner, its command line and an LLM client, which have no place in an asyncio service, so the
package is registered without running it. Refuses upstream's orchestrator and evaluator: turn protocol and reward are ours.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from services.agent_runner.domains.banking_retrieval import DEFAULT_VARIANT
from services.agent_runner.domains.base import TaskSpec, UnknownDomain
from services.agent_runner.domains.schemas import Schema, schemas_of_user, stop_schema
from services.agent_runner.domains.tasks import DEFAULT_SPLIT, TaskSets
from services.agent_runner.domains.tau2_banking import Retrieval
from services.agent_runner.domains.tau2_worlds import WORLDS, Tau2Session, World

PACKAGE = "tau2"


@cache
def tau2_available() -> bool:
    """Whether upstream's package is installed here. Imports nothing; the package of that name on PyPI is another one."""
    if sys.version_info < (3, 12):
        return False
    try:
        major = int(importlib.metadata.version(PACKAGE).split(".")[0])
        spec = importlib.util.find_spec(PACKAGE)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    folders = (spec.submodule_search_locations if spec else None) or []
    return major >= 1 and any((Path(folder) / "domains" / "telecom").is_dir() for folder in folders)


def load() -> None:
    """Registers upstream's package without running its ``__init__``. Does nothing where somebody has imported it already.

    Raises `UnknownDomain` where it is not installed.
    """
    if not tau2_available():
        raise UnknownDomain("econfig.backend: upstream tau2-bench is not installed here, it needs Python 3.12; see docs/upstream.md")
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None, "tau2_available found it"
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)


@cache
def upstream(module: str) -> Any:
    """A module of upstream's by its name inside the package."""
    load()
    importlib.import_module("loguru").logger.disable(PACKAGE)
    with warnings.catch_warnings():
        # What upstream's dependencies deprecate at import concerns their authors.
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{PACKAGE}.{module}")


def open_tau2(domain: str, retrieval: str = DEFAULT_VARIANT) -> "Tau2Backend":
    """The back end of a domain. Raises `UnknownDomain`, FileNotFoundError where ``TAU2_DATA_DIR`` has no data."""
    if domain not in WORLDS:
        raise UnknownDomain(f"domain: tau2 has no domain {domain!r}; it has {', '.join(WORLDS)}")
    return Tau2Backend(domain, retrieval)


class Tau2Backend:
    """One domain of upstream's. Data is read and validated on first use, once per process."""

    def __init__(self, domain: str, retrieval: str = DEFAULT_VARIANT) -> None:
        self.domain = domain
        self._data: Path = upstream("utils.utils").DATA_DIR / "tau2"
        self._folder = self._data / "domains" / WORLDS[domain].folder
        if not self._folder.is_dir():
            raise FileNotFoundError(f"TAU2_DATA_DIR: {self._folder} does not exist; set it to the `data` folder of a tau2-bench checkout")
        self._retrieval = Retrieval(retrieval, self._folder, upstream) if domain == "banking_knowledge" else None
        # A search goes through 700 documents, and a policy may write a regular expression of any cost.
        self.inline = self._retrieval is None or self._retrieval.inline
        self._sets = TaskSets(domain, WORLDS[domain].folder, self._load_tasks)

    @cached_property
    def source(self) -> str:
        """Upstream's version and a digest of the domain's tasks, databases and policies."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self._folder.rglob("*") if path.suffix in (".json", ".toml", ".md")):
            digest.update(path.relative_to(self._folder).as_posix().encode() + b"\0" + path.read_bytes())
        return f"tau2 {importlib.metadata.version(PACKAGE)} data {digest.hexdigest()[:12]}"

    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes, ``base`` first."""
        return self._sets.splits()

    def tasks(self, split: str) -> Sequence[TaskSpec]:
        """The tasks of a split or task file, in the file's order. Raises `UnknownSplit`, `InvalidTaskFile`."""
        return self._sets.tasks(split)

    def task(self, split: str, task_id: str) -> TaskSpec:
        """One task. Raises `UnknownSplit`, `UnknownTask`, `InvalidTaskFile`."""
        return self._sets.task(split, task_id)

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The policy as upstream's environment puts it together. Raises ValueError where the domain cannot be played solo."""
        return self._world.policy(task, solo=solo)

    def tool_schemas(self, task: TaskSpec, *, solo: bool) -> list[Schema]:
        """The agent's tools; solo also the user's, and ``done``."""
        return [*self._agent_schemas.values(), *self._user_schemas.values(), stop_schema()] if solo else list(self._agent_schemas.values())

    def user_tool_schemas(self, task: TaskSpec) -> list[Schema]:
        """The user's tools (`schemas_of_user`)."""
        return schemas_of_user(self._user_schemas, task)

    def user_guidelines(self, task: TaskSpec) -> str:
        """The general part of the user simulator's system prompt; upstream's runtime persona is not set, so its place is empty."""
        variant = "simulation_guidelines_tools.md" if self.user_tool_schemas(task) else "simulation_guidelines.md"
        text = (self._data / "user_simulator" / variant).read_text(encoding="utf-8")
        return text.replace("<PERSONA_GUIDELINES>", "")

    def new_session(self, task: TaskSpec, *, solo: bool) -> Tau2Session:
        """A fresh world in the task's initial state. Raises ValueError where that state is impossible."""
        return self._world.session(task, solo=solo)

    def tool_kinds(self) -> Mapping[str, str]:
        """Tool name -> ``read``, ``write``, ``think`` or ``generic``, as upstream classifies it."""
        return self._world.tool_kinds()

    @cached_property
    def _world(self) -> World:
        return World(self.domain, WORLDS[self.domain], self._folder, upstream, self._retrieval)

    @cached_property
    def _agent_schemas(self) -> dict[str, Schema]:
        return self._world.schemas("assistant")

    @cached_property
    def _user_schemas(self) -> dict[str, Schema]:
        return self._world.schemas("user")

    def _load_tasks(self) -> tuple[Sequence[dict[str, Any]], Mapping[str, Sequence[str]]]:
        # Upstream reads banking from one file a task where there are any; the list beside them is for its web pages.
        files = sorted((self._folder / "tasks").glob("task_*.json"))
        tasks = [_read(file) for file in files] if files else _read(self._folder / "tasks.json")
        splits = self._folder / "split_tasks.json"
        return tasks, _read(splits) if splits.exists() else {DEFAULT_SPLIT: [task["id"] for task in tasks]}


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
