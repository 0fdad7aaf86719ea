"""Several choices of one request, logprobs in the answer, and sampling that is not the policy's own."""

import asyncio
import json
import re

import pytest
from proxy_helpers import Json, MakeProxy, ProxyUnderTest, tool, user

FIXED = ["<think>\nHm.\n</think>\n\nGrüße!<|im_end|>", "Hello.<|im_end|>", "Hi!<|im_end|>"]


def test_choices_are_calls_after_the_same_prompt(proxy: ProxyUnderTest) -> None:
    proxy.says(*FIXED)
    session = proxy.open()
    with session.openai() as client:
        answer = client.chat.completions.create(model="policy", messages=[user("hi")], n=3, seed=7, extra_headers={"Idempotency-Key": "c1"})
        again = client.chat.completions.create(model="policy", messages=[user("hi")], n=3, seed=7, extra_headers={"Idempotency-Key": "c1"})
    assert again == answer
    assert {choice.message.content for choice in answer.choices} == {"Grüße!", "Hello.", "Hi!"}
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    records = proxy.assert_token_exact(session)
    assert [record.call_id for record in records] == ["c1:1", "c1:2", "c1"]
    assert {record.parent for record in records} == {None}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(record.output_ids()) for record in records)
    assert len({exchange.params["sampling_seed"] for exchange in proxy.engine.exchanges}) == 3
    proxy.says("Fine.<|im_end|>")
    session.say([user("hi"), answer.choices[1].message.model_dump(exclude_none=True), user("and?")])
    assert proxy.assert_token_exact(session)[-1].parent == "c1:1"


def test_choices_stream_side_by_side(proxy: ProxyUnderTest) -> None:
    proxy.says(*FIXED)
    session = proxy.open()
    with session.openai() as client:
        texts: dict[int, str] = {}
        finished: list[int] = []
        for chunk in client.chat.completions.create(model="policy", messages=[user("hi")], n=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                finished += [choice.index] if choice.finish_reason else []
    assert set(texts.values()) == {"Grüße!", "Hello.", "Hi!"}
    assert finished == [0, 1, 2]


async def test_choices_of_a_proxy_that_dies_between_them_leave_the_session_incomplete(make_proxy: MakeProxy) -> None:
    """The first choice is recorded last; sent again, those that are recorded stand and only the others are made."""
    proxy = make_proxy()
    proxy.says("one<|im_end|>")
    session = await asyncio.to_thread(proxy.open)
    await asyncio.to_thread(session.post, [user("hi")], call_id="c1", n=3)
    stored = proxy.store.sessions[session.session_id]
    # As the store would be had the proxy died before the last record.
    stored.calls.pop("c1")
    stored.intents["c1"] = session.records[0].digest
    await asyncio.to_thread(proxy.restart)
    reply = await asyncio.to_thread(session.post, [user("hi")], call_id="c1", n=3)
    assert len(reply.json()["choices"]) == 3
    assert len(proxy.engine.exchanges) == 4
    assert not stored.intents
    proxy.assert_token_exact(session)


def test_logprobs_are_those_that_were_captured(proxy: ProxyUnderTest) -> None:
    proxy.says(FIXED[0])
    session = proxy.open()
    with session.openai() as client:
        choice = client.chat.completions.create(model="policy", messages=[user("hi")], logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content
    captured = session.records[0].output_logprobs()
    assert captured is not None
    assert [entry.logprob for entry in entries] == pytest.approx(captured.tolist())
    # Bytes are exact also where a token ends within a character.
    assert bytes(byte for entry in entries for byte in entry.bytes or []).decode() == FIXED[0]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    streamed = session.post([user("hi")], logprobs=True, top_logprobs=2, stream=True).text
    parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    shown = [entry for part in parts for choice in part["choices"] for entry in (choice["logprobs"] or {}).get("content", [])]
    assert shown == [entry.model_dump() for entry in entries]


def test_untrue_sampling_is_for_those_who_allow_it(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(untrue_logprobs="allow")
    session = proxy.open()
    shaped: Json = {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.1}
    shaped["logit_bias"] = {"65": -3}
    assert session.post([user("hi")], **shaped).status_code == 200
    params = proxy.engine.exchanges[0].params
    assert params | shaped == params
    assert session.records[0].sampling == params
    assert session.records[0].top_p == 0.9
    assert session.post([user("hi")], logit_bias={"99999999": 1}).json()["error"]["param"] == "logit_bias"

    proxy.says('[{"name": "look_up", "parameters": {"city": "Paris"}}]<|im_end|>')
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        for stream in (False, True):
            reply = session.post([user("weather?")], tools=[tool()], tool_choice=choice, stream=stream)
            assert '"name":"look_up","arguments":"{\\"city\\": \\"Paris\\"}"' in reply.text
            assert '"finish_reason":"tool_calls"' in reply.text
        schema = json.loads(proxy.engine.exchanges[-1].params["json_schema"])
        assert schema["items"]["anyOf"][0]["properties"]["name"] == {"type": "string", "enum": ["look_up"]}
    proxy.says("I will not.<|im_end|>")
    reply = session.post([user("weather?")], tools=[tool()], tool_choice="required")
    assert reply.headers["X-Malformed-Tool-Call"] == "1"
    assert reply.json()["choices"][0]["message"]["content"] == "I will not."

    proxy.says('{"a": 1}<|im_end|>')
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object", "required": ["a"]}}}
    assert session.say([user("json!")], response_format=form)["content"] == '{"a": 1}'
    assert json.loads(proxy.engine.exchanges[-1].params["json_schema"]) == {"type": "object", "required": ["a"]}
    strict = {"type": "function", "function": tool()["function"] | {"strict": True}}
    session.say([user("json!")], tools=[strict])
    tag = json.loads(proxy.engine.exchanges[-1].params["structural_tag"])
    assert tag["triggers"] == ["<tool_call>"]
    assert tag["structures"][0]["schema"] == tool()["function"]["parameters"]


def test_a_trace_id_is_kept_with_the_call_and_handed_on(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    session.post([user("hi")], headers={"traceparent": f"00-{trace}-{span}-01"})
    session.post([user("hi")], headers={"traceparent": "nonsense"})
    handed_on, nothing = (exchange.headers.get("traceparent") for exchange in proxy.engine.exchanges)
    assert nothing is None
    assert re.fullmatch(f"00-{trace}-(?!{span})[0-9a-f]{{16}}-01", handed_on or "")
    first, second = session.records
    assert (first.trace_id, second.trace_id) == (trace, "")
    assert first.sampling["stop_token_ids"] == [proxy.renderer.eos_id]
    assert 0 < first.server_s <= first.ended_at - first.started_at
