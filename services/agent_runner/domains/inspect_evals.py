"""Owns the back end on the PyPI package `inspect-evals`: its telecom tools and data, read once per process.

Tasks, databases, policies and schemas are parsed on first use. Never calls the port's `initialize()`, which leaves a file behind per call.
"""

import gzip
import importlib
import json
import tomllib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.agent_runner.domains.base import TaskSpec, UnknownSplit
from services.agent_runner.domains.schemas import Schema, function_schema, stop_schema
from services.agent_runner.domains.telecom import TelecomCode, TelecomSession

SOURCE = f"inspect-evals {version('inspect-evals')}"


class TelecomBackend:
    """telecom, manual policy."""

    domain = "telecom"
    source = SOURCE

    def __init__(self) -> None:
        self._code = TelecomCode()
        package: Any = importlib.import_module("inspect_evals.tau2")
        self._data = Path(package.__path__[0]) / "data"

    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes."""
        return tuple(self._splits)

    def tasks(self, split: str) -> Sequence[TaskSpec]:
        """The tasks of a split, in the order of the task file. Raises `UnknownSplit`."""
        if split not in self._splits:
            raise UnknownSplit(f"split: {self.domain} has no split {split!r}; it has {', '.join(self._splits)}")
        return self._splits[split]

    def policy(self, *, solo: bool) -> str:
        """The main policy and the technical support manual, in upstream's layout."""
        main = self._text("main_policy_solo.txt" if solo else "main_policy.txt")
        manual = self._text("tech_support_manual.txt")
        return f"<main_policy>\n{main}\n</main_policy>\n<tech_support_policy>\n{manual}\n</tech_support_policy>"

    def tool_schemas(self, *, solo: bool) -> list[Schema]:
        """13 tools; solo 13 + 30 + ``done``."""
        return [*self._agent_schemas, *self._user_schemas, stop_schema()] if solo else list(self._agent_schemas)

    def user_tool_schemas(self) -> list[Schema]:
        """30 tools of the user's phone."""
        return list(self._user_schemas)

    def user_guidelines(self) -> str:
        """The user simulator's guidelines, in the variant with tools."""
        return _read(self._data / "user_simulator" / "simulation_guidelines_tools.txt")

    def new_session(self, task: TaskSpec, *, solo: bool) -> TelecomSession:
        """A fresh world with the task's initialization done: two small databases validated anew, about 0.2 ms."""
        agent_db = self._code.agent_db.model_validate(self._agent_data)
        session = TelecomSession(self._code, agent_db, self._code.user_db.model_validate(self._user_data), solo=solo)
        session.initialize(task)
        return session

    def _text(self, name: str) -> str:
        return _read(self._data / "domains" / "telecom" / name)

    @cached_property
    def _splits(self) -> dict[str, tuple[TaskSpec, ...]]:
        folder = self._data / "domains" / "telecom"
        raw: list[dict[str, Any]] = json.loads(gzip.decompress((folder / "tasks.json.gz").read_bytes()))
        tasks = [TaskSpec(self.domain, task) for task in raw]
        members: dict[str, list[str]] = json.loads((folder / "split_tasks.json").read_text(encoding="utf-8"))
        sets = {name: frozenset(ids) for name, ids in members.items()}
        return {name: tuple(task for task in tasks if task.task_id in ids) for name, ids in sets.items()}

    @cached_property
    def _agent_data(self) -> dict[str, Any]:
        # Dumped from a validated database: validating plain Python values again is three times faster than parsing dates.
        return self._code.agent_db.model_validate(tomllib.loads(self._text("db.toml"))).model_dump()

    @cached_property
    def _user_data(self) -> dict[str, Any]:
        return self._code.user_db.model_validate(tomllib.loads(self._text("user_db.toml"))).model_dump()

    @cached_property
    def _agent_schemas(self) -> list[Schema]:
        return [function_schema(name, getattr(self._code.agent_class, name), doc) for name, doc in self._code.agent_docs.items()]

    @cached_property
    def _user_schemas(self) -> list[Schema]:
        return [function_schema(name, getattr(self._code.user_class, name), doc) for name, doc in self._code.user_docs.items()]


def _read(path: Path) -> str:
    # The port's text files end in one newline that upstream's do not have.
    return path.read_text(encoding="utf-8").removesuffix("\n")
