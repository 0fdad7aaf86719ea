"""Owns task files of one's own: a JSON list or JSON Lines in tau2's task schema, each task optionally with its own database snapshot.

Such a file stands where a split's name stands. The published AReaL tau2 RL set has this form: one file for several domains, a ``db_path``
relative to the file per task, some objects as JSON text. Refuses a file with any bad record; says which, which field, and what is wanted.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError

from services.agent_runner.domains.base import TaskSpec
from services.agent_runner.domains.data import explained

SUFFIXES = (".json", ".jsonl")
DOMAIN_FOLDERS = ("airline", "retail", "telecom", "banking_knowledge", "mock")
AS_TEXT = ("user_scenario", "initial_state", "evaluation_criteria")
"""Objects that may stand in a file as JSON text."""

RewardType = Literal["DB", "ENV_ASSERTION", "NL_ASSERTION", "ACTION", "COMMUNICATE"]
Side = Literal["assistant", "user"]


class InvalidTaskFile(ValueError):
    """A task file that cannot be used; the message names file, record, field and remedy."""


class _Instructions(BaseModel):
    task_instructions: str
    domain: str | None = None
    reason_for_call: str | None = None
    known_info: str | None = None
    unknown_info: str | None = None


class _Scenario(BaseModel):
    persona: str | None = None
    instructions: str | _Instructions


class _EnvCall(BaseModel):
    env_type: Side
    func_name: str
    arguments: dict[str, Any]
    assert_value: bool = True


class _InitializationData(BaseModel):
    agent_data: dict[str, Any] | None = None
    user_data: dict[str, Any] | None = None


class _Message(BaseModel):
    role: Literal["system", "assistant", "user", "tool"]


class _InitialState(BaseModel):
    initialization_data: _InitializationData | None = None
    initialization_actions: list[_EnvCall] | None = None
    message_history: list[_Message] | None = None


class _Action(BaseModel):
    name: str
    arguments: dict[str, Any]
    requestor: Side = "assistant"
    compare_args: list[str] | None = None


class _Criteria(BaseModel):
    actions: list[_Action] | None = None
    env_assertions: list[_EnvCall] | None = None
    communicate_info: list[str] | None = None
    nl_assertions: list[str] | None = None
    reward_basis: list[RewardType] = Field(default_factory=list[RewardType])


class _Task(BaseModel):
    """What the runner reads of a task; other fields are kept and ignored."""

    id: str = Field(min_length=1)
    user_scenario: _Scenario
    ticket: str | None = None
    initial_state: _InitialState | None = None
    evaluation_criteria: _Criteria | None = None
    user_tools: list[str] | None = None
    db_path: str | None = None


@dataclass(frozen=True)
class FileTask(TaskSpec):
    """A task from a file of one's own."""

    snapshot: Path | None = None
    """The database that this task starts from; None means the domain's."""

    @cached_property
    def digest(self) -> str:
        """sha256 over the task's canonical JSON and over its snapshot's bytes."""
        task = TaskSpec(self.domain, self.raw).digest
        return task if self.snapshot is None else hashlib.sha256(f"{task} {_file_digest(self.snapshot)}".encode()).hexdigest()


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_task_file(split: str) -> bool:
    """Whether what stands in a split's place is the path of a task file."""
    return split.endswith(SUFFIXES)


def read_task_file(path: str, domain: str, folder: str) -> tuple[FileTask, ...]:
    """The tasks of a file that are of this domain, in the file's order. Relative paths are relative to the working directory.

    ``folder`` is the domain whose name tasks carry (``telecom`` for telecom-workflow). Raises `InvalidTaskFile`.
    """
    file = Path(path).expanduser().resolve()
    tasks: dict[str, FileTask] = {}
    for where, record in _records(file):
        if named_domain(record) not in {None, folder}:
            continue
        task = _task(f"{file}: {where}", record, file.parent, domain)
        if task.task_id in tasks:
            raise InvalidTaskFile(f"{file}: {where}: id: {task.task_id!r} is there already; give each task an id of its own")
        tasks[task.task_id] = task
    if not tasks:
        raise InvalidTaskFile(f"{file}: no task of the domain {folder}; give its tasks user_scenario.instructions.domain = {folder!r}")
    return tuple(tasks.values())


def named_domain(record: dict[str, Any]) -> str | None:
    """The domain that a record says it is of, in its scenario or by the start of its id; None where it says nothing."""
    scenario = record.get("user_scenario")
    instructions = cast("dict[str, Any]", scenario).get("instructions") if isinstance(scenario, dict) else None
    said = cast("dict[str, Any]", instructions).get("domain") if isinstance(instructions, dict) else None
    if said in DOMAIN_FOLDERS:
        return cast("str", said)
    return next((name for name in DOMAIN_FOLDERS if str(record.get("id")).lower().startswith(f"{name}_")), None)


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, record) for each record of a file, objects that stand as text decoded."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidTaskFile(f"{file}: cannot be read ({error}); name a readable .json or .jsonl file") from error
    for where, record in _parsed_lines(file, text) if file.suffix == ".jsonl" else _parsed_list(file, text):
        if not isinstance(record, dict):
            raise InvalidTaskFile(f"{file}: {where}: is a {type(record).__name__}; each task must be a JSON object")
        fields = cast("dict[str, Any]", record)
        yield where, fields | {key: _decoded(f"{file}: {where}: {key}", fields[key]) for key in AS_TEXT if isinstance(fields.get(key), str)}


def _parsed_lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _decoded(f"{file}: line {number}", line)


def _parsed_list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    parsed = _decoded(str(file), text)
    if not isinstance(parsed, list):
        raise InvalidTaskFile(f"{file}: is a {type(parsed).__name__}; must be a list of tasks (a file with one task per line is .jsonl)")
    yield from ((f"task {index}", record) for index, record in enumerate(cast("list[Any]", parsed)))


def _decoded(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidTaskFile(f"{where}: not JSON ({error}); correct it or leave it out") from error


def _task(where: str, record: dict[str, Any], folder: Path, domain: str) -> FileTask:
    try:
        task = _Task.model_validate(record)
    except ValidationError as error:
        raise InvalidTaskFile(f"{where} (id {record.get('id')!r}): {explained(error)}; tau2's task schema is in docs/domains.md") from error
    snapshot = None if task.db_path is None else (folder / task.db_path).resolve()
    if snapshot is not None and not snapshot.is_file():
        raise InvalidTaskFile(f"{where} (id {task.id!r}): db_path: no file {snapshot}; it is relative to the task file's folder")
    return FileTask(domain, record, snapshot)
