"""The Responses API and Anthropic's Messages API, asked by their own SDKs, and litellm's client: the same calls in other words."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, RunConfig, Runner, function_tool
from anthropic import Anthropic, AsyncAnthropic
from proxy_helpers import ProxyUnderTest, SessionClient, call_text, tool, user

CALLS = "Let me look.\n" + call_text("look_up", city="Paris") + "<|im_end|>"
THINKS_AND_CALLS = "<think>\nWhere?\n</think>\n\n" + CALLS
FUNCTION = {"type": "function", **tool()["function"]}
CUSTOM = {"name": "look_up", "description": "Looks something up.", "input_schema": tool()["function"]["parameters"]}


@pytest.fixture
def session(proxy: ProxyUnderTest) -> SessionClient:
    proxy.says(CALLS, "It rains.<|im_end|>")
    return proxy.open()


@pytest.fixture
def claude(session: SessionClient) -> Iterator[Anthropic]:
    with Anthropic(base_url=session.base_url.removesuffix("/v1"), api_key=session.api_key, max_retries=0) as client:
        yield client


def assert_one_path(session: SessionClient) -> None:
    first, second = session.proxy.assert_token_exact(session)
    assert second.parent == first.call_id
    assert session.proxy.metric("branches_total") == 0


def test_responses_speak_call_and_go_on(session: SessionClient) -> None:
    asked: dict[str, Any] = {"model": "policy", "instructions": "Be brief.", "tools": [FUNCTION], "temperature": 0.5}
    with session.openai(max_retries=0) as client:
        first = client.responses.create(input="weather?", max_output_tokens=200, **asked)
        assert [item.type for item in first.output] == ["message", "function_call"]
        assert (first.status, first.output_text) == ("completed", "Let me look.")
        called = first.output[-1]
        assert called.type == "function_call" and json.loads(called.arguments) == {"city": "Paris"}
        said = [item.model_dump(exclude_none=True) for item in first.output]
        result = {"type": "function_call_output", "call_id": called.call_id, "output": "rain"}
        second = client.responses.create(input=[{"role": "user", "content": "weather?"}, *said, result], **asked)
    assert second.output_text == "It rains."
    assert second.usage is not None
    assert second.usage.output_tokens == len(session.proxy.engine.exchanges[1].output_ids)
    assert session.proxy.engine.exchanges[0].params["max_new_tokens"] == 200
    assert_one_path(session)


def test_responses_stream_what_they_end_as(session: SessionClient) -> None:
    session.proxy.says(THINKS_AND_CALLS, "It rains.<|im_end|>")
    with session.openai(max_retries=0) as client:
        events = list(client.responses.create(model="policy", input="weather?", tools=[FUNCTION], stream=True))
        with client.responses.stream(model="policy", input="and now?") as helper:
            assert helper.get_final_response().output_text == "It rains."
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == last.response.output_text
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Where?"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in done] == [item.model_dump() for item in last.response.output]
    assert len(session.records) == 2


async def test_the_agents_sdk_works_over_responses(proxy: ProxyUnderTest) -> None:
    proxy.says(CALLS, "It rains.<|im_end|>")
    session = await asyncio.to_thread(proxy.open)

    @function_tool(strict_mode=False)
    def look_up(city: str) -> str:
        """Looks something up."""
        return f"rain in {city}"

    async with session.async_openai(max_retries=0) as client:
        settings = ModelSettings(parallel_tool_calls=False, store=False)
        agent = Agent(name="clerk", model=OpenAIResponsesModel("policy", client), tools=[look_up], model_settings=settings)
        run = Runner.run_streamed(agent, "weather?", run_config=RunConfig(tracing_disabled=True), max_turns=3)
        async for _ in run.stream_events():
            pass
    assert run.final_output == "It rains."
    assert_one_path(session)


RESPONSES_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "r"}, "previous_response_id"),
    ({"reasoning": {"effort": "low"}}, "reasoning"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"top_p": 0.5}, "top_p"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"n": 2}, "n"),
    ({"input": "hello world " * 5000}, "input"),
]
MESSAGES_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
    ({"tool_choice": {"type": "any"}, "tools": [CUSTOM]}, "tool_choice"),
    ({"stop": ["x"]}, "stop"),
    ({"n": 2}, "n"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
]


def test_responses_refuse_by_their_own_names(session: SessionClient) -> None:
    with session.openai(max_retries=0) as client:
        for body, param in RESPONSES_REFUSED:
            with pytest.raises(openai.BadRequestError) as refused:
                client.post("/responses", body={"model": "policy", "input": "hi"} | body, cast_to=object)
            assert refused.value.param == param
    assert session.records == []


def test_messages_speak_call_and_go_on(session: SessionClient, claude: Anthropic) -> None:
    asked: dict[str, Any] = {"model": "policy", "system": "Be brief.", "tools": [CUSTOM], "max_tokens": 200}
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    raw = claude.messages.with_raw_response.create(messages=messages, **asked)
    first = raw.parse()
    assert raw.headers["X-Call-Id"] == first.id
    assert [block.type for block in first.content] == ["text", "tool_use"]
    assert first.stop_reason == "tool_use"
    used = first.content[1]
    assert used.type == "tool_use" and used.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "rain"}]}
    messages += [{"role": "assistant", "content": [block.model_dump() for block in first.content]}, {"role": "user", "content": [result]}]
    counted = claude.messages.count_tokens(model="policy", system="Be brief.", tools=[CUSTOM], messages=messages)
    second = claude.messages.create(messages=messages, **asked)
    assert (second.stop_reason, second.content[0].type) == ("end_turn", "text")
    exchange = session.proxy.engine.exchanges[1]
    assert counted.input_tokens == len(exchange.input_ids)
    assert second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0) == len(exchange.input_ids)
    assert_one_path(session)


def test_messages_stream(session: SessionClient, claude: Anthropic) -> None:
    session.proxy.says(THINKS_AND_CALLS, "It rains.<|im_end|>")
    asked: dict[str, Any] = {"model": "policy", "max_tokens": 200, "messages": [{"role": "user", "content": "weather?"}]}
    with claude.messages.stream(tools=[CUSTOM], **asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == "Let me look."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].model_dump()["input"] == {"city": "Paris"}
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens == len(session.proxy.engine.exchanges[0].output_ids)
    session.proxy.engine.decode = session.proxy.renderer.decode
    stopped = claude.messages.create(stop_sequences=["rains"], **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "rains")


async def test_the_async_anthropic_sdk(proxy: ProxyUnderTest) -> None:
    session = await asyncio.to_thread(proxy.open)
    async with (
        AsyncAnthropic(base_url=session.base_url.removesuffix("/v1"), api_key=session.api_key, max_retries=0) as client,
        client.messages.stream(model="policy", max_tokens=50, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        assert (await stream.get_final_message()).content[0].model_dump()["text"] == "ok"


def test_messages_refuse_in_anthropics_form(claude: Anthropic) -> None:
    for body, param in MESSAGES_REFUSED:
        sent = {"model": "policy", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]} | body
        with pytest.raises(anthropic.BadRequestError) as refused:
            claude.post("/v1/messages", body=sent, cast_to=object)
        error: Any = refused.value.body
        assert error["type"] == "error"
        assert (error["error"]["type"], error["error"]["param"]) == ("invalid_request_error", param)
        assert param in error["error"]["message"]


def test_a_wrong_key_is_an_authentication_error_everywhere(session: SessionClient, claude: Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-nonsense").messages.create(
            model="policy", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        )
    with (
        openai.OpenAI(base_url=session.base_url, api_key="sk-nonsense", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.responses.create(model="policy", input="hi")


async def test_litellms_client(proxy: ProxyUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm  # seconds to import

    proxy.says(THINKS_AND_CALLS)
    session = await asyncio.to_thread(proxy.open)
    where: dict[str, Any] = {"api_base": session.base_url, "api_key": session.api_key, "num_retries": 0, "max_retries": 0}
    asked: dict[str, Any] = {"model": "openai/policy", "messages": [user("weather?")], "tools": [tool()], **where}
    answer = await litellm.acompletion(**asked)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Let me look.", "Where?")
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris"}
    chunks = [chunk async for chunk in await litellm.acompletion(stream=True, **asked)]
    rebuilt = litellm.stream_chunk_builder(chunks, messages=asked["messages"])
    assert rebuilt.choices[0].message.content == "Let me look."
    assert rebuilt.choices[0].message.tool_calls[0].function.name == "look_up"
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(**asked, top_p=0.5)
    await litellm.close_litellm_async_clients()
