"""Chat completions as streams: chunks as OpenAI sends them, recorded before they end, the same again for whoever asks again."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from proxy_helpers import Json, MakeProxy, ProxyUnderTest, SessionClient, call_text, tool, user
from proxy_servers import wait_until
from starlette.types import Message

from services.common.errors import ServiceError
from services.policy_proxy import sse
from services.policy_proxy.calls import service
from services.policy_proxy.calls.service import Event
from services.policy_proxy.chat.answer import Part
from services.policy_proxy.dialects.base import CHAT

C1 = {"Idempotency-Key": "c1"}


def events(session: SessionClient, messages: list[Json], call_id: str = "", **body: Any) -> list[str]:
    """The payloads of one streamed call."""
    reply = session.post(messages, call_id=call_id, stream=True, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    return [line.removeprefix("data: ") for line in reply.text.splitlines() if line and not line.startswith(":")]


def chunks(session: SessionClient, messages: list[Json], **body: Any) -> list[Json]:
    lines = events(session, messages, **body)
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(parts: list[Json], name: str, index: int = 0) -> str:
    """All of one field of the deltas of one choice."""
    choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


def test_the_sdk_reads_a_stream_token_by_token(proxy: ProxyUnderTest) -> None:
    proxy.says("Grüße an dich, lieber Freund.<|im_end|>")
    session = proxy.open()
    with (
        session.openai() as client,
        client.chat.completions.create(
            model="policy",
            messages=[user("hi")],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=C1,
        ) as stream,
    ):
        assert stream.response.headers["X-Call-Id"] == "c1"
        assert stream.response.headers["X-Policy-Version"] == "0"
        got: list[ChatCompletionChunk] = list(stream)
    assert {chunk.id for chunk in got} == {"c1"}
    assert got[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in got if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(texts) == "Grüße an dich, lieber Freund."
    assert len(texts) > 5
    assert [chunk.choices[0].finish_reason for chunk in got if chunk.choices][-1] == "stop"
    assert got[-1].choices == [] and got[-1].usage is not None
    assert got[-1].usage.completion_tokens == len(proxy.engine.exchanges[0].output_ids)
    assert got[-2].model_extra is not None and got[-2].model_extra["policy_version"] == 0
    assert proxy.engine.exchanges[0].body["stream"] is True
    proxy.assert_token_exact(session)


async def test_the_async_sdk_gets_reasoning_text_and_calls_and_goes_on(proxy: ProxyUnderTest) -> None:
    proxy.says("<think>\nWhere?\n</think>\n\nLet me look.\n" + call_text("look_up", city="Paris") + "<|im_end|>", "It rains.<|im_end|>")
    session = await asyncio.to_thread(proxy.open)
    async with session.async_openai() as client:
        messages = [user("weather?")]
        stream = await client.chat.completions.create(model="policy", messages=messages, tools=[tool()], stream=True)
        deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) async for chunk in stream]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Where?"
        assert "".join(delta.get("content", "") for delta in deltas) == "Let me look."
        called = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [(call["index"], call["function"]) for call in called] == [(0, {"name": "look_up", "arguments": '{"city": "Paris"}'})]
        call = {name: called[0][name] for name in ("id", "type", "function")}
        said = {"role": "assistant", "content": "Let me look.", "reasoning_content": "Where?", "tool_calls": [call]}
        messages += [said, {"role": "tool", "tool_call_id": call["id"], "content": "rain"}]
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=[tool()])
    assert answer.choices[0].message.content == "It rains."
    # The template drops the reasoning of earlier turns, so this is another history.
    assert [record.parent for record in proxy.assert_token_exact(session)] == [None, None]


def test_a_stream_says_what_the_whole_answer_says(proxy: ProxyUnderTest) -> None:
    """Also of what is held back while it may be the beginning of a tag or of a stop string."""
    proxy.engine.decode = proxy.renderer.decode
    texts = ["a < b <tool", "<think>x", "one END two", "EN", "", call_text("look_up") + call_text("look_up"), "<tool_call>\n{"]
    for text in texts:
        proxy.says(text + "<|im_end|>")
        wanted: Json = {"tools": [tool()], "stop": ["END", "zzz"], "parallel_tool_calls": False}
        session = proxy.open()
        whole = session.post([user("hi")], **wanted).json()["choices"][0]
        parts = chunks(session, [user("hi")], **wanted)
        last = parts[-1]["choices"][0]
        assert joined(parts, "content") == (whole["message"]["content"] or "")
        assert joined(parts, "reasoning_content") == whole["message"].get("reasoning_content", "")
        for name in ("finish_reason", "matched_stop", "malformed_tool_call"):
            assert last.get(name) == whole.get(name)
        assert session.records[0].output == session.records[1].output


def test_a_stop_string_is_sampled_and_recorded_and_not_said(proxy: ProxyUnderTest) -> None:
    proxy.engine.decode = proxy.renderer.decode
    proxy.says("one END two<|im_end|>")
    session = proxy.open()
    reply = session.post([user("count")], stop="END").json()["choices"][0]
    assert (reply["message"]["content"], reply["finish_reason"], reply["matched_stop"]) == ("one ", "stop", "END")
    assert proxy.renderer.decode(session.records[0].output_ids().tolist()).startswith("one END")
    assert proxy.engine.exchanges[0].params["stop"] == ["END"]
    proxy.says("three<|im_end|>")
    session.say([user("count"), reply["message"], user("on")])
    first, second = proxy.assert_token_exact(session)
    assert second.parent == first.call_id


def test_the_record_is_there_before_the_stream_ends(proxy: ProxyUnderTest) -> None:
    proxy.store.record_delay_s = 0.3
    session = proxy.open()
    key = {"Authorization": f"Bearer {session.api_key}"}
    body = {"model": "policy", "messages": [user("hi")], "stream": True}
    with proxy.http.stream("POST", f"{session.base_url}/chat/completions", json=body, headers=key) as reply:
        for line in reply.iter_lines():
            if '"finish_reason":"stop"' in line or "[DONE]" in line:
                assert len(session.records) == 1
            elif '"content":"ok"' in line:
                assert session.records == []


def test_a_stream_that_is_asked_for_again_is_replayed(proxy: ProxyUnderTest) -> None:
    proxy.says("Let me look.\n" + call_text("look_up", city="Paris") + "<|im_end|>", "second<|im_end|>")
    session = proxy.open()
    asked: Json = {"tools": [tool()], "stream_options": {"include_usage": True}}
    first = chunks(session, [user("hi")], call_id="c1", **asked)
    again = chunks(session, [user("hi")], call_id="c1", **asked)
    assert joined(again, "content") == joined(first, "content") == "Let me look."
    assert again[-1]["usage"] == first[-1]["usage"]
    assert _tool_calls(first) == _tool_calls(again) != []
    retried = session.post([user("hi")], headers={"x-stainless-retry-count": "1"}, stream=True, **asked)
    assert retried.headers["X-Call-Id"] == "c1"
    assert session.post([user("hi")], call_id="c1").status_code == 409
    assert len(proxy.engine.exchanges) == len(session.records) == 1


def _tool_calls(parts: list[Json]) -> list[Json]:
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    return [call for delta in deltas for call in delta.get("tool_calls", [])]


async def test_a_stream_joins_the_call_in_flight_and_gets_it_from_the_beginning(proxy: ProxyUnderTest) -> None:
    proxy.says("one two three four five six<|im_end|>")
    proxy.engine.token_delay_s = 0.05
    session = await asyncio.to_thread(proxy.open)
    first = asyncio.create_task(asyncio.to_thread(chunks, session, [user("hi")], call_id="c1"))
    await asyncio.to_thread(wait_until, lambda: proxy.engine.exchanges and len(proxy.engine.exchanges[0].output_ids) > 2)
    second = await asyncio.to_thread(chunks, session, [user("hi")], call_id="c1")
    assert joined(await first, "content") == joined(second, "content") == "one two three four five six"
    assert len(proxy.engine.exchanges) == 1


async def test_a_client_that_leaves_its_stream_aborts_the_call(proxy: ProxyUnderTest) -> None:
    proxy.says("one two three four five six<|im_end|>")
    proxy.engine.stall_after = 3
    session = await asyncio.to_thread(proxy.open)
    async with session.async_openai() as client:
        stream = await client.chat.completions.create(model="policy", messages=[user("hi")], stream=True, extra_headers=C1)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await asyncio.to_thread(wait_until, lambda: proxy.engine.aborted == ["c1.0"])
        await asyncio.to_thread(wait_until, lambda: proxy.state()["inflight"] == 0)
        assert list(proxy.store.sessions[session.session_id].intents) == ["c1"]
        proxy.engine.stall_after = -1
        stream = await client.chat.completions.create(model="policy", messages=[user("hi")], stream=True, extra_headers=C1)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "one two three four five six"
    assert not proxy.store.sessions[session.session_id].intents


def test_errors_before_the_first_token_are_http_errors(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "KEEP_ALIVE_S", 0.2)
    proxy = make_proxy(call_timeout_s=1.0, gconfig={"max_tokens": 200})
    session = proxy.open()
    with session.openai(max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="policy", messages=[user("hello world " * 200)], stream=True)
        assert raised.value.code == "context_length_exceeded"
        # Long before the deadline the stream has begun, with comments alone: then the error is an event.
        proxy.engine.stall_generate = True
        with (
            pytest.raises(openai.APIError) as late,
            client.chat.completions.create(model="policy", messages=[user("hi")], stream=True) as stream,
        ):
            list(stream)
        assert late.value.code == "deadline_exceeded"
    quiet = session.post([user("hi")], stream=True)
    assert quiet.status_code == 200
    assert quiet.text.count(": still working\n\n") >= 1
    assert '"code":"deadline_exceeded"' in quiet.text and "[DONE]" not in quiet.text


def test_a_stream_goes_on_across_a_weight_update(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    proxy.says("one two three four five six seven eight<|im_end|>")
    proxy.engine.token_delay_s = 0.03
    session = proxy.open()
    with httpx.Client(timeout=30, headers={"Authorization": f"Bearer {session.api_key}"}) as http:
        body = {"model": "policy", "messages": [user("hi")], "stream": True}
        with http.stream("POST", f"{session.base_url}/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert next(lines)
            assert proxy.post_weights(1).status_code == 200
            parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = joined(parts, "content")
    assert "one two three four five six seven eight".endswith(text)
    assert parts[-1]["policy_version"] == 1
    (record,) = proxy.assert_token_exact(session)
    assert {version for version, _ in record.versions} <= {0, 1}


@pytest.mark.parametrize("n_taken", [0, 3])
@pytest.mark.parametrize("ends", [None, ServiceError("gone wrong"), ZeroDivisionError("a bug")])
async def test_a_stream_that_nobody_reads_any_more_is_given_up(
    n_taken: int, ends: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 0.1)
    closed: list[bool] = []
    taken: list[Message] = []

    async def parts() -> AsyncGenerator[Event]:
        try:
            for _ in range(2 if ends else 1_000):
                yield [Part(0, {"content": "word"})]
            if ends:
                raise ends
        finally:
            closed.append(True)

    async def send(message: Message) -> None:
        # A connection whose buffers are full after so many writes.
        if message["type"] == "http.response.body" and len(taken) > n_taken:
            await asyncio.Event().wait()
        taken.append(message)

    async def receive() -> Message:
        raise AssertionError("a stream reads nothing")

    events = parts()
    stream = sse.EventStream(await anext(events), events, CHAT.writer("c1", {"model": "policy"}, 0), {})
    async with asyncio.timeout(5):
        await stream({"type": "http"}, receive, send)
    assert closed == [True]
    assert len(taken) == n_taken + 1
