"""The OpenAI SDKs against the proxy: answers, tools, reasoning, errors."""

import asyncio

import httpx
import openai
import pytest
from proxy_helpers import SYSTEM, MakeProxy, ProxyUnderTest, SessionClient, call_text, tool, user

from services.policy_proxy.sessions.keys import SessionKeys, trial_secret


def test_sync_sdk_gets_text_usage_and_headers(proxy: ProxyUnderTest) -> None:
    proxy.says("Hello there.<|im_end|>")
    with proxy.open().openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="policy", messages=[SYSTEM, user("hi")], temperature=0.7, max_tokens=50, seed=3
        )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    exchange = proxy.engine.exchanges[0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(exchange.input_ids)
    assert answer.usage.completion_tokens == len(exchange.output_ids)
    assert exchange.params["temperature"] == 0.7
    assert exchange.params["max_new_tokens"] == 50
    assert exchange.params["sampling_seed"] == 3
    assert exchange.params["stop_token_ids"] == [proxy.renderer.eos_id]
    assert raw.headers["X-Policy-Version"] == "0"
    assert raw.headers["X-Call-Id"] == answer.id
    assert 0 <= float(raw.headers["X-Proxy-Overhead-Ms"]) < 5000


async def test_async_sdk_calls_a_tool_and_goes_on(proxy: ProxyUnderTest) -> None:
    proxy.says("Let me look.\n" + call_text("look_up", city="Paris") + "<|im_end|>", "It rains.<|im_end|>")
    session = await asyncio.to_thread(proxy.open)
    async with session.async_openai() as client:
        messages = [SYSTEM, user("weather?")]
        first = await client.chat.completions.create(model="policy", messages=messages, tools=[tool()], tool_choice="auto")
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert message.content == "Let me look."
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.name == "look_up"
        assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
        second = await client.chat.completions.create(
            model="policy", messages=[*messages, message.model_dump(exclude_none=True), result], tools=[tool()]
        )
    assert second.choices[0].message.content == "It rains."
    records = proxy.assert_token_exact(session)
    assert records[1].parent == records[0].call_id
    assert proxy.metric("branches_total") == 0


def test_models_and_the_route_without_a_session_in_its_path(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    with openai.OpenAI(base_url=f"{proxy.thread.url}/v1", api_key=session.api_key) as client:
        assert [model.id for model in client.models.list()] == ["policy"]
        client.chat.completions.create(model="policy", messages=[user("hi")])
    assert len(session.records) == 1


def test_reasoning_comes_apart_from_the_content(proxy: ProxyUnderTest) -> None:
    proxy.says("<think>\nThey greet.\n</think>\n\nHello.<|im_end|>")
    message = proxy.open().say([user("hi")])
    assert message["reasoning_content"] == "They greet."
    assert message["content"] == "Hello."


@pytest.mark.parametrize(
    "said",
    [
        '<tool_call>\n{"name": "look_up", "arguments": {"city": \n</tool_call>',
        '<tool_call>\n{"name": "look_up", "arguments": "Paris"}\n</tool_call>',
        '<tool_call>\n["look_up"]\n</tool_call>',
        call_text("look_up", city="Paris") + "\n<tool_call>\n{",
    ],
)
def test_malformed_tool_call_stays_text_and_is_flagged(proxy: ProxyUnderTest, said: str) -> None:
    proxy.says(f"{said}<|im_end|>")
    session = proxy.open()
    response = session.post([user("weather?")], tools=[tool()])
    assert response.headers["X-Malformed-Tool-Call"] == "1"
    reply = response.json()["choices"][0]
    assert reply["finish_reason"] == "stop"
    assert reply["message"]["content"] == said
    assert "tool_calls" not in reply["message"]
    assert reply["malformed_tool_call"]["problem"]
    assert session.records[0].malformed_tool_call
    assert proxy.metric("malformed_tool_calls_total") == 1


def test_tool_choice_none_neither_shows_nor_reads_tools(proxy: ProxyUnderTest) -> None:
    proxy.says(call_text("look_up", city="Paris") + "<|im_end|>")
    reply = proxy.open().post([user("weather?")], tools=[tool()], tool_choice="none").json()
    assert reply["choices"][0]["message"]["content"].startswith("<tool_call>")
    assert "look_up" not in proxy.renderer.decode(proxy.engine.exchanges[0].input_ids)


def test_an_answer_cut_off_by_the_budget_says_length(proxy: ProxyUnderTest) -> None:
    proxy.says("one two three four five six seven eight")
    reply = proxy.open().post([user("count")], max_completion_tokens=3).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"n": 17}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "look_up"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": [tool()]}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "look_up", "strict": True}}]}, "tools[0].function.strict"),
        ({"response_format": {"type": "json_object"}, "tools": [tool()]}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(proxy: ProxyUnderTest, body: dict[str, object], param: str) -> None:
    session = proxy.open()
    reply = session.post(**({"messages": [user("hi")]} | body))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert session.records == []


def test_what_clients_send_to_say_the_default_is_taken(proxy: ProxyUnderTest) -> None:
    same = {"n": 1, "stream": False, "parallel_tool_calls": True, "frequency_penalty": 0.0, "presence_penalty": 0, "top_p": 1.0}
    same |= {"top_k": 100_000_000, "min_p": 0, "repetition_penalty": 1, "logit_bias": {}, "stop": [], "tools": [tool()]}
    notes = {
        "store": True,
        "metadata": {"run": "1"},
        "user": "someone",
        "response_format": {"type": "text"},
        "logprobs": False,
        "seed": None,
    }
    assert proxy.open().post([user("hi")], **same, **notes).status_code == 200


def test_the_sdk_raises_its_own_error_for_a_prompt_that_is_too_long(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(gconfig={"max_tokens": 60})
    session = proxy.open()
    with session.openai() as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="policy", messages=[user("hello world " * 100)])
    assert raised.value.code == "context_length_exceeded"
    assert proxy.store.sessions[session.session_id].intents == {}
    assert proxy.engine.exchanges == []


def test_the_budget_ends_at_the_context_limit(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(gconfig={"max_tokens": 60, "max_new_tokens": 500})
    proxy.says("word " * 200)
    reply = proxy.open().post([user("hi")]).json()
    assert reply["usage"]["total_tokens"] == 60
    assert reply["choices"][0]["finish_reason"] == "length"


def test_keys(proxy: ProxyUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "a-long-admin-key-0123")
    admin = {"Authorization": "Bearer a-long-admin-key-0123"}
    post = proxy.http.post
    assert post("/v1/sessions", json={}).status_code == 401
    assert post("/v1/sessions", json={}, headers={"Authorization": "Bearer wrong"}).status_code == 403
    keys = [post("/v1/sessions", json={"session_id": sid}, headers=admin).json()["api_key"] for sid in ("a", "b")]
    body = {"model": "policy", "messages": [user("hi")]}

    def status(key: str | None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        reply = post("/v1/sessions/a/v1/chat/completions", json=body, headers=headers)
        return reply.status_code, reply.json().get("error", {}).get("code")

    assert status(None) == (401, "missing_api_key")
    assert status("sk-nonsense") == (401, "invalid_api_key")
    assert status(keys[0][:-1] + ("0" if keys[0][-1] != "0" else "1")) == (401, "invalid_api_key")
    assert status(keys[1]) == (403, "wrong_session")
    assert status(keys[0]) == (200, None)
    for path in ("/v1/sessions/a/seal", "/v1/sessions/a/demonstrations", "/v1/admin/weights"):
        assert post(path, json={}, headers={"Authorization": f"Bearer {keys[0]}"}).status_code == 403


def test_a_session_that_was_never_opened_is_404(proxy: ProxyUnderTest) -> None:
    key = SessionKeys(trial_secret(proxy.config, "")).issue("unknown")
    session = SessionClient(proxy, "unknown", key, "")
    assert session.post([user("hi")]).status_code == 404


def test_over_the_limit_is_429_with_retry_after(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(max_inflight_calls=1)
    proxy.engine.token_delay_s = 0.2
    session = proxy.open()

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=session.base_url, headers={"Authorization": f"Bearer {session.api_key}"}) as client:
            posts = [client.post("/chat/completions", json={"model": "policy", "messages": [user(str(n))]}) for n in range(2)]
            return await asyncio.gather(*posts)

    replies = sorted(asyncio.run(both()), key=lambda reply: reply.status_code)
    assert [reply.status_code for reply in replies] == [200, 429]
    assert int(replies[1].headers["Retry-After"]) >= 1
