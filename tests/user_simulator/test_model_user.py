"""The user behind an OpenAI-compatible server: prompt, role swap, deadline, retries, resampling and fault labels, over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import Sglang
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from user_fakes import GREETING, TOOLS, Json, LiveApp, agent, ran, turn, user

from services.common.wire.users import Fault, UserTurnReply
from services.user_simulator.model import Limits, ModelUser
from services.user_simulator.openai_backend import OpenAIBackend, model_name, request_arguments
from services.user_simulator.prompt import prompt, system_prompt


class FakeModel:
    """An OpenAI-compatible server that answers from a list; the last answer repeats."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.bodies: list[Json] = []
        self.app = FastAPI()
        self.app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"])

    async def complete(self, request: Request) -> Any:
        self.bodies.append(await request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, JSONResponse) else {"choices": [{"message": {"role": "assistant", **answer}}]}


@asynccontextmanager
async def model_user(base_url: str, *, turn_s: float = 5.0, call_s: float = 5.0, **settings: Any) -> AsyncIterator[ModelUser]:
    backend = OpenAIBackend(base_url, "openai/self-hosted-Qwen2.5-72B", timeout_s=call_s)
    try:
        yield ModelUser(backend, request_arguments({"temperature": 0.0}), Limits(turn_s, call_s), **settings)
    finally:
        await backend.close()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def ask(model: FakeModel) -> Iterator[Callable[..., Any]]:
    live = LiveApp(model.app)

    async def ask(*messages: Any, turn_s: float = 5.0) -> UserTurnReply:
        async with model_user(f"{live.url}/v1", turn_s=turn_s) as one:
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
    assert chat[3]["content"] == ""
    assert chat[4] == {"role": "tool", "content": "ON", "tool_call_id": "user_call_0"}


def test_persona_guidelines_stand_where_the_guidelines_have_their_mark():
    assert system_prompt("a\n<PERSONA_GUIDELINES>\nb", "S") == "a\n\nb\n\n<scenario>\nS\n</scenario>"
    assert system_prompt("a\n<PERSONA_GUIDELINES>\nb", "S", "Be terse.") == "a\n\n\nBe terse.\n\nb\n\n<scenario>\nS\n</scenario>"
    assert system_prompt("a", "S", "Be terse.") == "a\n\n<scenario>\nS\n</scenario>"


async def test_a_turn_is_one_completion_with_the_configured_arguments(ask: Callable[..., Any], model: FakeModel):
    model.answers = [{"content": "My phone is broken."}]
    assert await ask() == UserTurnReply(content="My phone is broken.")
    body = model.bodies[0]
    assert (body["model"], body["temperature"], body["top_p"], body["seed"]) == ("self-hosted-Qwen2.5-72B", 0.0, 1.0, 4)
    assert (body["tools"], body["tool_choice"]) == (TOOLS, "auto")
    assert len(model.bodies) == 1


def test_areals_names_of_models_and_arguments_are_understood():
    assert model_name("openai/self-hosted-Qwen2.5-72B") == "self-hosted-Qwen2.5-72B"
    assert model_name("hosted_vllm/qwen") == "qwen"
    assert model_name("Qwen/Qwen2.5-72B-Instruct") == "Qwen/Qwen2.5-72B-Instruct"
    given = {"temperature": 0.0, "max_completion_tokens": 512, "num_retries": 3, "extra_body": {"chat_template_kwargs": {"x": 1}}}
    assert request_arguments(given) == {
        "top_p": 1.0,
        "temperature": 0.0,
        "max_completion_tokens": 512,
        "chat_template_kwargs": {"x": 1},
    }


async def test_tool_calls_and_stops_come_through_and_thinking_does_not(ask: Callable[..., Any], model: FakeModel):
    model.answers = [call("toggle_data", '{"x": 1}')]
    assert [(one.id, one.name, one.arguments) for one in (await ask()).tool_calls] == [("t1", "toggle_data", {"x": 1})]
    model.answers = [{"content": "<think>I should stop</think>Thanks! ###STOP###"}]
    reply = await ask(GREETING, user("hi"), agent("fixed"))
    assert (reply.content, reply.stop, reply.fault) == ("Thanks! ###STOP###", "stop", Fault.OK)
    model.answers = [{"content": "they asked for my name</think>\n\nJohn."}]
    assert (await ask()).content == "John."


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
    # Another seed alone would give the same turn again at temperature 0.
    assert [(body["seed"], body["temperature"]) for body in model.bodies] == [(4, 0.0), (5, 0.7)]
    model.answers = [answer, {"content": "My phone is broken."}]
    reply = await ask()
    assert (reply.content, reply.fault, reply.attempts) == ("My phone is broken.", Fault.OK, 2)


async def test_of_two_faulty_samples_the_one_that_can_be_used_is_the_turn(ask: Callable[..., Any], model: FakeModel):
    flip: Json = {"content": "How may I help you?"}
    for answers in ([{"content": ""}, flip], [flip, {"content": ""}], [flip, JSONResponse({"error": "gone"}, 404)]):
        model.answers = answers
        reply = await ask()
        assert (reply.fault, reply.content, reply.attempts) == (Fault.ROLE_FLIP, "How may I help you?", 2)


async def test_the_tally_knows_samples_resamples_and_retries(model: FakeModel):
    live = LiveApp(model.app)
    model.answers = [JSONResponse({"error": "busy"}, 503), {"content": ""}, {"content": "hello"}]
    try:
        async with model_user(f"{live.url}/v1") as one:
            assert (await one.turn(turn(GREETING))).fault is Fault.OK
            assert (dict(one.tally.first_samples), one.tally.resampled, one.tally.retries) == ({Fault.EMPTY: 1}, 1, 1)
    finally:
        live.stop()


async def test_a_refusal_is_not_asked_again(ask: Callable[..., Any], model: FakeModel):
    model.answers = [JSONResponse({"error": {"message": "the context is 32768 tokens", "code": "context_length_exceeded"}}, 400)]
    reply = await ask()
    assert (reply.fault, reply.content) == (Fault.BACKEND_ERROR, None)
    assert "32768" in reply.detail
    model.answers = [JSONResponse({"nonsense": 1})]
    assert "no chat completion" in (await ask()).detail
    assert len(model.bodies) == 2


async def test_a_server_that_aborts_fails_or_stalls_is_asked_again_within_the_turn(sglang: Sglang):
    for mode in ("abort", "error", "stall"):
        sglang.control(mode, times=1)
        async with model_user(sglang.base_url, turn_s=5, call_s=0.4) as one:
            reply = await one.turn(turn(GREETING))
        assert (reply.fault, reply.content, one.tally.retries) == (Fault.OK, "My phone is broken, seed 4.", 1), mode


async def test_a_turn_has_a_deadline_whatever_the_server_does(sglang: Sglang):
    for mode, why in (("stall", "no answer"), ("abort", "aborted"), ("error", "exception")):
        sglang.control(mode)
        started = time.monotonic()
        async with model_user(sglang.base_url, turn_s=0.8, call_s=0.3) as one:
            reply = await asyncio.wait_for(one.turn(turn(GREETING)), 5)
        assert reply.fault is Fault.BACKEND_ERROR, mode
        assert why in reply.detail
        assert time.monotonic() - started < 2


async def test_a_server_that_is_not_there_is_a_labelled_turn():
    async with model_user("http://127.0.0.1:9/v1", turn_s=0.5) as one:
        reply = await one.turn(turn(GREETING))
    assert (reply.fault, reply.content) == (Fault.BACKEND_ERROR, None)
    assert "unreachable" in reply.detail


async def test_a_cancelled_turn_is_cancelled_at_the_server(sglang: Sglang):
    sglang.control("stall")
    async with model_user(sglang.base_url) as one:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.turn(turn(GREETING)), 0.3)
