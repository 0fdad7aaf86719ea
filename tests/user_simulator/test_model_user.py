"""The user behind an OpenAI-compatible server: prompt, role flip, deadline, resampling and fault labels, over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from user_fakes import GREETING, TOOLS, LiveApp, agent, ran, turn, user

from services.common.wire.users import Fault, UserTurnReply
from services.user_simulator.model import ModelUser, prompt

Json = dict[str, Any]


class FakeModel:
    """An OpenAI-compatible server that answers from a list; the last answer repeats."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.bodies: list[Json] = []
        self.delay_s = 0.0
        self.app = FastAPI()
        self.app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"])

    async def complete(self, request: Request) -> Any:
        self.bodies.append(await request.json())
        await asyncio.sleep(self.delay_s)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, JSONResponse) else {"choices": [{"message": {"role": "assistant", **answer}}]}


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def ask(model: FakeModel) -> Iterator[Callable[..., Any]]:
    live = LiveApp(model.app)

    @asynccontextmanager
    async def client(timeout_s: float) -> AsyncIterator[ModelUser]:
        one = ModelUser(f"{live.url}/v1", "openai/self-hosted-Qwen2.5-72B", {"temperature": 0.0}, turn_timeout_s=timeout_s)
        try:
            yield one
        finally:
            await one.close()

    async def ask(*messages: Any, timeout_s: float = 5.0) -> UserTurnReply:
        async with client(timeout_s) as one:
            return await one.turn(turn(*(messages or (GREETING,))))

    yield ask
    live.stop()


def call(name: str, arguments: str = "{}") -> Json:
    return {"content": None, "tool_calls": [{"id": "t1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def test_the_prompt_has_upstreams_layout_and_swapped_roles():
    chat = prompt(turn(GREETING, user("hi"), *ran("toggle_data", "ON", mode="x"), user("it is on"), agent("good")))
    assert chat[0] == {"role": "system", "content": "# Rules\n\n<scenario>\nInstructions:\n\tDomain: telecom\n</scenario>"}
    assert [message["role"] for message in chat[1:]] == ["user", "assistant", "assistant", "tool", "assistant", "user"]
    assert chat[3]["tool_calls"][0]["function"] == {"name": "toggle_data", "arguments": '{"mode": "x"}'}
    assert chat[4] == {"role": "tool", "content": "ON", "tool_call_id": "user_call_0"}


async def test_a_turn_is_one_completion_with_the_configured_arguments(ask: Callable[..., Any], model: FakeModel):
    model.answers = [{"content": "My phone is broken."}]
    reply = await ask()
    assert reply == UserTurnReply(content="My phone is broken.")
    body = model.bodies[0]
    assert (body["model"], body["temperature"], body["seed"], body["tools"]) == ("self-hosted-Qwen2.5-72B", 0.0, 4, TOOLS)
    assert len(model.bodies) == 1


async def test_tool_calls_and_stops_come_through_and_thinking_does_not(ask: Callable[..., Any], model: FakeModel):
    model.answers = [call("toggle_data", '{"x": 1}')]
    assert [(one.id, one.name, one.arguments) for one in (await ask()).tool_calls] == [("t1", "toggle_data", {"x": 1})]
    model.answers = [{"content": "<think>I should stop</think>Thanks! ###STOP###"}]
    reply = await ask(GREETING, user("hi"), agent("fixed"))
    assert (reply.content, reply.stop, reply.fault) == ("Thanks! ###STOP###", "stop", Fault.OK)


FAULTS: dict[str, tuple[Json, Fault]] = {
    "empty": ({"content": " "}, Fault.EMPTY),
    "only thoughts": ({"content": "<think>hm"}, Fault.EMPTY),
    "role flip": ({"content": "Hello! How may I assist you today?"}, Fault.ROLE_FLIP),
    "leak": ({"content": "My task instructions say that I am angry."}, Fault.LEAKED_INSTRUCTIONS),
    "premature stop": ({"content": "###STOP###"}, Fault.PREMATURE_STOP),
    "text and call": (call("toggle_data") | {"content": "Sure!"}, Fault.OUT_OF_PROTOCOL),
    "unknown tool": (call("fly"), Fault.OUT_OF_PROTOCOL),
    "bad arguments": (call("toggle_data", "{"), Fault.OUT_OF_PROTOCOL),
    "arguments are a list": (call("toggle_data", "[]"), Fault.OUT_OF_PROTOCOL),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_sampled_anew_once_and_labelled_if_it_stays(ask: Callable[..., Any], model: FakeModel, name: str):
    answer, fault = FAULTS[name]
    model.answers = [answer]
    reply = await ask()
    assert (reply.fault, reply.attempts) == (fault, 2)
    assert reply.detail
    assert [body["seed"] for body in model.bodies] == [4, 5]
    model.answers = [answer, {"content": "My phone is broken."}]
    reply = await ask()
    assert (reply.content, reply.fault, reply.attempts) == ("My phone is broken.", Fault.OK, 2)


async def test_a_server_that_fails_is_asked_again_and_one_that_stays_away_is_labelled(ask: Callable[..., Any], model: FakeModel):
    busy = JSONResponse({"error": {"message": "busy", "code": "busy"}}, 503)
    model.answers = [busy, {"content": "hello"}]
    assert (await ask()).content == "hello"
    model.answers = [busy]
    reply = await ask(timeout_s=0.5)
    assert (reply.fault, reply.content) == (Fault.BACKEND_ERROR, None)
    model.answers = [JSONResponse({"error": {"message": "no such model", "code": "not_found"}}, 404)]
    assert "no such model" in (await ask()).detail
    model.answers = [JSONResponse({"nonsense": 1})]
    assert (await ask()).fault is Fault.BACKEND_ERROR


async def test_a_turn_has_a_deadline(ask: Callable[..., Any], model: FakeModel):
    model.answers, model.delay_s = [{"content": "late"}], 20
    reply = await asyncio.wait_for(ask(timeout_s=0.3), 5)
    assert reply.fault is Fault.BACKEND_ERROR
