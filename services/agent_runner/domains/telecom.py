"""Owns telecom sessions on the classes of the `inspect-evals` port: its tool methods rebound to plain classes.

The port hosts its tools on `StoreModel`, which validates the whole database at each attribute read and shares one store per process.
The methods use nothing of that, so a plain class with the same attributes gives the same results at a hundredth of the cost.
"""

import importlib
import inspect
import json
import logging
import types
import warnings
from typing import Any

from services.agent_runner.domains.base import Action, EnvCall, Requestor, TaskSpec, ToolResult
from services.agent_runner.domains.render import to_text

log = logging.getLogger(__name__)

PORT = "inspect_evals.tau2.telecom"
MODEL_DUMPS = frozenset({"get_details_by_id"})
"""Tools that return a model where upstream does, but dumped already in the port; their numbers must stay numbers."""
REFORMATTED = frozenset({"get_data_usage"})
"""Tools whose method has a reflowed docstring in the port; its Inspect wrapper has kept upstream's."""


class TelecomCode:
    """The port's classes, loaded once per process. Importing them takes seconds, so this is built on first use."""

    def __init__(self) -> None:
        agent = _module("TelecomAgentTools")
        user = _module("TelecomUserTools")
        environment = _module("environment")
        # The names are upstream's: they show in the text of a TypeError, and so in the conversation.
        self.agent_class = _plain_class(agent.TelecomAgentTools, "TelecomTools")
        self.user_class = _plain_class(user.TelecomUserTools, "TelecomUserTools")
        self.vpn_details = user.TelecomUserTools.model_fields["default_vpn_details"].default
        self.environment_class = environment.Environment
        self.agent_db: Any = agent.TelecomDB
        self.user_db: Any = user.TelecomUserDB
        self.agent_docs = _docstrings(_module("tools").all_telecom_agent_tools, self.agent_class)
        self.user_docs = _docstrings(_module("user_tools").all_telecom_user_tools, self.user_class)


def _module(name: str) -> Any:
    # What the port's dependencies deprecate at import concerns their authors, not whoever runs with warnings as errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{PORT}.{name}")


def _docstrings(factories: list[Any], methods: type) -> dict[str, str]:
    """Tool name -> docstring, in definition order, such that the schema made from it is upstream's."""
    return {
        factory.__name__: factory().__doc__ if factory.__name__ in REFORMATTED else getattr(methods, factory.__name__).__doc__
        for factory in factories
    }


def _plain_class(hosted: type, name: str) -> type:
    """A class with the functions and properties that ``hosted`` itself defines and none of its bases."""
    namespace: dict[str, Any] = {}
    for key, value in vars(hosted).items():
        if isinstance(value, types.FunctionType) and key != "initialize":
            namespace[key] = _renamed(value, f"{name}.{key}")
        elif isinstance(value, property):
            namespace[key] = value
    return type(name, (), namespace)


def _renamed(function: types.FunctionType, qualified_name: str) -> types.FunctionType:
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__qualname__ = qualified_name
    copy.__doc__ = function.__doc__
    copy.__annotations__ = inspect.get_annotations(function)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class TelecomSession:
    """One episode's telecom world: the carrier's database, the phone, and what keeps the two in step."""

    def __init__(self, code: TelecomCode, agent_db: Any, user_db: Any, *, solo: bool) -> None:
        self._solo = solo
        self._agent: Any = code.agent_class()
        self._agent.db = agent_db
        self._user: Any = code.user_class()
        self._user.db = user_db
        # A tool breaks the VPN by writing into this object, so each session needs one of its own.
        self._user.default_vpn_details = code.vpn_details.model_copy(deep=True)
        self._tools: dict[Requestor, dict[str, Any]] = {
            "assistant": {name: getattr(self._agent, name) for name in code.agent_docs},
            "user": {name: getattr(self._user, name) for name in code.user_docs},
        }
        self._environment = code.environment_class(self._user, self._agent)

    def initialize(self, task: TaskSpec) -> None:
        """Does the task's initialization actions. Raises ValueError for initialization data, which no telecom task has."""
        state: dict[str, Any] = task.raw.get("initial_state") or {}
        if state.get("initialization_data"):
            raise ValueError(f"task {task.task_id}: initialization_data is not supported for telecom")
        for action in task.initialization:
            self.run(action)

    def call(self, name: str, arguments: dict[str, Any], requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool and keeps the two databases in step. Never raises."""
        try:
            value = self._tool(name, requestor)(**arguments)
            self._environment.sync_tools()
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a tool raises is what the caller of the tool reads
            return ToolResult(f"Error: {error}", error=True)
        return ToolResult(json.dumps(value, default=str) if name in MODEL_DUMPS else to_text(value))

    def _tool(self, name: str, requestor: Requestor) -> Any:
        if self._solo and requestor == "user":
            raise ValueError("User tool calls are not allowed in solo mode")
        if self._solo and name in self._tools["user"]:
            return self._tools["user"][name]
        if name not in self._tools[requestor]:
            raise ValueError(f"Tool '{name}' not found.")
        return self._tools[requestor][name]

    def run(self, call: EnvCall) -> Any:
        """Runs any function of the agent's or user's side by name and keeps the databases in step. Raises what it raises."""
        value = getattr(self._user if call.env_type == "user" else self._agent, call.name)(**call.arguments)
        self._environment.sync_tools()
        return value

    def replay(self, action: Action) -> None:
        """Runs a reference action without keeping the databases in step; an action that fails is logged and changes nothing."""
        try:
            self._tool(action.name, action.requestor)(**action.arguments)
        except Exception as error:  # noqa: BLE001 - same boundary as `call`: some reference actions of tau2 fail by design
            log.info("reference action %s failed: %s", action.name, error)

    def fingerprint(self) -> tuple[str, str]:
        """sha256 of the agent's and of the user's database."""
        return self._agent.db.get_hash(), self._user.db.get_hash()
