"""Sessions against the port's own code on its own hosting: the same results and the same end states for every task and for any calls.

Where we follow upstream instead of the port (docs/domains.md, "Where the port differs"), the port is not the oracle: `calculate`,
`transfer_to_human_agents` and `get_item_details` are ours, and phone settings with unknown fields are refused.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from port_hosts import HostedDesk, HostedTelecom

from services.agent_runner.domains import TaskSpec, open_backend
from services.agent_runner.domains.base import Action
from services.agent_runner.domains.cow import canonical
from services.agent_runner.domains.inspect_evals import TableBackend, TelecomBackend
from services.agent_runner.domains.port import port_module
from services.agent_runner.domains.sessions import TableSession

full_sweep = pytest.mark.skipif("PARITY_FULL_SWEEP" not in os.environ, reason="takes minutes; set PARITY_FULL_SWEEP=1")

# A call may leave a text where a number belongs; pydantic says so each time it dumps the record.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def backend_of(domain: str) -> Any:
    return open_backend(domain, "inspect_evals")


def contents(backend: TableBackend) -> str:
    """A digest of the base itself, past everything that is cached about it."""
    digest = hashlib.sha256()
    for name, table in backend._own_base.tables.items():
        for key, record in table.items():
            digest.update(f"{name} {key} {canonical(record)}".encode())
    return digest.hexdigest()


@pytest.fixture(scope="module", params=["airline", "retail"])
def desk(request: pytest.FixtureRequest) -> Iterator[tuple[TableBackend, HostedDesk]]:
    """A domain with its oracle; at the end, neither the base nor the oracle may have changed but by what was undone."""
    backend = backend_of(request.param)
    before = contents(backend)
    host = HostedDesk(backend)
    yield backend, host
    assert contents(backend) == before
    assert host.database.get_hash() == host.hash


def agree(session: TableSession, host: HostedDesk, name: str, arguments: dict[str, Any]) -> None:
    ours = session.call(name, json.loads(json.dumps(arguments)))
    if host.has(name):
        assert (ours.content, ours.error) == host.call(name, json.loads(json.dumps(arguments)))


def agree_in_the_end(session: TableSession, host: HostedDesk) -> None:
    """Every record that our session changed is the same there; that nothing else changed there is seen from the hash in the end."""
    delta = session._database.delta()
    for table, keys in delta.items():
        for key, text in keys.items():
            assert host.record(table, key) == text
    host.undo(delta)


def test_reference_actions_of_every_task_give_the_ports_results_and_end_state(desk: tuple[TableBackend, HostedDesk]):
    backend, host = desk
    for task in backend.tasks("base"):
        session: Any = backend.new_session(task, solo=False)
        for action in task.actions:
            agree(session, host, action.name, action.arguments)
        agree_in_the_end(session, host)


def test_hashes_are_those_of_the_ports_database(desk: tuple[TableBackend, HostedDesk]):
    backend, host = desk
    assert backend.new_session(TaskSpec(backend.domain, {"id": "nothing"}), solo=False).db_hashes() == (host.hash, None)
    busiest = max(backend.tasks("base"), key=lambda task: len(task.actions))
    session: Any = backend.new_session(busiest, solo=False)
    for action in busiest.actions:
        agree(session, host, action.name, action.arguments)
    assert session.db_hashes() == (host.database.get_hash(), None)
    assert session.db_hashes()[0] != host.hash
    agree_in_the_end(session, host)


def words(backend: TableBackend) -> list[Any]:
    """Values that occur in reference actions: arguments made of these often get past the first check of a tool."""
    found = {json.dumps(value): value for task in backend.tasks("base") for action in task.actions for value in action.arguments.values()}
    return [found[key] for key in sorted(found)]


def gold(backend: TableBackend) -> list[Action]:
    return [action for task in backend.tasks("base") for action in task.actions]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(-1, 3),
    st.sampled_from(["", "x", "SFO", "business", "2024-05-20", "gift_card_1", "#W0000000", "(2 + 3) * 4"]),
    st.lists(st.sampled_from(["1008292230", "x", 3, None]), max_size=2),
    st.fixed_dictionaries({}, optional={"flight_number": st.just("HAT001"), "date": st.just("2024-05-20"), "amount": st.floats(0, 9)}),
    st.lists(st.fixed_dictionaries({"payment_id": st.just("x"), "amount": st.integers(0, 9)}), max_size=2),
)


def calls(backend: TableBackend) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Reference actions of any task, such with arguments exchanged, left out or added, and calls of any tool with any arguments."""
    known = st.sampled_from(words(backend))
    schemas = {
        schema["function"]["name"]: schema["function"]["parameters"]["properties"]
        for schema in backend.tool_schemas(any_of(backend), solo=False)
    }
    reference = st.sampled_from(gold(backend)).map(lambda action: (action.name, action.arguments))

    @st.composite
    def bent(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
        name, arguments = draw(reference)
        keys = sorted(arguments)
        changed = dict(arguments)
        for key in draw(st.lists(st.sampled_from([*keys, "extra"]), max_size=2)):
            if draw(st.booleans()) and key in changed:
                del changed[key]
            else:
                changed[key] = draw(st.one_of(known, JUNK))
        return name, changed

    @st.composite
    def free(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
        name = draw(st.sampled_from(sorted(schemas)))
        return name, {key: draw(st.one_of(known, known, JUNK)) for key in schemas[name]}

    return st.one_of(reference, reference, bent(), bent(), free())


def any_of(backend: Any) -> TaskSpec:
    return backend.tasks("base")[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_calls_at_a_desk_give_the_ports_results_and_end_state(desk: tuple[TableBackend, HostedDesk], data: st.DataObject):
    backend, host = desk
    session: Any = backend.new_session(any_of(backend), solo=False)
    strategy = STRATEGIES.setdefault(backend.domain, calls(backend))
    try:
        for name, arguments in data.draw(st.lists(strategy, min_size=1, max_size=12), label="calls"):
            agree(session, host, name, arguments)
    finally:
        agree_in_the_end(session, host)


STRATEGIES: dict[str, Any] = {}


SUPPLIED = "get_item_details"
"""Retail's tool that the port does not have and newer task data uses."""


@pytest.mark.slow
@full_sweep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("domain", ["airline", "retail"])
def test_reference_end_states_are_those_of_the_ports_scorer(domain: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """The scorer's own `get_expected_db`, which loads the database anew for each task; it leaves a file in the temp folder each time."""
    scorer, tasks = port_module("common.scorer"), port_module("data_model.tasks")
    from inspect_ai.util import Store
    from inspect_ai.util._store import init_subtask_store

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = backend_of(domain)
    for task in backend.tasks("base"):
        if any(action.name == SUPPLIED for action in task.actions):
            continue
        init_subtask_store(Store())
        expected = scorer.get_expected_db(domain, tasks.Task.model_validate(task.raw).evaluation_criteria.actions or [])
        session = backend.new_session(task, solo=False)
        for action in task.actions:
            session.replay(action)
        assert session.db_hashes()[0] == expected.db.get_hash(), task.task_id
        for left in tmp_path.iterdir():
            left.unlink()


# telecom


def play_reference(telecom: TelecomBackend, task: TaskSpec) -> None:
    ours, theirs = telecom.new_session(task, solo=True), HostedTelecom(telecom, task)
    assert ours.db_hashes() == theirs.hashes(), task.task_id
    for action in task.actions:
        result = ours.call(action.name, action.arguments)
        assert (result.content, result.error) == theirs.call(action.name, action.arguments)
    assert ours.db_hashes() == theirs.hashes(), task.task_id
    for assertion in task.assertions:
        assert ours.run(assertion) is theirs.run(assertion.env_type, assertion.name, assertion.arguments) is assertion.assert_value


def test_reference_actions_of_telecom_give_the_ports_results_and_end_state():
    telecom = backend_of("telecom")
    tasks = {task.task_id: task for task in [*telecom.tasks("base"), *telecom.tasks("small")]}
    for task in tasks.values():
        play_reference(telecom, task)


@pytest.mark.slow
@full_sweep
@pytest.mark.timeout(600)
def test_reference_actions_of_all_of_telecom_give_the_ports_results_and_end_state():
    telecom = backend_of("telecom")
    for task in telecom.tasks("full"):
        play_reference(telecom, task)


def test_reference_actions_solve_every_telecom_task():
    """Without the oracle, so for all 2285: where the actions run, every assertion of the task holds."""
    telecom = backend_of("telecom")
    for task in telecom.tasks("full"):
        session = telecom.new_session(task, solo=True)
        for action in task.actions:
            session.call(action.name, action.arguments)
        assert all(session.run(assertion) is assertion.assert_value for assertion in task.assertions), task.task_id


PLAUSIBLE = st.sampled_from(
    ["C1001", "C1002", "L1001", "L1002", "B1001", "B1003", "P1002", "D1002", "555-123-2002", "messaging", "sms", "storage", "2g_only", ""]
)
VALUES = st.one_of(PLAUSIBLE, st.integers(-2, 5), st.floats(0, 3), st.booleans(), st.none(), st.lists(PLAUSIBLE, max_size=1))
PARAMETERS = (
    "phone_number customer_id full_name dob id line_id reason limit bill_id gb_amount summary mode app_name permission apn_settings x"
)


def arguments_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    wanted = list(schema["function"]["parameters"]["properties"])
    proper = st.fixed_dictionaries({name: PLAUSIBLE for name in wanted})
    return st.one_of(proper, proper, st.dictionaries(st.sampled_from([*wanted, *PARAMETERS.split()]), VALUES, max_size=3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_calls_in_telecom_give_the_ports_results_and_end_state(telecom: Any, data: st.DataObject):
    task = data.draw(st.sampled_from(telecom.tasks("base")), label="task")
    schemas = telecom.tool_schemas(task, solo=True)[:-1]
    ours, theirs = telecom.new_session(task, solo=True), HostedTelecom(telecom, task)
    for _ in range(data.draw(st.integers(1, 10), label="calls")):
        schema = data.draw(st.sampled_from(schemas))
        arguments = data.draw(arguments_of(schema))
        result = ours.call(schema["function"]["name"], json.loads(json.dumps(arguments)))
        assert (result.content, result.error) == theirs.call(schema["function"]["name"], arguments)
    assert ours.db_hashes() == theirs.hashes()


def test_concurrent_sessions_do_not_see_one_another():
    """Sessions interleaved call by call end as they end alone."""
    backend = backend_of("retail")
    tasks = backend.tasks("base")[:30]

    async def play(task: TaskSpec) -> tuple[str, str]:
        session = backend.new_session(task, solo=False)
        for action in task.actions:
            session.call(action.name, action.arguments)
            await asyncio.sleep(0)
        return session.fingerprint()

    async def together() -> list[tuple[str, str]]:
        return list(await asyncio.gather(*(play(task) for task in tasks)))

    assert asyncio.run(together()) == [asyncio.run(play(task)) for task in tasks]
