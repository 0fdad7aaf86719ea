"""The mock back end: data from the package, a toolkit of ours that reads and behaves as upstream's, solo mode."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.agent_runner.domains import Action, DomainBackend, EnvCall, Session, TaskSpec, UnknownTask
from services.agent_runner.domains.mock import open_mock

NOT_SOLO = {"update_task_with_message_history", "update_task_with_history_and_env_assertions"}
"""Their message histories hold messages of a user."""


@pytest.fixture(autouse=True)
def _package_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TAU2_DATA_DIR", raising=False)
    yield


@pytest.fixture
def mock() -> DomainBackend:
    return open_mock("mock")


@pytest.fixture
def session(mock: DomainBackend) -> Session:
    return mock.new_session(TaskSpec("mock", {"id": "made_up"}), solo=False)


def begin(mock: DomainBackend, *, solo: bool = False, **state: Any) -> Session:
    return mock.new_session(TaskSpec("mock", {"id": "made_up", "initial_state": state}), solo=solo)


def names(schemas: list[dict[str, Any]]) -> list[str]:
    return [schema["function"]["name"] for schema in schemas]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


NOTE = {"notification_id": "n_1", "message": "Look.", "task_id": "task_1"}
ADD_NOTE = {"env_type": "user", "func_name": "add_notification", "arguments": NOTE}


def test_the_package_has_nine_tasks_of_which_seven_can_be_played_solo(mock: DomainBackend):
    tasks = mock.tasks("base")
    assert (list(mock.splits()), len(tasks), tasks[0].task_id) == (["base"], 9, "create_task_1")
    assert mock.task("base", "update_task_1").ticket
    with pytest.raises(UnknownTask, match="did you mean update_task_1"):
        mock.task("base", "update_task")
    for task in tasks:
        if task.task_id in NOT_SOLO:
            with pytest.raises(ValueError, match="message_history has user messages"):
                mock.new_session(task, solo=True)
        else:
            assert mock.new_session(task, solo=True).fingerprint() == mock.new_session(task, solo=False).fingerprint()


def test_schemas_and_policies_are_upstreams(mock: DomainBackend):
    task = mock.tasks("base")[0]
    # Digests of what tau2 1.0.1's own tools give.
    assert digest(mock.tool_schemas(task, solo=False)) == "76f98b729f9f923b"
    assert digest(mock.user_tool_schemas(task)) == "afd8a4c2af8b0f9b"
    agent = ["create_task", "get_users", "update_task_status", "transfer_to_human_agents"]
    assert names(mock.tool_schemas(task, solo=True)) == [*agent, "check_notifications", "dismiss_notification", "done"]
    assert mock.policy(task, solo=False) != mock.policy(task, solo=True)
    assert "tool call" in mock.user_guidelines(task)


def test_every_reference_solution_succeeds_and_meets_its_assertions(mock: DomainBackend):
    for task in mock.tasks("base"):
        played, replayed = mock.new_session(task, solo=False), mock.new_session(task, solo=False)
        for action in task.actions:
            assert not played.call(action.name, action.arguments, action.requestor).error
            replayed.replay(action)
        assert played.fingerprint() == replayed.fingerprint() == played.db_hashes()
        if task.actions:
            assert [played.run(assertion) for assertion in task.assertions] == [True] * len(task.assertions)


def test_results_read_as_upstreams(session: Session):
    created = '{"task_id": "task_2", "title": "T", "description": null, "status": "pending"}'
    assert session.call("create_task", {"user_id": "user_1", "title": "T"}).content == created
    assert session.call("get_users", {}).content == '[{"user_id": "user_1", "name": "Test User", "tasks": ["task_1", "task_2"]}]'
    updated = '{"task_id": "task_2", "title": "T", "description": null, "status": "completed"}'
    assert session.call("update_task_status", {"task_id": "task_2", "status": "completed"}).content == updated
    assert session.call("transfer_to_human_agents", {"summary": "x"}).content == "Transfer successful"
    assert session.call("check_notifications", {}, "user").content == "[]"


def test_a_status_is_stored_as_it_came_and_titles_are_checked(session: Session):
    assert session.call("update_task_status", {"task_id": "task_1", "status": 5}).content.endswith('"status": 5}')
    assert session.call("update_task_status", {"task_id": "task_1", "status": ["done"]}).content.endswith('"status": ["done"]}')
    bad = session.call("create_task", {"user_id": "user_1", "title": 5})
    assert bad.error and bad.content.startswith("Error: 1 validation error for Task\ntitle\n  Input should be a valid string")
    assert session.call("get_users", {}).content.endswith('"tasks": ["task_1"]}]')


@pytest.mark.parametrize(
    ("name", "arguments", "requestor", "text"),
    [
        ("create_task", {"user_id": "u", "title": "T"}, "assistant", "User u not found"),
        ("create_task", {"user_id": "u"}, "assistant", "MockTools.create_task() missing 1 required positional argument: 'title'"),
        ("update_task_status", {"task_id": "t", "status": "pending"}, "assistant", "Task t not found"),
        ("get_users", {"all": True}, "assistant", "MockTools.get_users() got an unexpected keyword argument 'all'"),
        ("delete_task", {}, "assistant", "Tool 'delete_task' not found."),
        ("check_notifications", {}, "assistant", "Tool 'check_notifications' not found."),
        ("assert_task_status", {"task_id": "task_1", "expected_status": "pending"}, "assistant", "Tool 'assert_task_status' not found."),
        ("dismiss_notification", {"notification_id": "n"}, "user", "Notification n not found"),
        ("create_task", {"user_id": "user_1", "title": "T"}, "user", "Tool 'create_task' not found."),
    ],
)
def test_errors_read_as_upstreams(session: Session, name: str, arguments: dict[str, Any], requestor: Any, text: str):
    before = session.fingerprint()
    result = session.call(name, arguments, requestor)
    assert (result.content, result.error, session.fingerprint()) == (f"Error: {text}", True, before)


def test_a_solo_agent_uses_the_users_tools_and_the_user_none(mock: DomainBackend):
    solo = begin(mock, solo=True, initialization_actions=[ADD_NOTE])
    assert '"status": "unread"' in solo.call("check_notifications", {}).content
    assert solo.call("dismiss_notification", {"notification_id": "n_1"}).content == "Notification n_1 dismissed"
    assert solo.call("check_notifications", {}, "user").content == "Error: User tool calls are not allowed in solo mode"


def test_assertions_look_at_both_sides_and_raise_for_what_is_not_there(mock: DomainBackend):
    session = begin(mock, initialization_actions=[ADD_NOTE])

    def holds(side: Any, name: str, **arguments: Any) -> Any:
        return session.run(EnvCall(side, name, arguments))

    assert holds("assistant", "assert_number_of_tasks", user_id="user_1", expected_number=1)
    assert not holds("assistant", "assert_task_status", task_id="task_1", expected_status="completed")
    assert holds("user", "assert_notification_status", notification_id="n_1", expected_status="unread")
    with pytest.raises(ValueError, match="Task task_2 not found"):
        holds("assistant", "assert_task_status", task_id="task_2", expected_status="pending")
    with pytest.raises(ValueError, match="User u not found"):
        holds("assistant", "assert_number_of_tasks", user_id="u", expected_number=0)


def test_a_message_history_is_made_again_and_must_come_out_as_recorded(mock: DomainBackend):
    task = mock.task("base", "update_task_with_message_history")
    assert mock.new_session(task, solo=False).run(
        EnvCall("assistant", "assert_task_status", {"task_id": "task_2", "expected_status": "pending"})
    )
    history: list[Any] = json.loads(json.dumps(task.message_history))
    history[2]["content"] = history[2]["content"].replace("task_2", "task_3")
    with pytest.raises(ValueError, match="message_history: create_task"):
        begin(mock, message_history=history)


def test_initialization_data_leaves_both_sides_with_one_database_as_upstream_does(mock: DomainBackend):
    task = mock.task("base", "update_task_with_initialization_data")
    session = mock.new_session(task, solo=False)
    assert not session.call("update_task_status", {"task_id": "task_2", "status": "completed"}).error
    assert session.call("check_notifications", {}, "user").content == "Error: 'MockDB' object has no attribute 'notifications'"
    assert session.fingerprint()[0] == session.fingerprint()[1]
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        begin(mock, initialization_data={"agent_data": {"projects": {}}})


def test_sessions_share_nothing(mock: DomainBackend):
    one, other = (begin(mock, initialization_actions=[ADD_NOTE]) for _ in range(2))
    untouched = other.fingerprint()
    one.call("create_task", {"user_id": "user_1", "title": "T"})
    one.call("update_task_status", {"task_id": "task_1", "status": "completed"})
    one.call("dismiss_notification", {"notification_id": "n_1"}, "user")
    assert one.fingerprint() != untouched == other.fingerprint() == begin(mock, initialization_actions=[ADD_NOTE]).fingerprint()


@pytest.fixture
def newer_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], DomainBackend]:
    """Data in upstream's layout: a tenth task, for which the user has tools and a database."""
    folder = tmp_path / "tau2" / "domains" / "mock"
    folder.mkdir(parents=True)
    wanted = {
        "env_type": "user",
        "func_name": "assert_notification_status",
        "arguments": {"notification_id": "n_1", "expected_status": "read"},
    }
    update = {"name": "update_task_status", "arguments": {"task_id": "task_1", "status": "completed"}}
    task = {
        "id": "update_task_with_user_tools",
        "ticket": "Do it.",
        "initial_state": {"initialization_actions": [ADD_NOTE]},
        "evaluation_criteria": {"actions": [update], "env_assertions": [wanted], "reward_basis": ["DB", "ACTION", "ENV_ASSERTION"]},
    }
    (folder / "tasks.json").write_text(json.dumps([task]))
    (folder / "split_tasks.json").write_text(json.dumps({"base": [task["id"]]}))
    (folder / "user_db.json").write_text(json.dumps({"notifications": {"n_0": NOTE | {"notification_id": "n_0", "status": "read"}}}))
    monkeypatch.setenv("TAU2_DATA_DIR", str(tmp_path))
    return lambda: open_mock("mock")


def test_newer_data_brings_the_task_with_user_tools_and_the_users_database(newer_data: Callable[[], DomainBackend]):
    mock = newer_data()
    (task,) = mock.tasks("base")
    session, reference = mock.new_session(task, solo=False), mock.new_session(task, solo=False)
    reference.replay(Action("assistant", "update_task_status", {"task_id": "task_1", "status": "completed"}, None))
    assert [note["notification_id"] for note in json.loads(session.call("check_notifications", {}, "user").content)] == ["n_0", "n_1"]
    session.call("update_task_status", {"task_id": "task_1", "status": "completed"})
    session.call("dismiss_notification", {"notification_id": "n_1"}, "user")
    assert session.run(task.assertions[0]) is True
    same = [ours == theirs for ours, theirs in zip(session.fingerprint(), reference.fingerprint(), strict=True)]
    assert same == [True, False] and "TAU2_DATA_DIR" in mock.source
