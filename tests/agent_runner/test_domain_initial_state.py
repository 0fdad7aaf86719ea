"""A task's initial state is brought about as upstream does it: data, actions, and the history's tool calls made again."""

import json
from typing import Any

import pytest

from services.agent_runner.domains import TaskSpec, open_backend
from services.agent_runner.domains.initial import recorded_calls

ADDRESS = {"address1": "1 Way", "address2": "", "city": "C", "state": "CA", "country": "USA", "zip": "1"}


@pytest.fixture(scope="module")
def retail() -> Any:
    return open_backend("retail", "inspect_evals")


@pytest.fixture(scope="module")
def user_id(retail: Any) -> str:
    return next(
        action.arguments["user_id"] for task in retail.tasks("base") for action in task.actions if action.name == "get_user_details"
    )


def task(**initial_state: Any) -> TaskSpec:
    return TaskSpec("retail", {"id": "custom", "initial_state": initial_state})


def exchange(name: str, arguments: dict[str, Any], content: str, number: int = 1, requestor: str = "assistant") -> list[dict[str, Any]]:
    call = {"id": f"c{number}", "name": name, "arguments": arguments, "requestor": requestor}
    role = "assistant" if requestor == "assistant" else "user"
    return [
        {"role": role, "content": None, "tool_calls": [call]},
        {"role": "tool", "id": f"c{number}", "content": content, "requestor": requestor},
    ]


def test_initialization_data_is_merged_into_this_session_alone(retail: Any, user_id: str):
    data = {"agent_data": {"users": {user_id: {"address": {"city": "Elsewhere"}}}}}
    session = retail.new_session(task(initialization_data=data), solo=False)
    told = json.loads(session.call("get_user_details", {"user_id": user_id}).content)
    assert (told["address"]["city"], told["user_id"]) == ("Elsewhere", user_id)
    plain = retail.new_session(task(), solo=False)
    assert session.fingerprint() != plain.fingerprint()
    assert session.db_hashes() != plain.db_hashes()
    assert session.fingerprint() == retail.new_session(task(initialization_data=data), solo=False).fingerprint()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"agent_data": {"people": {}}}, "no table 'people'; it has products, users, orders"),
        ({"agent_data": {"users": {"new": {"email": 3}}}}, "users.new"),
        ({"user_data": {}}, "the user of this domain has no database"),
    ],
)
def test_impossible_data_is_a_value_error(retail: Any, data: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        retail.new_session(task(initialization_data=data), solo=False)


def test_initialization_actions_run_in_order_and_may_be_any_function(retail: Any, user_id: str):
    actions = [
        {"env_type": "assistant", "func_name": "modify_user_address", "arguments": {"user_id": user_id, **ADDRESS}},
        {"env_type": "assistant", "func_name": "_get_user", "arguments": {"user_id": user_id}},
    ]
    session = retail.new_session(task(initialization_actions=actions), solo=False)
    assert json.loads(session.call("get_user_details", {"user_id": user_id}).content)["address"]["city"] == "C"
    with pytest.raises(AttributeError, match="'RetailTools' object has no attribute 'no_such'"):
        retail.new_session(task(initialization_actions=[{"env_type": "assistant", "func_name": "no_such", "arguments": {}}]), solo=False)


def test_a_history_leaves_the_state_that_it_tells(retail: Any, user_id: str):
    live = retail.new_session(task(), solo=False)
    arguments = {"user_id": user_id, **ADDRESS}
    history = [
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Change my address."},
        *exchange("modify_user_address", arguments, live.call("modify_user_address", arguments).content, 1),
        *exchange("get_user_details", {"user_id": user_id}, "what a reading tool said is not compared", 2),
        *exchange("no_such_tool", {}, "Error: Tool 'no_such_tool' not found.", 3),
        *exchange("cancel_pending_order", {"order_id": "#W0", "reason": "x"}, "Error: Order not found", 4),
    ]
    replayed = retail.new_session(task(message_history=history), solo=False)
    assert replayed.fingerprint() == live.fingerprint()
    assert [call.name for call in recorded_calls(history)] == [
        "modify_user_address",
        "get_user_details",
        "no_such_tool",
        "cancel_pending_order",
    ]


def test_a_history_of_another_world_is_refused(retail: Any, user_id: str):
    wrong = exchange("cancel_pending_order", {"order_id": "#W0", "reason": "x"}, "done")
    with pytest.raises(
        ValueError, match=r"message_history: cancel_pending_order\(.* gave 'Error: Order not found' here, but 'done' is recorded"
    ):
        retail.new_session(task(message_history=wrong), solo=False)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([{"role": "tool", "id": "c1", "content": "x"}], "no tool call waits"),
        (exchange("x", {}, "y")[:1], "'c1' is not followed by its tool message"),
        ([exchange("x", {}, "y")[0], {"role": "user", "content": "?"}], "'c1' is not followed by its tool message"),
        ([exchange("x", {}, "y")[0], exchange("x", {}, "y", 2)[1]], "'c1' is followed by the result of 'c2'"),
    ],
)
def test_a_history_whose_results_are_not_in_their_places_is_refused(retail: Any, history: list[dict[str, Any]], said: str):
    with pytest.raises(ValueError, match=said):
        retail.new_session(task(message_history=history), solo=False)


def test_user_calls_in_a_telecom_history_reach_the_phone():
    telecom = open_backend("telecom", "inspect_evals")
    spec = telecom.tasks("small")[0]
    live = telecom.new_session(spec, solo=False)
    told = live.call("toggle_airplane_mode", {}, "user").content
    state = dict(spec.raw["initial_state"]) | {"message_history": exchange("toggle_airplane_mode", {}, told, requestor="user")}
    replayed = telecom.new_session(TaskSpec("telecom", spec.raw | {"initial_state": state}), solo=False)
    assert replayed.fingerprint() == live.fingerprint()
    said = {"message_history": [{"role": "user", "content": "hello"}]}
    with pytest.raises(ValueError, match="cannot be played solo"):
        telecom.new_session(TaskSpec("telecom", spec.raw | {"initial_state": said}), solo=True)


def test_telecom_data_is_merged_per_side():
    telecom = open_backend("telecom", "inspect_evals")
    data = {"user_data": {"device": {"airplane_mode": True}}}
    session = telecom.new_session(TaskSpec("telecom", {"id": "x", "initial_state": {"initialization_data": data}}), solo=False)
    plain = telecom.new_session(TaskSpec("telecom", {"id": "x"}), solo=False)
    assert "Airplane Mode" in session.call("check_status_bar", {}, "user").content
    agent, user = (ours == theirs for ours, theirs in zip(session.fingerprint(), plain.fingerprint(), strict=True))
    assert (agent, user) == (True, False)
