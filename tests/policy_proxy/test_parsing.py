"""Reading what the policy said: reasoning, and the formats of tool calls."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.policy_proxy.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS, Reading, Said, ToolCall, check_parsers, read_answer

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The machine may be busy with other things."""

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text('ab é日"\\\n{}[]/>', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "n", "línea"]), JSON_VALUES, max_size=3)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "n": {"type": "integer"},
                    "ratio": {"type": ["number", "null"]},
                    "exact": {"type": "boolean"},
                    "tags": {"type": "array"},
                    "limit": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
                    "text_or_n": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
                    "mode": {"enum": [1, 2]},
                    "both": {"allOf": [{"type": "string"}, {"type": "object"}]},
                    "nested": {"properties": {"a": {}}},
                },
            },
        },
    }
]
PARIS = ToolCall("look_up", '{"city": "Paris"}')
DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"


def read(text: str, *, parser: str = "qwen25", reasoning: str = "qwen3", in_reasoning: bool = False, with_tools: bool = True) -> Said:
    return read_answer(text, Reading(reasoning, parser, in_reasoning, with_tools, TOOLS))


def coder(parameter: str, value: str) -> str:
    return f"<tool_call>\n<function=look_up>\n<parameter={parameter}>\n{value}\n</parameter>\n</function>\n</tool_call>"


@UNHURRIED
@given(st.lists(st.tuples(st.sampled_from(["look_up", "fix"]), ARGUMENTS), min_size=1, max_size=3), st.sampled_from(["", "Let me see."]))
def test_calls_come_back_as_they_were_made(calls: list[tuple[str, dict[str, object]]], text: str) -> None:
    blocks = [f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls]
    for parser in ("qwen25", "hermes"):
        said = read("\n".join([text, *blocks]), parser=parser)
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
    assert ("<tool_call>" in said.content) == said.malformed == bool(said.problem)
    assert read(text, with_tools=False).tool_calls == ()


@pytest.mark.parametrize(
    ("text", "in_reasoning", "reasoning", "content"),
    [
        ("plain", False, None, "plain"),
        (" plain \n", False, None, " plain \n"),
        ("<think>\na b\n</think>\n\nfinal", False, "a b", "final"),
        ("\n<think>a</think>final\n", False, "a", "final\n"),
        ("<think></think>final", False, "", "final"),
        ("<think><think>a</think>final", False, "a", "final"),
        ("<think>never ends", False, "never ends", ""),
        ("<think>a</thin", False, "a</thin", ""),
        ("a b\n</think>\n\nfinal", True, "a b", "final"),
        ("<think>a</think>final", True, "a", "final"),
        ("late <think>a</think>", False, None, "late <think>a</think>"),
        ("a</think>b", False, None, "a</think>b"),
    ],
)
def test_reasoning(text: str, in_reasoning: bool, reasoning: str | None, content: str) -> None:
    said = read(text, in_reasoning=in_reasoning)
    assert (said.reasoning, said.content) == (reasoning, content)


@pytest.mark.parametrize(
    ("parser", "text", "reasoning", "content"),
    [
        ("", "<think>a</think>b", None, "<think>a</think>b"),
        ("qwen3-thinking", "a</think>b", "a", "b"),
        ("deepseek-r1", "a</think>b", "a", "b"),
        ("deepseek-r1", "a<tool_call>", "a<tool_call>", ""),
        ("kimi", "◁think▷a◁/think▷b", "a", "b"),
        ("mistral", "[THINK]a[/THINK]b", "a", "b"),
    ],
)
def test_reasoning_of_other_models(parser: str, text: str, reasoning: str | None, content: str) -> None:
    said = read(text, reasoning=parser)
    assert (said.reasoning, said.content) == (reasoning, content)


def test_a_call_inside_reasoning_is_not_made() -> None:
    assert read('<think><tool_call>{"name": "a", "arguments": {}}</tool_call></think>no').tool_calls == ()


def test_a_call_ends_reasoning_that_is_never_closed() -> None:
    said = read('<think>I look.\n<tool_call>\n{"name": "a"}\n</tool_call>')
    assert (said.reasoning, said.content, said.tool_calls) == ("I look.", "", (ToolCall("a", "{}"),))


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("qwen25", '<tool_call>\n{"name": "look_up", "arguments": {"city": "Paris"}}\n</tool_call>'),
        ("qwen25", '<tool_call>{"name": "look_up", "parameters": {"city": "Paris"}}</tool_call> and so on'),
        ("qwen", '<tool_call>\n[{"name": "look_up", "arguments": {"city": "Paris"}}]\n</tool_call>'),
        ("hermes", '<tool_call>{"name": "look_up", "arguments": {"city": "Paris"}}'),
        ("qwen3_coder", coder("city", "Paris")),
        ("qwen3_coder", "<tool_call><function=look_up><parameter=city>Paris</function>"),
        ("step3p5", coder("city", "Paris")),
        ("llama3", '{"name": "look_up", "parameters": {"city": "Paris"}}'),
        ("llama3", '<|python_tag|>{"name": "look_up", "arguments": {"city": "Paris"}}'),
        ("llama3", "{'name': 'look_up', 'parameters': {'city': 'Paris'}}"),
        ("mistral", '[TOOL_CALLS] [{"name": "look_up", "arguments": {"city": "Paris"}}]'),
        ("mistral", '[TOOL_CALLS]look_up[ARGS]{"city": "Paris"}'),
        ("deepseekv3", DEEPSEEK.format('function<｜tool▁sep｜>look_up\n```json\n{"city": "Paris"}\n```')),
        ("deepseekv31", DEEPSEEK.format('look_up<｜tool▁sep｜>{"city": "Paris"}')),
        ("kimi_k2", KIMI.format('functions.look_up:0<|tool_call_argument_begin|>{"city": "Paris"}')),
    ],
)
def test_every_format(parser: str, text: str) -> None:
    for before, content in (("", ""), ("I look.\n", "I look.")):
        if before and "<" not in text and "[" not in text:
            continue  # Without a tag a call is the whole answer.
        said = read(before + text, parser=parser)
        assert (said.tool_calls, said.content, said.problem) == ((PARIS,), content, "")


@pytest.mark.parametrize(
    ("parser", "text", "problem"),
    [
        ("qwen25", '<tool_call>\n{"name": "a", "arguments": {"x": \n</tool_call>', "tool call 1, at character 46: not JSON"),
        ("qwen25", '<tool_call>\n{"name": "a", "arguments"', "the text ends before the JSON does"),
        ("qwen25", '<tool_call>\n{"name": "a", "arguments": {}}', "</tool_call> is missing"),
        ("qwen25", '<tool_call>{"name": "a"}</tool_call><tool_call>{"name": ""}</tool_call>', "tool call 2, at character 47: the name"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "the arguments of a are a string"),
        ("qwen25", '<tool_call>["a"]</tool_call>', "a string where an object"),
        ("qwen25", "<tool_call>[]</tool_call>", "an empty list"),
        ("qwen25", "Use <tool_call> tags.", "not JSON"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN is not a number"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": {"x": 1e999}}</tool_call>', "too large"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": {"x": "\\ud800"}}</tool_call>', "cannot be written in UTF-8"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>", "not JSON"),
        ("qwen25", "<tool_call>" + "[" * 100_000, "nested too deeply"),
        ("qwen25", '<tool_call>{"name": "a", "arguments": {"x": ' + "[" * 150 + "]" * 150 + "}}</tool_call>", "nested too deeply"),
        ("hermes", '<tool_call>{"name": "a"} {"name": "b"}', "</tool_call> is missing"),
        ("qwen3_coder", '<tool_call>{"name": "a"}</tool_call>', "<function= is missing"),
        ("qwen3_coder", "<tool_call><function=a></tool_call>", "<parameter=…> or </function> is missing"),
        ("qwen3_coder", "<tool_call><function=a><parameter=x>cut", "is missing"),
        ("qwen3_coder", "<tool_call><function=a><parameter=x>1</tool_call></parameter></function>", "the value of x is not closed"),
        ("qwen3_coder", '<tool_call><function=a>{"x": 1}</function></tool_call>', "<parameter=…> or </function> is missing"),
        ("qwen3_coder", "<tool_call><function=></function></tool_call>", "no name stands before >"),
        ("llama3", '<|python_tag|>print("hi")', "no call follows"),
        ("llama3", '{"name": "a", "parameters": {"x": ', "the text ends before the JSON does"),
        ("mistral", '[TOOL_CALLS] [{"name": "a"}', "the text ends before the JSON does"),
        ("mistral", "[TOOL_CALLS]a[ARGS]5", "the arguments of a are a number"),
        ("deepseekv3", DEEPSEEK.format("function<｜tool▁sep｜>a\n```json\n{}```"), "the line after the JSON is not ```"),
        ("deepseekv31", DEEPSEEK.format("a<｜tool▁sep｜>{} {}"), "<｜tool▁call▁end｜> is missing"),
        ("deepseekv31", "<｜tool▁calls▁begin｜>", "no call follows"),
        ("kimi_k2", KIMI.format("3<|tool_call_argument_begin|>{}"), "the id is not functions.NAME:INDEX"),
    ],
)
def test_what_cannot_be_read_stays_text_with_the_reason(parser: str, text: str, problem: str) -> None:
    said = read(text, parser=parser)
    assert (said.content, said.tool_calls, said.malformed) == (text, (), True)
    assert problem in said.problem
    assert "Expected: " in said.problem
    assert read(f"Well. {text}", parser=parser, with_tools=False).problem == ""


def test_offsets_of_a_problem_count_in_the_content() -> None:
    said = read("<think>a</think>\n\nI look.\n\n<tool_call>{]</tool_call>")
    at = said.content.index("]")
    assert f"at character {at}:" in said.problem


@pytest.mark.parametrize(
    "text",
    ['{"answer": 5}', '{"people": [{"name": "Bob"}]}', '{"name": "Bob", "age": 5}', "{not json", '\n{"name": "a", "parameters": {}}', "{"],
)
def test_json_that_calls_nothing_is_an_answer_in_json(text: str) -> None:
    said = read(text, parser="llama3")
    assert (said.content, said.tool_calls, said.malformed) == (text, (), False)


def test_what_follows_the_calls() -> None:
    several = '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}'
    said = read(f"<|python_tag|>{several}\nDone.", parser="llama3")
    assert ([call.name for call in said.tool_calls], said.content) == (["a", "b"], "Done.")
    said = read('I look.\n[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS] [{"name": "b"}] Done.', parser="mistral")
    assert ([call.name for call in said.tool_calls], said.content) == (["a", "b"], "I look. Done.")
    said = read('{"name": "a", "parameters": {}} <|python_tag|>{"name": "b", "parameters": {}}', parser="llama3")
    assert [call.name for call in said.tool_calls] == ["b"]


@pytest.mark.parametrize("parser", ["qwen25", "hermes"])
def test_tags_inside_strings_are_text(parser: str) -> None:
    arguments = {"city": "</tool_call><tool_call>"}
    said = read(f"<tool_call>\n{json.dumps({'name': 'look_up', 'arguments': arguments})}\n</tool_call>", parser=parser)
    assert json.loads(said.tool_calls[0].arguments) == arguments


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("city", "5", "5"),
        ("city", "a\n\nb\n", "a\n\nb\n"),
        ("city", "NULL", None),
        ("n", "5", 5),
        ("n", "five", "five"),
        ("ratio", "0.5", 0.5),
        ("ratio", "3", 3),
        ("ratio", "1e3", 1000.0),
        ("ratio", "inf", "inf"),
        ("ratio", "half", "half"),
        ("exact", "True", True),
        ("exact", "no", False),
        ("tags", '["a", 1]', ["a", 1]),
        ("tags", "('a', 1)", ["a", 1]),
        ("tags", "[1,", "[1,"),
        ("tags", "{1, 2}", "{1, 2}"),
        ("tags", "-" * 100_000 + "1", "-" * 100_000 + "1"),
        ("limit", "7", 7),
        ("text_or_n", "7", "7"),
        ("mode", "2", 2),
        ("both", '{"a": null}', {"a": None}),
        ("nested", "{'a': None}", {"a": None}),
        ("unknown", "7", "7"),
    ],
)
def test_untyped_values_get_the_type_of_the_schema(parameter: str, text: str, value: Any) -> None:
    said = read(coder(parameter, text), parser="qwen3_coder")
    assert json.loads(said.tool_calls[0].arguments) == {parameter: value}


@pytest.mark.parametrize(
    "parameters",
    [None, 5, {}, {"type": "object"}, {"properties": []}, {"properties": {"city": 5}}, {"oneOf": [{"properties": {"city": {"type": []}}}]}],
)
def test_schemas_that_say_nothing_leave_strings(parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}]
    said = read_answer(coder("city", "5"), Reading("", "qwen3_coder", False, True, tools))
    assert said.tool_calls == (ToolCall("look_up", '{"city": "5"}'),)


def test_parser_names_are_checked() -> None:
    for name in TOOL_CALL_PARSERS:
        check_parsers(tool_call_parser=name, reasoning_parser="")
    for name in REASONING_PARSERS:
        check_parsers(tool_call_parser="qwen25", reasoning_parser=name)
    with pytest.raises(ValueError, match=r"rollout\.agent\.tool_call_parser: 'glm99' is not one of .*'qwen25'"):
        check_parsers(tool_call_parser="glm99", reasoning_parser="qwen3")
    with pytest.raises(ValueError, match=r"rollout\.agent\.reasoning_parser: 'qwen99' is not one of .*'qwen3'"):
        check_parsers(tool_call_parser="qwen25", reasoning_parser="qwen99")
