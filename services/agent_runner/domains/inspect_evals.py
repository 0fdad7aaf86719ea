"""Owns the back end on the PyPI package `inspect-evals` for airline, retail and telecom: its tools and data, read once per process.

The package is imported when a back end is built (seconds); tasks, databases, policies and schemas are parsed on first use.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from services.agent_runner.domains.base import Session, TaskSpec, UnknownDomain
from services.agent_runner.domains.cow import Base
from services.agent_runner.domains.data import DataFiles, read_bytes, read_database
from services.agent_runner.domains.desks import AIRLINE, RETAIL
from services.agent_runner.domains.initial import bring_about
from services.agent_runner.domains.port import Toolkit, ToolkitSource, port_module
from services.agent_runner.domains.schemas import Schema, schemas_of_user, stop_schema
from services.agent_runner.domains.sessions import TableSession
from services.agent_runner.domains.taskfile import FileTask
from services.agent_runner.domains.tasks import TaskSets
from services.agent_runner.domains.telecom import TelecomBase, TelecomCode, TelecomSession

BaseT = TypeVar("BaseT")

SNAPSHOTS = 8
"""Databases of task files kept per domain, the least recently used dropped first; an airline one takes about 33 MB."""


class PortBackend(Generic[BaseT]):
    """What the domains share. ``BaseT`` is the domain's databases as they are read."""

    inline = True

    def __init__(self, domain: str, folder: str, agent: Toolkit, user: Toolkit | None) -> None:
        self.domain = domain
        self._files = DataFiles(folder)
        self._sets = TaskSets(domain, folder, self._load_tasks)
        self._agent = agent
        self._user_schemas: Mapping[str, Schema] = {} if user is None else user.schemas
        self._snapshot: Callable[[Path], BaseT] = lru_cache(maxsize=SNAPSHOTS)(self._read_base)

    @property
    def source(self) -> str:
        """Package, version and, where ``TAU2_DATA_DIR`` overrides data, a digest of that."""
        return self._files.source

    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes, ``base`` first."""
        return self._sets.splits()

    def tasks(self, split: str) -> Sequence[TaskSpec]:
        """The tasks of a split or task file, in the file's order. Raises `UnknownSplit`, `InvalidTaskFile`."""
        return self._sets.tasks(split)

    def task(self, split: str, task_id: str) -> TaskSpec:
        """One task. Raises `UnknownSplit`, `UnknownTask`, `InvalidTaskFile`."""
        return self._sets.task(split, task_id)

    def tool_schemas(self, task: TaskSpec, *, solo: bool) -> list[Schema]:
        """The agent's tools; solo also all of the user's, and ``done``."""
        agent = list(self._agent.schemas.values())
        return [*agent, *self._user_schemas.values(), stop_schema()] if solo else agent

    def user_tool_schemas(self, task: TaskSpec) -> list[Schema]:
        """The user's tools (`schemas_of_user`)."""
        return schemas_of_user(self._user_schemas, task)

    def user_guidelines(self, task: TaskSpec) -> str:
        """The user simulator's guidelines, in the variant for a user with tools where this task's has any."""
        return self._files.guidelines(tools=bool(self.user_tool_schemas(task)))

    def _base(self, task: TaskSpec) -> BaseT:
        snapshot = task.snapshot if isinstance(task, FileTask) else None
        return self._own_base if snapshot is None else self._snapshot(snapshot)

    @cached_property
    def _own_base(self) -> BaseT:
        return self._read_base(None)

    def _read_base(self, snapshot: Path | None) -> BaseT:
        """The databases that episodes start from; ``snapshot`` is a file for the agent's, None means the domain's."""
        raise NotImplementedError

    def _load_tasks(self) -> tuple[Sequence[dict[str, Any]], Mapping[str, Sequence[str]]]:
        return _read_json(self._files.path("tasks.json")), _read_json(self._files.path("split_tasks.json"))


@cache
def _read_json(path: Path) -> Any:
    """Parsed once for telecom and telecom-workflow."""
    return json.loads(read_bytes(path))


class TableBackend(PortBackend[Base]):
    """airline or retail: one database, no user tools, no solo mode."""

    def __init__(self, domain: str, tools: ToolkitSource, model: str) -> None:
        super().__init__(domain, domain, tools.load(), None)
        self._model: type[Any] = getattr(port_module(f"{domain}.data_model"), model)

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The policy file. Raises ValueError for solo mode."""
        self._refuse(solo)
        return self._files.text("policy.md")

    def new_session(self, task: TaskSpec, *, solo: bool) -> Session:
        """A fresh world in the task's initial state: a copy-on-write view, microseconds. Raises ValueError, also for solo mode."""
        self._refuse(solo)
        session = TableSession(self._agent, self._base(task))
        bring_about(session, task, solo=solo)
        return session

    def _refuse(self, solo: bool) -> None:
        if solo:
            raise ValueError(f"{self.domain.capitalize()} domain does not support solo mode; set solo_mode=false")

    def _read_base(self, snapshot: Path | None) -> Base:
        return Base(read_database(snapshot or self._files.path("db.json"), self._model))


class TelecomBackend(PortBackend[TelecomBase]):
    """telecom, with the technical support manual or the workflow variant of it."""

    def __init__(self, domain: str, support: str) -> None:
        self._code = telecom_code()
        super().__init__(domain, "telecom", self._code.kits["assistant"], self._code.kits["user"])
        self._support = support

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The main policy and the technical support policy, in upstream's layout."""
        main = self._files.text("main_policy_solo.md" if solo else "main_policy.md")
        # The manual is the same for both modes, the workflow is not.
        solo_workflow = solo and self._support == "workflow"
        support = self._files.text(f"tech_support_{self._support}{'_solo' if solo_workflow else ''}.md")
        return f"<main_policy>\n{main}\n</main_policy>\n<tech_support_policy>\n{support}\n</tech_support_policy>"

    def new_session(self, task: TaskSpec, *, solo: bool) -> Session:
        """A fresh world in the task's initial state: two small databases copied. Raises what an initialization action raises."""
        session = TelecomSession(self._code, self._base(task), solo=solo)
        bring_about(session, task, solo=solo)
        return session

    def _read_base(self, snapshot: Path | None) -> TelecomBase:
        agent = read_database(snapshot or self._files.path("db.toml"), self._code.agent_db)
        user = read_database(self._files.path("user_db.toml"), self._code.user_db)
        return TelecomBase(agent.model_dump(), user.model_dump())


@cache
def telecom_code() -> TelecomCode:
    """The port's telecom classes, shared by both policy variants."""
    return TelecomCode()


BACKENDS: dict[str, Callable[[], Any]] = {
    "airline": lambda: TableBackend("airline", AIRLINE, "FlightDB"),
    "retail": lambda: TableBackend("retail", RETAIL, "RetailDB"),
    "telecom": lambda: TelecomBackend("telecom", "manual"),
    "telecom-workflow": lambda: TelecomBackend("telecom-workflow", "workflow"),
}


def open_port(domain: str) -> Any:
    """The back end of a domain. Raises `UnknownDomain`, ValueError for a wrong ``TAU2_DATA_DIR``."""
    if domain not in BACKENDS:
        raise UnknownDomain(f"domain: {domain!r} is none of {', '.join(BACKENDS)}")
    return BACKENDS[domain]()
