"""Bodies with anything at any place: each is taken, or refused by name as the client's fault; none is a fault of ours."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_helpers import tool

from services.common.errors import BadRequest
from services.policy_proxy import chat
from services.policy_proxy.dialects.anthropic_messages import to_chat as anthropic_to_chat
from services.policy_proxy.dialects.anthropic_messages import to_count
from services.policy_proxy.dialects.responses_requests import to_chat as responses_to_chat

Json = dict[str, Any]
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Paris"}'}}
SHARED: Json = {
    "model": "policy",
    "temperature": 0.5,
    "top_p": 0.9,
    "stream": False,
    "seed": 3,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "chat_template_kwargs": {"enable_thinking": False},
}
CHAT: Json = SHARED | {
    "messages": [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "reasoning_content": "?", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ],
    "tools": [tool()],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "parallel_tool_calls": True,
    "max_tokens": 10,
    "stop": ["x"],
    "n": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "metadata": {},
    "user": "u",
}
DEMONSTRATION: Json = {"messages": CHAT["messages"], "tools": CHAT["tools"], "message": CHAT["messages"][2]}
RESPONSES: Json = SHARED | {
    "instructions": "Help.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "?"}]},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ],
    "tools": [{"type": "function", **tool()["function"]}],
    "tool_choice": {"type": "function", "name": "look_up"},
    "max_output_tokens": 10,
    "top_logprobs": 2,
    "include": ["message.output_text.logprobs"],
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": None},
    "truncation": "disabled",
}
MESSAGES: Json = SHARED | {
    "max_tokens": 10,
    "system": [{"type": "text", "text": "Help."}],
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "?"}, {"type": "tool_use", "id": "c1", "name": "x", "input": {}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}]},
    ],
    "tools": [{"name": "x", "description": "X.", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "x"},
    "stop_sequences": ["x"],
}
SCHEMA: Json = {"name": "x", "schema": {"type": "object"}}
AS_JSON: Json = {"model": "policy", "messages": CHAT["messages"][:2], "response_format": {"type": "json_schema", "json_schema": SCHEMA}}
RESPONSE_AS_JSON: Json = {"model": "policy", "input": "hi", "text": {"format": {"type": "json_schema", **SCHEMA}}}
READERS: dict[str, tuple[Json, Callable[[Json], Any]]] = {
    "chat": (CHAT, chat.read_request),
    "chat as json": (AS_JSON, chat.read_request),
    "response as json": (RESPONSE_AS_JSON, lambda body: chat.read_request(responses_to_chat(body))),
    "demonstration": (DEMONSTRATION, chat.read_demonstration),
    "responses": (RESPONSES, lambda body: chat.read_request(responses_to_chat(body))),
    "messages": (MESSAGES, lambda body: chat.read_request(anthropic_to_chat(body))),
    "count": (MESSAGES, lambda body: chat.read_request(to_count(body))),
}
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    "",
    "x",
    [],
    [None],
    [[]],
    {},
    {"type": []},
    {"type": "text"},
    [{"type": {}}],
)


def places(value: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    """Of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, *above, key)


def changed(body: Json, place: tuple[Any, ...], value: Any) -> Json:
    body = copy.deepcopy(body)
    inside: Any = body
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return body


def assert_read_or_refused(read: Callable[[Json], Any], body: Json) -> None:
    try:
        read(body)
    except BadRequest as refused:
        assert refused.detail


@pytest.mark.parametrize("name", READERS)
def test_every_place_with_everything(name: str) -> None:
    body, read = READERS[name]
    assert read(body)
    for place in places(body):
        for value in ODD:
            assert_read_or_refused(read, changed(body, place, value))


@given(
    st.sampled_from(sorted(READERS)),
    st.data(),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    ),
)
def test_any_place_with_anything(name: str, data: st.DataObject, value: Any) -> None:
    body, read = READERS[name]
    assert_read_or_refused(read, changed(body, data.draw(st.sampled_from(sorted(places(body), key=repr))), value))
