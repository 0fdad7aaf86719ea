"""The agent runner's user: what it sends each turn, what it makes of the answer, and whose fault a missing turn is."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Sglang
from user_fakes import TOOLS, Json, LiveApp, tasks

from services.agent_runner.conversation.messages import Message, ToolCall
from services.agent_runner.conversation.user import SimulatedUser, UserFailed, scenario_of
from services.agent_runner.domains import TaskSpec
from services.common.config import ExperimentConfig
from services.common.http import ServiceClient
from services.common.wire.users import Fault
from services.user_simulator.app import create_app

TASK = TaskSpec("telecom", tasks("telecom")[0])
HELLO = Message("assistant", "Hi! How can I help you today?")


class Backend:
    """The part of a domain back end that a user needs."""

    def user_guidelines(self, task: TaskSpec) -> str:
        return f"# Rules for {task.domain}"

    def user_tool_schemas(self, task: TaskSpec) -> list[Json]:
        return TOOLS


@pytest.fixture
def live(sglang: Sglang) -> Iterator[LiveApp]:
    tree: Any = {
        "econfig": {"user_llm": "openai/qwen", "user_llm_base_url": sglang.base_url, "user_llm_args": {"temperature": 0.0}},
        "services": {"user_simulator": {"turn_timeout_s": 1.0, "call_timeout_s": 1.0}},
    }
    one = LiveApp(create_app(ExperimentConfig.model_validate(tree)))
    yield one
    one.stop()


def user_of(client: ServiceClient) -> SimulatedUser:
    backend: Any = Backend()
    return SimulatedUser(client, backend, TASK, seed=1, timeout_s=5)


async def test_the_model_sees_the_scenario_and_the_users_own_calls_with_their_results(sglang: Sglang, live: LiveApp):
    before = len(sglang.bodies())
    asked = Message("user", None, (ToolCall("c1", "toggle_data", {"big": 2**70}),))
    history = [HELLO, Message("user", "help"), Message("assistant", "toggle it"), asked, Message("tool", "ON", tool_call_id="c1")]
    async with ServiceClient("user_simulator", live.url) as client:
        user = user_of(client)
        for length in (1, 3, 5):
            assert (await user.reply(history[:length])).has_text
        reply = await user.reply([HELLO, Message("user", "other")])
    assert (reply.role, reply.note) == ("user", None)
    body = sglang.bodies()[before + 2]
    assert body["messages"][0]["content"] == f"# Rules for telecom\n\n<scenario>\n{scenario_of(TASK).text}\n</scenario>"
    assert [message["role"] for message in body["messages"][1:]] == ["user", "assistant", "user", "assistant", "tool"]
    assert body["messages"][4]["tool_calls"][0]["function"] == {"name": "toggle_data", "arguments": f'{{"big": {2**70}}}'}
    assert body["messages"][5] == {"role": "tool", "content": "ON", "tool_call_id": "c1"}
    assert body["tools"] == TOOLS
    seeds = [body["seed"] for body in sglang.bodies()[before:]]
    assert len(set(seeds)) == 4
    assert sglang.bodies()[before + 3]["messages"][2] == {"role": "assistant", "content": "other"}


async def test_a_turn_that_is_none_is_the_users_failure_with_its_label(sglang: Sglang, live: LiveApp):
    sglang.control("stall")
    async with ServiceClient("user_simulator", live.url) as client:
        with pytest.raises(UserFailed, match="backend_error: ") as raised:
            await user_of(client).reply([HELLO])
    assert raised.value.fault is Fault.BACKEND_ERROR


@pytest.mark.parametrize("domain", ["airline", "mock", "banking_knowledge"])
def test_a_scenario_has_upstreams_text_and_its_parts(domain: str):
    for raw in tasks(domain):
        told = scenario_of(TaskSpec(domain, raw))
        assert told.text.startswith(("Instructions:\n\t", "Persona:\n\t"))
        assert told.task_instructions
        assert bool(told.reason_for_call) == (domain == "airline")
