"""Owns sessions on upstream's environments: a database validated once per process, a copy per episode, upstream's own tool code on it.

Large databases (airline, retail) are copied on write, small ones validated anew. Everything that a task's initial state asks for is done by
upstream's `Environment.set_state`. Refuses upstream's ways of building an environment, which read all files again each time.
"""

import hashlib
import json
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from services.agent_runner.domains.arithmetic import calculate
from services.agent_runner.domains.base import Action, EnvCall, Requestor, TaskSpec, ToolResult
from services.agent_runner.domains.cow import Base, Database
from services.agent_runner.domains.data import read_database
from services.agent_runner.domains.schemas import Schema
from services.agent_runner.domains.taskfile import FileTask
from services.agent_runner.domains.tau2_banking import Modules, Retrieval, called

log = logging.getLogger(__name__)

REMEMBERED = 256
"""Tasks whose merged databases are kept, about 300 kB each."""
SNAPSHOTS = 9
"""Databases kept per domain, its own and those of task files, the least recently used dropped first."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a domain's parts are in upstream's package and data."""

    folder: str
    tools: str
    database: str
    database_file: str
    user_tools: str | None = None
    user_database: str | None = None
    user_database_file: str | None = None
    environment: str = "environment.environment:Environment"
    copy_on_write: bool = False
    solo: bool = False
    """Whether the agent can play without a user."""


def _telecom() -> Recipe:
    return Recipe(
        folder="telecom",
        tools="domains.telecom.tools:TelecomTools",
        database="domains.telecom.data_model:TelecomDB",
        database_file="db.toml",
        user_tools="domains.telecom.user_tools:TelecomUserTools",
        user_database="domains.telecom.user_data_model:TelecomUserDB",
        user_database_file="user_db.toml",
        environment="domains.telecom.environment:TelecomEnvironment",
        solo=True,
    )


WORLDS: dict[str, Recipe] = {
    "airline": Recipe(
        folder="airline",
        tools="domains.airline.tools:AirlineTools",
        database="domains.airline.data_model:FlightDB",
        database_file="db.json",
        copy_on_write=True,
    ),
    "retail": Recipe(
        folder="retail",
        tools="domains.retail.tools:RetailTools",
        database="domains.retail.data_model:RetailDB",
        database_file="db.json",
        copy_on_write=True,
    ),
    "telecom": _telecom(),
    "telecom-workflow": _telecom(),
    "banking_knowledge": Recipe(
        folder="banking_knowledge",
        tools="domains.banking_knowledge.tools:KnowledgeTools",
        database="domains.banking_knowledge.data_model:TransactionalDB",
        database_file="db.json",
        user_tools="domains.banking_knowledge.tools:KnowledgeUserTools",
    ),
    "mock": Recipe(
        folder="mock",
        tools="domains.mock.tools:MockTools",
        database="domains.mock.data_model:MockDB",
        database_file="db.json",
        user_tools="domains.mock.user_tools:MockUserTools",
        user_database="domains.mock.user_data_model:MockUserDB",
        user_database_file="user_db.json",
        solo=True,
    ),
}


class World:
    """What the sessions of a domain have in common."""

    def __init__(self, domain: str, recipe: Recipe, folder: Path, modules: Modules, retrieval: Retrieval | None) -> None:
        self._domain = domain
        self._recipe = recipe
        self._folder = folder
        self._modules = modules
        self._retrieval = retrieval
        self._policies: dict[bool, str] = {}
        self._merged: OrderedDict[str, bytes] = OrderedDict()
        self._base: Callable[[Path | None], Base] = lru_cache(maxsize=SNAPSHOTS)(self._read_base)
        self._pristine: Callable[[Path | None], bytes] = lru_cache(maxsize=SNAPSHOTS)(self._read_pristine)

    def session(self, task: TaskSpec, *, solo: bool) -> "Tau2Session":
        """A fresh world in the task's initial state. Raises ValueError where that state is impossible."""
        self._refuse(solo)
        try:
            environment = self._environment(task)
            environment.solo_mode = solo
            _set_state(environment, self._initial_state(task), already_merged=self._merges(task))
        except Exception as error:
            # The boundary to upstream's code: whatever it raises here, the task cannot be begun.
            raise ValueError(f"task {task.task_id}: its initial state is impossible: {error}") from error
        return (Tau2Session if self._retrieval is None else BankingSession)(environment, self._modules)

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """Upstream's policy text. Raises ValueError where upstream has no solo mode."""
        self._refuse(solo)
        if self._retrieval is not None:
            return self._retrieval.policy(task)
        if solo not in self._policies:
            self._policies[solo] = self._read_policy(solo)
        return self._policies[solo]

    def _read_policy(self, solo: bool) -> str:
        module = self._modules(f"domains.{self._recipe.folder}.environment")
        chosen: dict[str, Any] = {"db": self._model(self._recipe.database).model_construct(), "solo_mode": solo}
        if self._recipe.folder == "telecom":
            chosen |= {"db": None, "policy_type": "workflow" if self._domain == "telecom-workflow" else "manual"}
        return module.get_environment(**chosen).get_policy()

    def _refuse(self, solo: bool) -> None:
        if solo and not self._recipe.solo:
            raise ValueError(f"solo_mode: {self._domain} cannot be played without a user")

    def schemas(self, requestor: Requestor) -> dict[str, Schema]:
        """Tool name -> OpenAI schema in upstream's order; empty where that side has no tools."""
        environment = self._environment(None)
        toolkit = environment.user_tools if requestor == "user" else environment.tools
        return {name: tool.openai_schema for name, tool in toolkit.get_tools().items()} if toolkit else {}

    def tool_kinds(self) -> dict[str, str]:
        """Tool name -> upstream's tool type; a name that both sides have is the user's, as in upstream's metrics."""
        environment = self._environment(None)
        kits = [kit for kit in (environment.tools, environment.user_tools) if kit is not None]
        return {name: kit.tool_type(name).value for kit in kits for name in kit.get_tools()}

    def _environment(self, task: TaskSpec | None) -> Any:
        recipe = self._recipe
        database = self._database(task)
        tools = self._model(recipe.tools)(database) if self._retrieval is None else self._retrieval.tools(database, task)
        if recipe.user_tools is None:
            return self._model(recipe.environment)(self._domain, "", tools)
        user_database = pickle.loads(self._pristine_user) if recipe.user_database else database
        user_tools = self._model(recipe.user_tools)(user_database)
        if recipe.folder == "telecom":
            # Upstream keeps this one in the class, where breaking the VPN of one episode breaks it for all that follow.
            user_tools.default_vpn_details = self._vpn_details.model_copy(deep=True)
        return self._model(recipe.environment)(self._domain, "", tools, user_tools)

    def _database(self, task: TaskSpec | None) -> Any:
        snapshot = task.snapshot if isinstance(task, FileTask) else None
        data = None if task is None else task.initialization_data
        if self._recipe.copy_on_write:
            database = Database(self._base(snapshot))
            if data and data.get("user_data") is not None:
                raise ValueError("initialization_data: user_data is given, but the user of this domain has no database")
            database.merge((data or {}).get("agent_data") or {})
            return database
        if task is not None and data and self._merges(task):
            return pickle.loads(self._merged_database(task, snapshot))
        return pickle.loads(self._pristine(snapshot))

    def _merges(self, task: TaskSpec) -> bool:
        """Whether a task's initialization data is merged here and not by upstream: once for all its episodes, or because of the view."""
        return self._recipe.copy_on_write or self._retrieval is not None

    def _merged_database(self, task: TaskSpec, snapshot: Path | None) -> bytes:
        if task.digest in self._merged:
            self._merged.move_to_end(task.digest)
            return self._merged[task.digest]
        database = pickle.loads(self._pristine(snapshot))
        for side in ("agent_data", "user_data"):
            if (data := task.initialization_data.get(side)) is not None:
                database = self._modules("utils").update_pydantic_model_with_dict(database, data)
        self._merged[task.digest] = pickle.dumps(database)
        if len(self._merged) > REMEMBERED:
            self._merged.popitem(last=False)
        return self._merged[task.digest]

    def _initial_state(self, task: TaskSpec) -> Any:
        return self._modules("data_model.tasks").InitialState.model_validate(task.raw.get("initial_state") or {})

    def _model(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        return getattr(self._modules(module), attribute)

    def _read_base(self, snapshot: Path | None) -> Base:
        return Base(self._read_database(snapshot))

    def _read_pristine(self, snapshot: Path | None) -> bytes:
        return pickle.dumps(self._read_database(snapshot))

    def _read_database(self, snapshot: Path | None) -> Any:
        return read_database(snapshot or self._folder / self._recipe.database_file, self._model(self._recipe.database))

    @cached_property
    def _pristine_user(self) -> bytes:
        return pickle.dumps(
            read_database(self._folder / (self._recipe.user_database_file or ""), self._model(self._recipe.user_database or ""))
        )

    @cached_property
    def _vpn_details(self) -> Any:
        return self._model(self._recipe.user_tools or "").default_vpn_details.model_copy(deep=True)


def _set_state(environment: Any, state: Any, *, already_merged: bool) -> None:
    environment.set_state(
        initialization_data=None if already_merged else state.initialization_data,
        initialization_actions=state.initialization_actions,
        message_history=state.message_history or [],
    )


class Tau2Session:
    """One episode's world on one of upstream's environments."""

    def __init__(self, environment: Any, modules: Modules) -> None:
        self._environment = environment
        self._calls = modules("data_model.tasks")

    def call(self, name: str, arguments: dict[str, Any], requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool, as upstream's `Environment.get_response` does. Never raises."""
        environment = self._environment
        try:
            if _is_power(name, arguments) and environment.tools.has_tool(name):
                value: Any = calculate(arguments["expression"])
            else:
                value = environment.make_tool_call(name, requestor=requestor, **arguments)
            environment.sync_tools()
            return ToolResult(environment.to_json_str(value))
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a tool raises is what the caller of the tool reads
            return ToolResult(f"Error: {error}", error=True)

    def run(self, call: EnvCall) -> Any:
        """Runs any function of the agent's or user's side. Raises whatever it raises."""
        function_call = self._calls.EnvFunctionCall.model_construct(env_type=call.env_type, func_name=call.name, arguments=call.arguments)
        return self._environment.run_env_function_call(function_call)

    def replay(self, action: Action) -> None:
        """Runs a reference action as upstream's evaluator does: nothing is kept in step, and an action that fails changes nothing."""
        try:
            self._environment.make_tool_call(tool_name=action.name, requestor=action.requestor, **action.arguments)
        except Exception as error:  # noqa: BLE001 - same boundary as `call`: some reference actions of tau2 fail by design
            log.info("reference action %s failed: %s", action.name, error)

    def fingerprint(self) -> tuple[str, str]:
        """A digest of each database; of a copy-on-write one, of what differs from its base."""
        agent = _digest(self._environment.tools.db)
        kit = self._environment.user_tools
        if kit is None:
            return agent, ""
        return agent, agent if kit.db is self._environment.tools.db else _digest(kit.db)

    def db_hashes(self) -> tuple[str | None, str | None]:
        """Upstream's hashes of the whole databases."""
        kits = (self._environment.tools, self._environment.user_tools)
        agent, user = (None if kit is None else _whole(kit.db) for kit in kits)
        return agent, user


class BankingSession(Tau2Session):
    """One episode's bank."""

    def call(self, name: str, arguments: dict[str, Any], requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool. Never raises."""
        return called(self._environment.tools.db, name, requestor, lambda: super(BankingSession, self).call(name, arguments, requestor))


def _is_power(name: str, arguments: dict[str, Any]) -> bool:
    """Whether a call asks for arithmetic that upstream's `eval` might take hours for."""
    expression = arguments.get("expression")
    return name == "calculate" and len(arguments) == 1 and isinstance(expression, str) and "**" in expression


def _digest(database: Any) -> str:
    return database.fingerprint() if isinstance(database, Database) else _whole(database)


def _whole(database: Any) -> str:
    if isinstance(database, Database):
        return database.sha256()
    text = json.dumps(database.model_dump(warnings=False), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
