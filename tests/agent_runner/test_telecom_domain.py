"""The telecom back end: its tasks, texts and schemas, and sessions that agree with the port's own hosting."""

import hashlib
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent_runner.domains import DomainBackend, TaskSpec, UnknownDomain, UnknownSplit, open_backend
from services.agent_runner.domains.render import to_text
from services.agent_runner.prompts import system_prompt
from services.agent_runner.user import scenario_text

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


def test_unknown_names_are_refused_with_the_known_ones(telecom: DomainBackend):
    with pytest.raises(UnknownSplit, match=r"no split 'dev'; it has .*small"):
        telecom.tasks("dev")
    with pytest.raises(UnknownDomain, match=r"'retail'; known: telecom"):
        open_backend("retail")


def test_tools_stand_in_definition_order_and_solo_adds_the_users_and_done(telecom: DomainBackend):
    assert names(telecom.tool_schemas(solo=False)) == AGENT_TOOLS
    users = names(telecom.user_tool_schemas())
    assert (len(users), users[0], users[-1]) == (30, "check_status_bar", "make_payment")
    assert names(telecom.tool_schemas(solo=True)) == [*AGENT_TOOLS, *users, "done"]


def test_schemas_are_upstreams(telecom: DomainBackend):
    """The digest was taken once from upstream's own `Tool.openai_schema`; `set_apn_settings` differs by the port's model (docs)."""
    schemas = [schema for schema in telecom.tool_schemas(solo=True)[:-1] if schema["function"]["name"] != "set_apn_settings"]
    digest = hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()
    assert digest == "4ed2b81ed39fe4703455138c4a4b25f71add024bf9c67dd3be27f22c4e37f25f"


def test_the_prompt_has_upstreams_layout(telecom: DomainBackend, small: list[TaskSpec]):
    solo = system_prompt(telecom.policy(solo=True), small[0].ticket)
    assert solo.startswith("<instructions>\nYou are a customer service agent")
    assert "single tool call to the `done` tool" in solo
    assert "</tech_support_policy>\n</policy>\n<ticket>\nThe user is experiencing issues" in solo
    assert solo.endswith("</ticket>")
    normal = system_prompt(telecom.policy(solo=False), None)
    assert "You cannot do both at the same time." in normal
    assert normal.endswith("</tech_support_policy>\n</policy>")
    assert "\n\n</main_policy>" not in solo + normal


def test_a_digest_depends_on_the_whole_task(small: list[TaskSpec]):
    assert len({task.digest for task in small}) == 20
    changed = TaskSpec("telecom", small[0].raw | {"ticket": "other"})
    assert changed.digest != small[0].digest
    assert TaskSpec("telecom", dict(reversed(small[0].raw.items()))).digest == small[0].digest


def test_scenario_texts_are_the_ports(telecom: DomainBackend):
    from inspect_evals.tau2.data_model.tasks import Task

    for task in telecom.tasks("base")[:40]:
        assert scenario_text(task.raw["user_scenario"]) == str(Task.model_validate(task.raw).user_scenario)


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
    ],
)
def test_errors_are_results_with_upstreams_text(telecom: DomainBackend, small: list[TaskSpec], name: str, arguments: Any, text: str):
    result = telecom.new_session(small[0], solo=True).call(name, arguments)
    assert (result.content, result.error) == (text, True)


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
    for name in names(telecom.tool_schemas(solo=True)):
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


class Hosted:
    """The port's own classes on their own StoreModel hosting."""

    def __init__(self, telecom: Any, task: TaskSpec) -> None:
        from inspect_ai.util._store import Store
        from inspect_evals.tau2.telecom.environment import Environment
        from inspect_evals.tau2.telecom.TelecomAgentTools import TelecomAgentTools, TelecomDB
        from inspect_evals.tau2.telecom.TelecomUserTools import TelecomUserDB, TelecomUserTools

        store = Store()
        self.agent, self.user = TelecomAgentTools(store=store), TelecomUserTools(store=store)
        self.agent.initialized = self.user.initialized = True
        self.agent.db = TelecomDB.model_validate(telecom._agent_data)
        self.user.db = TelecomUserDB.model_validate(telecom._user_data)
        self.environment = Environment(user_tools=self.user, tools=self.agent)
        self.users = names(telecom.user_tool_schemas())
        for call in task.initialization:
            getattr(self.user if call.env_type == "user" else self.agent, call.name)(**call.arguments)
            self.environment.sync_tools()

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        try:
            value = getattr(self.user if name in self.users else self.agent, name)(**arguments)
            self.environment.sync_tools()
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its result
            return f"Error: {error}".replace("TelecomAgentTools.", "TelecomTools."), True
        return (json.dumps(value, default=str) if name == "get_details_by_id" else to_text(value)), False


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


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # a call may write a string where the phone keeps APN settings
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_calls_gives_the_ports_own_results_and_end_state(telecom: DomainBackend, data: st.DataObject):
    task = data.draw(st.sampled_from(telecom.tasks("base")), label="task")
    schemas = telecom.tool_schemas(solo=True)[:-1]
    ours, theirs = telecom.new_session(task, solo=True), Hosted(telecom, task)
    for _ in range(data.draw(st.integers(1, 10), label="calls")):
        schema = data.draw(st.sampled_from(schemas))
        arguments = data.draw(arguments_of(schema))
        result = ours.call(schema["function"]["name"], json.loads(json.dumps(arguments)))
        assert (result.content, result.error) == theirs.call(schema["function"]["name"], arguments)
    assert ours.fingerprint() == (theirs.agent.db.get_hash(), theirs.user.db.get_hash())
