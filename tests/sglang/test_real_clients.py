"""What agents use beside plain calls, against the real server: streams, stop strings, forced tool calls, keys, a router in front."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openai import OpenAI
from real_models import ANSWER, QUESTION, REPORT, SYSTEM, WEATHER
from real_server import RouterProcess
from real_stack import ADMIN_KEY, SERVER_KEY, MakeStack, RealSession, Stack, ask
from test_real_capture import TOLERANCE, assert_as_sent, off_by

from services.common.wire.calls import rows_of

CALLED = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
SWITCH_PARAMETERS = {"type": "object", "properties": {"to": {"enum": ["on", "off"]}}, "required": ["to"], "additionalProperties": False}
SWITCH = {"type": "function", "function": {"name": "switch", "description": "Turns it on or off.", "parameters": SWITCH_PARAMETERS}}
FORCED_ATTEMPTS = 5
"""The grammar lets a random policy make the list of calls as long, and put as much white space into it, as it likes."""
ASKED: list[Any] = [
    SYSTEM,
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "c1", "content": REPORT},
]
"""After this the taught policy says `ANSWER`."""


def assert_captured(stack: Stack, session: RealSession, folder: Path) -> None:
    """Every record is what SGLang said, with transformers' logprobs."""
    records = session.records()
    for record, row in zip(records, rows_of(records), strict=True):
        assert_as_sent(stack, record, row)
        assert off_by(folder, row) < TOLERANCE


def streamed(client: OpenAI, **body: Any) -> list[Any]:
    """The choices' deltas of a stream."""
    chunks = client.chat.completions.create(model="policy", tools=[WEATHER], temperature=0.0, stream=True, **body)
    return [choice.delta for chunk in chunks for choice in chunk.choices]


def test_a_stream_says_what_the_record_says(make_stack: MakeStack, taught: Path) -> None:
    stack = make_stack(taught)
    session = stack.open()
    with session.openai() as client:
        texts = [delta.content for delta in streamed(client, messages=ASKED) if delta.content]
        calls = [call for delta in streamed(client, messages=[SYSTEM, QUESTION]) for call in delta.tool_calls or ()]
    assert "".join(texts) == ANSWER
    assert len(texts) > 3, "all came at once"
    assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
    assert "".join(call.function.arguments or "" for call in calls) == '{"city": "Paris"}'
    assert_captured(stack, session, taught)


def test_a_stop_string_ends_the_answer(make_stack: MakeStack, taught: Path) -> None:
    stack = make_stack(taught)
    session = stack.open()
    choice = session.post(ASKED, tools=[WEATHER], temperature=0.0, stop=[" and it"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER.partition(" and it")[0], "stop")
    [record] = session.records()
    assert record.finish_reason == "stop"
    assert_captured(stack, session, taught)


def test_likeliest_tokens(make_stack: MakeStack, taught: Path) -> None:
    stack = make_stack(taught)
    choice = stack.open().post(ASKED, temperature=0.0, logprobs=True, top_logprobs=3).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    # The policy is greedy here, so what it said is the likeliest.
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in entries)


def test_a_tool_call_can_be_forced(make_stack: MakeStack, random_policies: list[Path]) -> None:
    """Constrained decoding needs SGLang's grammar back end; a random policy would never call by itself."""
    session = make_stack(random_policies[0], untrue_logprobs="allow").open()
    for _ in range(FORCED_ATTEMPTS):
        choice = session.post([SYSTEM, QUESTION], tools=[SWITCH], tool_choice="required", max_tokens=200).json()["choices"][0]
        if choice["finish_reason"] != "length":
            calls = [call["function"] for call in choice["message"]["tool_calls"]]
            assert {call["name"] for call in calls} == {"switch"}
            assert all(json.loads(call["arguments"])["to"] in ("on", "off") for call in calls)
            return
        assert not choice["message"].get("tool_calls"), "half a call was taken for one"
    raise AssertionError("the random policy did not come to an end")


def test_by_chat_completions_of_the_server(make_stack: MakeStack, taught: Path) -> None:
    stack = make_stack(taught, server_api="chat")
    session = stack.open()
    message = session.post(ASKED, tools=[WEATHER], temperature=0.0).json()["choices"][0]["message"]
    assert message["content"] == ANSWER
    [record] = session.records()
    [row] = rows_of([record])
    [exchange] = stack.tap.of("/v1/chat/completions")
    choice = exchange.events[0]["choices"][0]
    assert row.ids.tolist() == exchange.body["input_ids"] + choice["response_token_ids"]
    assert off_by(taught, row) < TOLERANCE


def test_the_proxy_shows_each_route_its_key(make_stack: MakeStack, sglang: str, taught: Path) -> None:
    for key, generates, controls in [("", 401, 401), (SERVER_KEY, 200, 401), (ADMIN_KEY, 401, 200)]:
        body = {"input_ids": [20, 21], "sampling_params": {"max_new_tokens": 1}}
        assert ask(sglang, "POST", "/generate", key, **body).status_code == generates
        assert ask(sglang, "POST", "/flush_cache", key).status_code == controls
    session = make_stack(taught).open()
    assert session.post(ASKED, temperature=0.0).json()["choices"][0]["message"]["content"]


def test_with_sglang_router_in_front(make_stack: MakeStack, random_policies: list[Path], tmp_path: Path) -> None:
    """Calls go through the router; updates go to the server itself, because the router has no routes for them."""
    with ExitStack() as stack:

        def route(url: str) -> str:
            return stack.enter_context(RouterProcess([url], tmp_path / "router.log", ["--api-key", SERVER_KEY])).url

        running = make_stack(random_policies[0], through=route)
        session = running.open()
        session.post([SYSTEM, QUESTION], max_tokens=50, seed=1)
        running.post_weights(1, random_policies[1])
        session.post([SYSTEM, QUESTION], max_tokens=50, seed=2)
        records = session.records()
        for record, row, folder in zip(records, rows_of(records), random_policies, strict=False):
            assert_as_sent(running, record, row)
            assert off_by(folder, row) < TOLERANCE
        assert [record.versions[0][0] for record in records] == [0, 1]
