"""airline and retail: splits are upstream's, tool results have upstream's text, there is neither solo mode nor a user's tool."""

import json
import time
from typing import Any

import pytest

from services.agent_runner.domains import DomainBackend, EnvCall, TaskSpec, UnknownSplit, open_backend

SIZES = {"airline": {"base": 50, "train": 30, "test": 20}, "retail": {"base": 114, "train": 74, "test": 40}}


def backend_of(domain: str) -> DomainBackend:
    return open_backend(domain, "inspect_evals")


def any_task(backend: DomainBackend) -> TaskSpec:
    return backend.tasks("base")[0]


@pytest.mark.parametrize("domain", SIZES)
def test_splits_have_upstreams_sizes_and_divide_base(domain: str):
    backend = backend_of(domain)
    assert next(iter(backend.splits())) == "base"
    assert {split: len(backend.tasks(split)) for split in backend.splits()} == SIZES[domain]
    ids = {split: {task.task_id for task in backend.tasks(split)} for split in backend.splits()}
    assert ids["train"] | ids["test"] == ids["base"]
    assert not ids["train"] & ids["test"]
    assert all(backend.task("base", task.task_id) is task for task in backend.tasks("base"))
    with pytest.raises(UnknownSplit, match="no split 'full'; it has base, train, test"):
        backend.tasks("full")


@pytest.mark.parametrize("domain", SIZES)
def test_there_is_no_solo_mode_and_no_user_tool(domain: str):
    backend = backend_of(domain)
    task = any_task(backend)
    for refused in (lambda: backend.new_session(task, solo=True), lambda: backend.policy(task, solo=True)):
        with pytest.raises(ValueError, match=f"{domain.capitalize()} domain does not support solo mode"):
            refused()
    assert backend.user_tool_schemas(task) == []
    assert "tool" not in backend.user_guidelines(task).lower()
    session = backend.new_session(task, solo=False)
    assert session.call("calculate", {"expression": "1"}, "user").content == "Error: User tools not available"
    assert session.fingerprint()[1] == ""


@pytest.mark.parametrize(
    ("domain", "name", "arguments", "text"),
    [
        ("airline", "no_such_tool", {}, "Error: Tool 'no_such_tool' not found."),
        ("airline", "_get_user", {"user_id": "x"}, "Error: Tool '_get_user' not found."),
        ("airline", "get_user_details", {}, "Error: AirlineTools.get_user_details() missing 1 required positional argument: 'user_id'"),
        ("airline", "calculate", {}, "Error: AirlineTools.calculate() missing 1 required positional argument: 'expression'"),
        ("airline", "get_user_details", {"user_id": ["x"]}, "Error: unhashable type: 'list'"),
        ("airline", "get_user_details", {"user_id": "x"}, "Error: User x not found"),
        ("retail", "get_user_details", {"x": 1}, "Error: RetailTools.get_user_details() got an unexpected keyword argument 'x'"),
        ("retail", "get_item_details", {"item_id": "0"}, "Error: Item not found"),
        ("retail", "calculate", {"expression": "1 / 0"}, "Error: division by zero"),
    ],
)
def test_errors_are_results_with_upstreams_text(domain: str, name: str, arguments: dict[str, Any], text: str):
    backend = backend_of(domain)
    result = backend.new_session(any_task(backend), solo=False).call(name, arguments)
    assert (result.content, result.error) == (text, True)


def test_results_have_upstreams_text():
    airline, retail = backend_of("airline"), backend_of("retail")
    session = airline.new_session(any_task(airline), solo=False)
    assert session.call("list_all_airports", {}).content.startswith('[{"iata": "SFO", "city": "San Francisco"}, {"iata": "JFK"')
    assert session.call("get_reservation_details", {"reservation_id": "EHGLP3"}).content.startswith(
        '{"reservation_id": "EHGLP3", "user_id": "'
    )
    assert session.call("calculate", {"expression": "2 * 3"}).content == "6.0"
    assert session.call("transfer_to_human_agents", {"summary": "x"}).content == "Transfer successful"
    desk = retail.new_session(any_task(retail), solo=False)
    products = json.loads(desk.call("list_all_product_types", {}).content)
    assert list(products) == sorted(products)
    product = json.loads(desk.call("get_product_details", {"product_id": next(iter(products.values()))}).content)
    item_id, item = next(iter(product["variants"].items()))
    assert desk.call("get_item_details", {"item_id": item_id}).content == json.dumps(item)
    assert desk.fingerprint() == retail.new_session(any_task(retail), solo=False).fingerprint()


def test_any_function_of_the_toolkit_can_be_run_but_not_called():
    retail = backend_of("retail")
    session = retail.new_session(any_task(retail), solo=False)
    user_id = json.loads(session.call("get_order_details", {"order_id": "#W2378156"}).content)["user_id"]
    assert session.run(EnvCall("assistant", "_get_user", {"user_id": user_id})).user_id == user_id
    with pytest.raises(AttributeError):
        session.run(EnvCall("user", "anything", {}))


@pytest.mark.parametrize("domain", SIZES)
def test_sessions_are_cheap(domain: str):
    """Loose bounds for a busy machine; docs/domains.md has the figures."""
    backend = backend_of(domain)
    task = any_task(backend)
    backend.new_session(task, solo=False)
    started = time.process_time()
    for _ in range(200):
        backend.new_session(task, solo=False).fingerprint()
    assert (time.process_time() - started) / 200 < 0.001
