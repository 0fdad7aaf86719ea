"""The port's own classes on their own StoreModel hosting, as oracles of what sessions must give."""

import json
from copy import deepcopy
from typing import Any

from services.agent_runner.domains import TaskSpec
from services.agent_runner.domains.cow import canonical
from services.agent_runner.domains.inspect_evals import TableBackend
from services.agent_runner.domains.render import to_text

DESKS = {"airline": ("AirlineAgentTools", "FlightDB", "AirlineTools"), "retail": ("RetailAgentTools", "RetailDB", "RetailTools")}


class HostedDesk:
    """airline or retail. One database for all tests of a process; `undo` puts back what a test says was changed."""

    def __init__(self, backend: TableBackend) -> None:
        import importlib

        from inspect_ai.util._store import Store

        class_name, model_name, self._upstream_name = DESKS[backend.domain]
        self._port_name = class_name
        module = importlib.import_module(f"inspect_evals.tau2.{backend.domain}.{class_name}")
        model = getattr(module, model_name)
        tables = {name: {key: record.model_dump() for key, record in table.items()} for name, table in backend._own_base.tables.items()}
        self.agent = getattr(module, class_name)(store=Store())
        self.agent.initialized = True
        self.agent.db = model.model_validate(tables)
        self._pristine = {name: dict(table) for name, table in backend._own_base.tables.items()}
        self.database = self.agent.db
        self.hash = self.database.get_hash()

    def has(self, name: str) -> bool:
        return hasattr(type(self.agent), name)

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """The result in upstream's text: the port's, with the blanks that upstream's JSON has."""
        try:
            value = getattr(self.agent, name)(**arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its result
            return f"Error: {error}".replace(f"{self._port_name}.", f"{self._upstream_name}."), True
        if isinstance(value, dict):
            return json.dumps(value, sort_keys=True), False
        return (json.dumps(json.loads(value)) if value.startswith(("{", "[")) else value), False

    def record(self, table: str, key: str) -> str | None:
        record = getattr(self.database, table).get(key)
        return None if record is None else canonical(record)

    def undo(self, delta: dict[str, dict[str, str | None]]) -> None:
        for table, keys in delta.items():
            for key in keys:
                if key in self._pristine[table]:
                    getattr(self.database, table)[key] = deepcopy(self._pristine[table][key])
                else:
                    del getattr(self.database, table)[key]


class HostedTelecom:
    """telecom, in a task's initial state."""

    def __init__(self, telecom: Any, task: TaskSpec) -> None:
        from inspect_ai.util._store import Store
        from inspect_evals.tau2.telecom.environment import Environment
        from inspect_evals.tau2.telecom.TelecomAgentTools import TelecomAgentTools, TelecomDB
        from inspect_evals.tau2.telecom.TelecomUserTools import TelecomUserDB, TelecomUserTools

        store = Store()
        self.agent, self.user = TelecomAgentTools(store=store), TelecomUserTools(store=store)
        self.agent.initialized = self.user.initialized = True
        self.agent.db = TelecomDB.model_validate(telecom._own_base.agent)
        self.user.db = TelecomUserDB.model_validate(telecom._own_base.user)
        self.environment = Environment(user_tools=self.user, tools=self.agent)
        self.users = {schema["function"]["name"] for schema in telecom.user_tool_schemas(task)}
        for call in task.initialization:
            self.run(call.env_type, call.name, call.arguments)

    def run(self, side: str, name: str, arguments: dict[str, Any]) -> Any:
        value = getattr(self.user if side == "user" else self.agent, name)(**arguments)
        self.environment.sync_tools()
        return value

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        try:
            value = self.run("user" if name in self.users else "assistant", name, arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its result
            return f"Error: {error}".replace("TelecomAgentTools.", "TelecomTools."), True
        return (json.dumps(value, default=str) if name == "get_details_by_id" else to_text(value)), False

    def hashes(self) -> tuple[str, str]:
        return self.agent.db.get_hash(), self.user.db.get_hash()
