"""Banking's sessions against the port's own hosting of its tools: the same results and the same databases, call by call."""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inspect_ai.util._store import Store
from tool_call_strategies import Call, bent, made_up

from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.domains.banking import banking_code, open_banking
from services.agent_runner.domains.banking_db import BankingData, TransactionalDB
from services.agent_runner.domains.banking_tools import DOCSTRINGS, UPSTREAM
from services.agent_runner.domains.data import package_data
from services.agent_runner.domains.port import PORT, port_module

WHOLE_DOLLARS = {"task_050", "task_051", "task_052", "task_053", "task_054"}
"""Reference solutions that ask for a credit limit: tau2 1.0.1 stores 2500 where the port stores the number as it was spelled."""

NOTHING_DONE = {"id": "none", "user_scenario": {"instructions": "None."}}


@pytest.fixture(scope="module", autouse=True)
def _port_data() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TAU2_DATA_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def banking() -> DomainBackend:
    return open_banking("banking_knowledge", "no_knowledge")


@pytest.fixture(scope="module")
def raw() -> str:
    """The port's database, as JSON."""
    return (package_data() / "domains" / "banking_knowledge" / "db.json").read_text()


class Hosted:
    """The port's tools on its own `StoreModel` classes, begun by the port's own code."""

    def __init__(self, raw: str, task: TaskSpec) -> None:
        store = Store()
        self.db = port_module("banking.data_model").TransactionalDB.model_validate_json(raw)
        self.hosts: dict[str, Any] = {
            "assistant": port_module("banking.BankingAgentTools").BankingAgentTools(store=store),
            "user": port_module("banking.BankingUserTools").BankingUserTools(store=store),
        }
        for host in self.hosts.values():
            host.db, host.initialized = self.db, True
        state = port_module("data_model.tasks").Task.model_validate(copy.deepcopy(task.raw)).initial_state
        port_module("banking.environment").apply_initial_state(self.hosts["assistant"], self.hosts["user"], state)

    def call(self, call: Call) -> str:
        text = text_of(self.hosts, call)
        for ported, upstreams in (("BankingAgentTools", "KnowledgeTools"), ("BankingUserTools", "KnowledgeUserTools")):
            text = text.replace(f"{PORT}.banking.{ported}.{ported}", f"{UPSTREAM}.{upstreams}").replace(ported, upstreams)
        return text

    def sha256(self) -> str:
        """tau2's hash, which is over all tables but the one that tau2 does not have."""
        state = {name: table for name, table in self.db.model_dump().items() if name != "interest_discrepancy_reports"}
        return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


class Bare:
    """The port's methods as they are, without the corrections, on a copy-on-write database."""

    def __init__(self, base: BankingData, task: TaskSpec) -> None:
        self.db = TransactionalDB(base)
        for key in ("agent_data", "user_data"):
            self.db.merge(task.initialization_data.get(key) or {})
        self.hosts: dict[str, Any] = {side: ported(side)() for side in banking_code().kits}
        for host in self.hosts.values():
            host.db = self.db
        self.hosts["assistant"].agent_unlocked_tools = {}
        self.hosts["assistant"].user_given_tools_state = {}

    def call(self, call: Call) -> str:
        return text_of(self.hosts, call)


def ported(side: Any) -> type[Any]:
    """The class with the port's methods, behind the one with the corrections."""
    return banking_code().kits[side].code.__mro__[2]


def text_of(hosts: Mapping[str, Any], call: Call) -> str:
    try:
        return getattr(hosts[call.requestor], call.name)(**copy.deepcopy(call.arguments))
    except Exception as error:  # noqa: BLE001 - what a tool raises is its result
        return f"Error: {error}"


def in_floats(value: Any) -> Any:
    """Numbers as tau2 1.0.1 reads them, also inside JSON arguments."""
    if isinstance(value, dict):
        return {key: _json_in_floats(item) if key == "arguments" else in_floats(item) for key, item in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _json_in_floats(text: str) -> str:
    return json.dumps(json.loads(text, parse_int=float))


def test_every_reference_solution_ends_as_on_the_ports_own_classes(banking: DomainBackend, raw: str):
    calls = 0
    for task in banking.tasks("base"):
        hosted, session = Hosted(raw, task), banking.new_session(task, solo=False)
        if task.initialization_data:
            assert hosted.sha256() == session.db_hashes()[0], task.task_id
        for action in task.actions:
            hosted.call(Call(action.name, in_floats(action.arguments), action.requestor))
            session.replay(action)
            calls += 1
        assert (hosted.sha256() != session.db_hashes()[0]) == (task.task_id in WHOLE_DOLLARS), task.task_id
    assert calls == 927


def test_playing_the_reference_solution_ends_in_the_reference_state(banking: DomainBackend):
    for task in banking.tasks("base"):
        played, replayed = banking.new_session(task, solo=False), banking.new_session(task, solo=False)
        for action in task.actions:
            played.call(action.name, action.arguments, action.requestor)
            replayed.replay(action)
        assert played.fingerprint() == replayed.fingerprint(), task.task_id


def arguments_in(raw: str) -> dict[str, list[Any]]:
    """Values by parameter name: fields of the database's records, and the choices that docstrings name."""
    values: dict[str, list[Any]] = {"arguments": ["{}"]}
    for table in json.loads(raw).values():
        for record in list(table["data"].values())[:8]:
            for field, value in record.items():
                values.setdefault(field, []).append(value)
    values |= {"credit_card_account_id": values["account_id"], "checking_account_id": values["account_id"]}
    for side, hidden in banking_code().hidden.items():
        values["agent_tool_name" if side == "assistant" else "discoverable_tool_name"] = sorted(hidden)
        for name in hidden:
            for parameter, choices in re.findall(r"^\s+(\w+) .*: (.*'.*)$", getattr(ported(side), name).__doc__, re.MULTILINE):
                values.setdefault(parameter, []).extend(re.findall(r"'(\w+)'", choices))
    return values


@pytest.fixture(scope="module")
def strange(raw: str) -> st.SearchStrategy[list[Call]]:
    """Calls of all tools, whether an agent is told of them or not."""
    names = {side: sorted({*kit.schemas, *banking_code().hidden[side]}) for side, kit in banking_code().kits.items()}
    tools = {side: {name: getattr(ported(side), name) for name in listed} for side, listed in names.items()}
    return st.lists(made_up(tools, arguments_in(raw)), max_size=4)


@pytest.fixture(scope="module")
def base(raw: str) -> BankingData:
    return BankingData(json.loads(raw))


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_calls_give_what_they_give_on_the_ports_own_classes(
    banking: DomainBackend, raw: str, base: BankingData, strange: st.SearchStrategy[list[Call]], data: st.DataObject
):
    task = data.draw(st.sampled_from(banking.tasks("base")))
    reference = [Call(action.name, data.draw(bent(action.arguments)), action.requestor) for action in task.actions[:5]]
    hosted, bare = Hosted(raw, task), Bare(base, task)
    for call in [*reference, *data.draw(strange)]:
        ours, theirs = bare.call(call), hosted.call(call)
        # Of what unlocking says, two texts are tau2's here.
        if not (call.name == "unlock_discoverable_agent_tool" and str(call.arguments.get("agent_tool_name")) in DOCSTRINGS):
            assert ours == theirs, call
    assert bare.db.sha256() == hosted.sha256()
    assert TransactionalDB(base).sha256() == Hosted(raw, TaskSpec("banking_knowledge", NOTHING_DONE)).sha256()
