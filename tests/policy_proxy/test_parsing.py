"""Reading what the policy said."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.policy_proxy.parsing import Said, ToolCall, read_answer

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The machine may be busy with other things."""

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text('ab é日"\\\n{}[]/>', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "n", "línea"]), JSON_VALUES, max_size=3)


def read(text: str, *, in_reasoning: bool = False, with_tools: bool = True) -> Said:
    return read_answer(text, reasoning_parser="qwen3", in_reasoning=in_reasoning, with_tools=with_tools)


@UNHURRIED
@given(st.lists(st.tuples(st.sampled_from(["look_up", "fix"]), ARGUMENTS), min_size=1, max_size=3), st.sampled_from(["", "Let me see."]))
def test_calls_come_back_as_they_were_made(calls: list[tuple[str, dict[str, object]]], text: str) -> None:
    blocks = [f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls]
    said = read("\n".join([text, *blocks]))
    assert [(call.name, json.loads(call.arguments)) for call in said.tool_calls] == calls
    assert said.content == text
    assert not said.malformed


@UNHURRIED
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', "x", "\n", "{"])).map(
        "".join
    )
)
def test_nothing_the_policy_says_is_an_error_or_half_executed(text: str) -> None:
    said = read(text)
    assert not (said.malformed and said.tool_calls)
    assert ("<tool_call>" in said.content) == said.malformed
    assert read(text, with_tools=False).tool_calls == ()


@pytest.mark.parametrize(
    ("text", "in_reasoning", "reasoning", "content"),
    [
        ("plain", False, None, "plain"),
        (" plain \n", False, None, " plain \n"),
        ("<think>\na b\n</think>\n\nfinal", False, "a b", "final"),
        ("<think>never ends", False, "never ends", ""),
        ("a b\n</think>\n\nfinal", True, "a b", "final"),
        ("late <think>a</think>", False, None, "late <think>a</think>"),
    ],
)
def test_reasoning(text: str, in_reasoning: bool, reasoning: str | None, content: str) -> None:
    said = read(text, in_reasoning=in_reasoning)
    assert (said.reasoning, said.content) == (reasoning, content)


def test_a_call_inside_reasoning_is_not_made() -> None:
    assert read('<think><tool_call>{"name": "a", "arguments": {}}</tool_call></think>no').tool_calls == ()


def test_parameters_is_another_word_for_arguments() -> None:
    assert read('<tool_call>{"name": "a", "parameters": {"x": 1}}</tool_call>').tool_calls == (ToolCall("a", '{"x":1}'),)
