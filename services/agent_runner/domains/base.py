"""Owns the one interface behind which tau2 domains live: a back end (a package's tools, databases and data) and its sessions.

A back end is built once per process and hands out cheap, isolated sessions, one per episode. Refuses protocol and reward: who speaks
when is the orchestrator's, what an end state is worth is the evaluator's.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

Requestor = Literal["assistant", "user"]

STOP_TOOL = "done"
"""The tool with which a solo agent ends the episode. It belongs to the agent, not to the environment."""


class UnknownDomain(ValueError):
    """No back end here has this domain."""


class UnknownSplit(ValueError):
    """The domain has no such split."""


class UnknownTask(ValueError):
    """The split has no such task. ``close`` names similar ones."""

    def __init__(self, message: str, close: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.close = tuple(close)


@dataclass(frozen=True, slots=True)
class Action:
    """One reference action: a tool call that the task's author made to solve it."""

    requestor: Requestor
    name: str
    arguments: dict[str, Any]
    compare_args: tuple[str, ...] | None
    """Arguments that a matching call must share; None means those that the call has, () means the name alone decides."""


@dataclass(frozen=True, slots=True)
class EnvCall:
    """A function of the environment that is no tool: initialization actions and assertions."""

    env_type: Requestor
    name: str
    arguments: dict[str, Any]
    assert_value: bool = True


@dataclass(frozen=True)
class TaskSpec:
    """One tau2 task. ``raw`` is the task as its file has it; it is shared between episodes and never written to."""

    domain: str
    raw: dict[str, Any]

    @property
    def task_id(self) -> str:
        """The task's name within its domain."""
        return self.raw["id"]

    @property
    def ticket(self) -> str | None:
        """What a solo agent is told instead of talking to a user; None where the task cannot be played solo."""
        return self.raw.get("ticket")

    @cached_property
    def digest(self) -> str:
        """sha256 over the task's canonical JSON."""
        canonical = json.dumps(self.raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def scenario(self) -> str:
        """A short digest of what the customer asks for. Tasks that differ only in what is wrong share it."""
        told = self.ticket or json.dumps(self.raw.get("user_scenario"), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def criteria(self) -> dict[str, Any] | None:
        """``evaluation_criteria``; None means that any end state is right."""
        return self.raw.get("evaluation_criteria")

    @property
    def reward_basis(self) -> tuple[str, ...]:
        """The reward types whose factors are multiplied; tau2's default is DB and COMMUNICATE."""
        basis = self._criteria_list("reward_basis")
        return ("DB", "COMMUNICATE") if basis is None else tuple(basis)

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """The reference actions, in the author's order."""
        return tuple(_action(raw) for raw in self._criteria_list("actions") or ())

    @cached_property
    def assertions(self) -> tuple[EnvCall, ...]:
        """What must hold of the end state."""
        return tuple(_env_call(raw) for raw in self._criteria_list("env_assertions") or ())

    @property
    def communicate_info(self) -> tuple[str, ...]:
        """What the agent must have told the user."""
        return tuple(self._criteria_list("communicate_info") or ())

    @property
    def nl_assertions(self) -> tuple[str, ...]:
        """Statements about the conversation that a judge decides."""
        return tuple(self._criteria_list("nl_assertions") or ())

    @property
    def has_end_state(self) -> bool:
        """Whether the task says anything about the end state; where it does not, DB passes without a comparison."""
        return self._criteria_list("actions") is not None or self._criteria_list("env_assertions") is not None

    def _criteria_list(self, key: str) -> list[Any] | None:
        criteria: dict[str, Any] = self.criteria or {}
        return criteria.get(key)

    @property
    def user_tools(self) -> tuple[str, ...] | None:
        """Names of the user's tools that this task's user holds; None means all."""
        chosen = self.raw.get("user_tools")
        return None if chosen is None else tuple(chosen)

    @property
    def initialization_data(self) -> dict[str, Any]:
        """``{"agent_data": …, "user_data": …}``, merged into the databases before anything else; empty for most tasks."""
        return self._initial_state.get("initialization_data") or {}

    @cached_property
    def initialization(self) -> tuple[EnvCall, ...]:
        """What is done to the databases before the episode begins."""
        return tuple(_env_call(raw) for raw in self._initial_state.get("initialization_actions") or ())

    @property
    def message_history(self) -> tuple[dict[str, Any], ...]:
        """Messages in tau2's form with which the conversation begins; their tool calls have been made already."""
        return tuple(self._initial_state.get("message_history") or ())

    @property
    def _initial_state(self) -> dict[str, Any]:
        return self.raw.get("initial_state") or {}


def _action(raw: dict[str, Any]) -> Action:
    compare = raw.get("compare_args")
    return Action(raw.get("requestor", "assistant"), raw["name"], raw["arguments"], None if compare is None else tuple(compare))


def _env_call(raw: dict[str, Any]) -> EnvCall:
    return EnvCall(raw["env_type"], raw["func_name"], raw["arguments"], raw.get("assert_value", True))


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave back, as the text that goes into the conversation."""

    content: str
    error: bool = False


class Session(Protocol):
    """The world of one episode, with everything the task's ``initial_state`` asks for done to it."""

    def call(self, name: str, arguments: dict[str, Any], requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool. Never raises: whatever goes wrong is an ``Error: …`` result."""
        ...

    def run(self, call: EnvCall) -> Any:
        """Runs a function of the environment that need not be a tool. Raises whatever it raises."""
        ...

    def replay(self, action: Action) -> None:
        """Runs a reference action as tau2's evaluator does: databases are not kept in step, errors change nothing."""
        ...

    def fingerprint(self) -> tuple[str, str]:
        """A digest of the agent's and of the user's database, the same in every process and on every back end's run of the same task.

        Cheap: of tables that nobody touched, nothing is read. Equal fingerprints of two sessions of one task mean equal states.
        """
        ...

    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's own sha256 over the whole agent and user database (milliseconds); None where the domain has no such database."""
        ...


class DomainBackend(Protocol):
    """The tools, databases and data of one domain from one package."""

    @property
    def domain(self) -> str:
        """Such as ``telecom``."""
        ...

    @property
    def source(self) -> str:
        """The package, its version and where its data came from, such as ``inspect-evals 0.26.0``."""
        ...

    @property
    def inline(self) -> bool:
        """Whether a tool call is always short enough (well under a millisecond) for the event loop; otherwise it runs in a thread."""
        ...

    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes, the default one first."""
        ...

    def tasks(self, split: str) -> Sequence[TaskSpec]:
        """The tasks of a split, in the order of the task file. Raises `UnknownSplit`."""
        ...

    def task(self, split: str, task_id: str) -> TaskSpec:
        """One task, looked up in constant time. Raises `UnknownSplit`, `UnknownTask`."""
        ...

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The policy text that goes into the agent's system prompt."""
        ...

    def tool_schemas(self, task: TaskSpec, *, solo: bool) -> list[dict[str, Any]]:
        """OpenAI schemas of the agent's tools in upstream's order; solo agents also hold the user's tools and ``done``."""
        ...

    def user_tool_schemas(self, task: TaskSpec) -> list[dict[str, Any]]:
        """OpenAI schemas of the user's tools in upstream's order (``task.user_tools`` chooses); empty where the user has none."""
        ...

    def user_guidelines(self, task: TaskSpec) -> str:
        """The general part of the user simulator's system prompt, in the variant that fits the user's tools and persona."""
        ...

    def new_session(self, task: TaskSpec, *, solo: bool) -> Session:
        """A fresh world in the task's initial state. Sessions share nothing that can change. Raises ValueError where it is impossible."""
        ...
