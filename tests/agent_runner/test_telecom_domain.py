"""The telecom back end: its tasks, texts and schemas, and sessions whose results have upstream's text."""

import time
from typing import Any

import pytest

from services.agent_runner.domains import DomainBackend, TaskSpec, UnknownSplit, UnknownTask

AGENT_TOOLS = [
    "get_customer_by_phone",
    "get_customer_by_id",
    "get_customer_by_name",
    "get_details_by_id",
    "suspend_line",
    "resume_line",
    "get_bills_for_customer",
    "send_payment_request",
    "get_data_usage",
    "enable_roaming",
    "disable_roaming",
    "transfer_to_human_agents",
    "refuel_data",
]


def names(schemas: list[dict[str, Any]]) -> list[str]:
    return [schema["function"]["name"] for schema in schemas]


def test_splits_have_upstreams_sizes_and_order(telecom: DomainBackend):
    sizes = {split: len(telecom.tasks(split)) for split in telecom.splits()}
    assert sizes == {"small": 20, "train": 74, "test": 40, "base": 114, "full": 2285}
    full = [task.task_id for task in telecom.tasks("full")]
    small = [task.task_id for task in telecom.tasks("small")]
    assert small == [task_id for task_id in full if task_id in set(small)]


def test_unknown_names_are_refused_with_the_known_ones(telecom: DomainBackend, small: list[TaskSpec]):
    with pytest.raises(UnknownSplit, match=r"no split 'dev'; it has base, .*small"):
        telecom.tasks("dev")
    with pytest.raises(UnknownTask, match="did you mean"):
        telecom.task("small", small[0].task_id[:-3])


def test_tools_stand_in_definition_order_and_solo_adds_the_users_and_done(telecom: DomainBackend, small: list[TaskSpec]):
    assert names(telecom.tool_schemas(small[0], solo=False)) == AGENT_TOOLS
    users = names(telecom.user_tool_schemas(small[0]))
    assert (len(users), users[0], users[-1]) == (30, "check_status_bar", "make_payment")
    assert names(telecom.tool_schemas(small[0], solo=True)) == [*AGENT_TOOLS, *users, "done"]


def test_a_digest_depends_on_the_whole_task(small: list[TaskSpec]):
    assert len({task.digest for task in small}) == 20
    changed = TaskSpec("telecom", small[0].raw | {"ticket": "other"})
    assert changed.digest != small[0].digest
    assert TaskSpec("telecom", dict(reversed(small[0].raw.items()))).digest == small[0].digest


def test_the_users_tools_can_be_chosen_by_the_task(telecom: DomainBackend, small: list[TaskSpec]):
    chosen = TaskSpec("telecom", small[0].raw | {"user_tools": ["toggle_wifi", "check_status_bar"]})
    assert names(telecom.user_tool_schemas(chosen)) == ["check_status_bar", "toggle_wifi"]
    assert "tool" in telecom.user_guidelines(chosen).lower()
    for without in ([], ["no_such_tool"]):
        task = TaskSpec("telecom", small[0].raw | {"user_tools": without})
        assert telecom.user_tool_schemas(task) == []
        assert "tool" not in telecom.user_guidelines(task).lower()


def test_results_have_upstreams_text(telecom: DomainBackend, small: list[TaskSpec]):
    session = telecom.new_session(small[0], solo=True)
    line = session.call("get_details_by_id", {"id": "L1002"}).content
    assert line.startswith('{"line_id": "L1002"')
    assert '"data_used_gb": 8.7' in line
    assert '"data_used_gb": "8.7"' in session.call("get_data_usage", {"customer_id": "C1001", "line_id": "L1002"}).content
    assert session.call("check_vpn_status", {}).content == "VPN is turned OFF."


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("no_such_tool", {}, "Error: Tool 'no_such_tool' not found."),
        ("_set_bill_to_paid", {"bill_id": "B1001"}, "Error: Tool '_set_bill_to_paid' not found."),
        ("turn_data_on", {}, "Error: Tool 'turn_data_on' not found."),
        ("get_details_by_id", {}, "Error: TelecomTools.get_details_by_id() missing 1 required positional argument: 'id'"),
        ("toggle_data", {"x": 1}, "Error: TelecomUserTools.toggle_data() got an unexpected keyword argument 'x'"),
        ("get_details_by_id", {"id": "L9"}, "Error: Line with ID L9 not found"),
        ("set_apn_settings", {}, "Error: TelecomUserTools.set_apn_settings() missing 1 required positional argument: 'apn_settings'"),
    ],
)
def test_errors_are_results_with_upstreams_text(telecom: DomainBackend, small: list[TaskSpec], name: str, arguments: Any, text: str):
    result = telecom.new_session(small[0], solo=True).call(name, arguments)
    assert (result.content, result.error) == (text, True)


def test_phone_settings_with_unknown_fields_are_refused(telecom: DomainBackend, small: list[TaskSpec]):
    session = telecom.new_session(small[0], solo=True)
    refused = session.call("set_apn_settings", {"apn_settings": {"apn_name": "internet", "speed": 1}})
    assert refused.content.startswith("Error: 1 validation error for APNSettings\nspeed\n  Extra inputs are not permitted")
    assert not session.call("set_apn_settings", {"apn_settings": {"apn_name": "broken"}}).error
    assert "broken" in session.call("check_apn_settings", {}).content


def test_who_may_call_what_depends_on_the_mode(telecom: DomainBackend, small: list[TaskSpec]):
    normal = telecom.new_session(small[0], solo=False)
    assert normal.call("toggle_data", {}, "assistant").content == "Error: Tool 'toggle_data' not found."
    assert not normal.call("toggle_data", {}, "user").error
    assert normal.call("enable_roaming", {}, "user").error
    solo = telecom.new_session(small[0], solo=True)
    assert solo.call("toggle_data", {}, "user").content == "Error: User tool calls are not allowed in solo mode"


def test_sessions_share_nothing_that_changes(telecom: DomainBackend, task_of: Any):
    task = task_of("bad_vpn")
    before = telecom.new_session(task, solo=True).fingerprint()
    busy, idle = telecom.new_session(task, solo=True), telecom.new_session(task, solo=True)
    for name in names(telecom.tool_schemas(task, solo=True)):
        busy.call(name, {})
    busy.call("refuel_data", {"customer_id": "C1001", "line_id": "L1002", "gb_amount": 2})
    busy.call("connect_vpn", {})
    assert busy.fingerprint() != before
    assert idle.fingerprint() == before == telecom.new_session(task, solo=True).fingerprint()
    healthy = telecom.new_session(task_of("data_mode_off"), solo=True)
    healthy.call("connect_vpn", {})
    assert "EXCELLENT" in healthy.call("check_vpn_status", {}).content


def test_a_new_session_is_cheap(telecom: DomainBackend, small: list[TaskSpec]):
    started = time.process_time()
    for _ in range(10):
        for task in small:
            telecom.new_session(task, solo=True)
    assert (time.process_time() - started) / 200 < 0.002
