"""Owns how tool calls run on the port's code: who may call what, what an error looks like, what the result's text is.

A session holds one instance of each side's plain class with a database of its own. Which databases, and what keeps them in step, is its
subclass's: `TableSession` here for airline and retail, telecom has its own.
"""

import logging
from collections.abc import Mapping
from typing import Any

from services.agent_runner.domains.base import Action, EnvCall, Requestor, ToolResult
from services.agent_runner.domains.cow import Base, Database
from services.agent_runner.domains.port import Toolkit

log = logging.getLogger(__name__)

Json = dict[str, Any]

DISPATCH = "Environment.make_tool_call() got multiple values for"


class PortSession:
    """One episode's world. ``hosts`` holds an instance of each side's class, ``kits`` what is known about them."""

    def __init__(self, kits: Mapping[Requestor, Toolkit], hosts: Mapping[Requestor, Any], *, solo: bool) -> None:
        self._kits = kits
        self._hosts = hosts
        self._solo = solo

    def call(self, name: str, arguments: Json, requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool and keeps the databases in step. Never raises."""
        try:
            _refuse_taken(arguments)
            side = self._side(name, requestor)
            value = getattr(self._hosts[side], name)(**arguments)
            self.sync()
            return ToolResult(self._kits[side].render(name, value))
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a tool raises is what the caller of the tool reads
            return ToolResult(f"Error: {error}", error=True)

    def _side(self, name: str, requestor: Requestor) -> Requestor:
        """Whose tool it is that the requestor may call by this name. Raises ValueError."""
        if self._solo and requestor == "user":
            raise ValueError("User tool calls are not allowed in solo mode")
        if self._solo and "user" in self._kits and name in self._kits["user"].schemas:
            return "user"
        if requestor not in self._kits:
            raise ValueError("User tools not available")
        if name not in self._kits[requestor].schemas:
            raise ValueError(f"Tool '{name}' not found.")
        return requestor

    def changes_state(self, name: str) -> bool:
        """Whether a tool of either side has this name and can change a database."""
        kit = next((kit for kit in self._kits.values() if name in kit.schemas), None)
        return kit is not None and name in kit.writes

    def run(self, call: EnvCall) -> Any:
        """Runs any function of the agent's or user's side by name and keeps the databases in step. Raises what it raises."""
        value = getattr(self._hosts.get(call.env_type), call.name)(**call.arguments)
        self.sync()
        return value

    def replay(self, action: Action) -> None:
        """Runs a reference action without keeping the databases in step; an action that fails is logged and changes nothing else."""
        try:
            getattr(self._hosts[self._side(action.name, action.requestor)], action.name)(**action.arguments)
        except Exception as error:  # noqa: BLE001 - same boundary as `call`: some reference actions of tau2 fail by design
            log.info("reference action %s failed: %s", action.name, error)

    def sync(self) -> None:
        """Nothing: a domain with one database is always in step."""


class TableSession(PortSession):
    """A session on one copy-on-write database and without user tools."""

    def __init__(self, kit: Toolkit, base: Base) -> None:
        self._database = Database(base)
        host: Any = kit.code()
        host.db = self._database
        super().__init__({"assistant": kit}, {"assistant": host}, solo=False)

    def merge(self, side: Requestor, data: Json) -> None:
        """Merges initialization data. Raises ValueError."""
        if side == "user":
            raise ValueError("initialization_data: user_data is given, but the user of this domain has no database")
        self._database.merge(data)

    def fingerprint(self) -> tuple[str, str]:
        """sha256 of what differs from the base; the user has no database."""
        return self._database.fingerprint(), ""

    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hash of the database."""
        return self._database.sha256(), None


def _refuse_taken(arguments: Json) -> None:
    """Raises TypeError, in Python's words, for arguments named like a parameter of upstream's dispatch, before it looks at the tool."""
    if "requestor" in arguments:
        raise TypeError(f"tau2.environment.environment.{DISPATCH} keyword argument 'requestor'")
    taken = next((name for name in arguments if name in ("self", "tool_name")), None)
    if taken is not None:
        raise TypeError(f"{DISPATCH} argument {taken!r}")
