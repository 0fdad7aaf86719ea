"""An answer that comes in pieces is read as the same answer at once, whatever it says and however it is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.policy_proxy.parsing import (
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    AnswerReader,
    CallDelta,
    ContentDelta,
    Delta,
    Reading,
    ReasoningDelta,
    Said,
    ToolCall,
    read_answer,
)
from services.policy_proxy.parsing.registry import FORMATS, THINKING

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
WORDS = [*'\n é🙂<[{}";', "text", "</", "NaN", "<function=a>", "<parameter=x>", "</parameter>", "</function>", "{'name': 'b'}",
         '{"name": "a", "parameters": {}}', '{"name": "a", "arguments": {"x": "<tool_call>"}}', "a<｜tool▁sep｜>{}", "[ARGS]{}",
         "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<|tool_call_begin|>", "functions.a:0<|tool_call_argument_begin|>{}"]  # fmt: skip
READINGS = st.builds(
    Reading,
    reasoning_parser=st.sampled_from(sorted(REASONING_PARSERS)),
    tool_call_parser=st.sampled_from(sorted(TOOL_CALL_PARSERS)),
    in_reasoning=st.booleans(),
    with_tools=st.sampled_from([True, True, True, False]),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Reading, str]:
    """Mostly made of what means something to the parsers that will read it."""
    reading = draw(READINGS)
    thinking = THINKING[reading.reasoning_parser]
    tags = [*FORMATS[reading.tool_call_parser].openers, "</tool_call>", *([thinking.opens, thinking.closes] if thinking else [])]
    parts = st.sampled_from([*tags, *tags, *tags, *WORDS]) | st.text(max_size=3)
    return reading, "".join(draw(st.lists(parts, max_size=10)))


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def stream(reading: Reading, pieces: list[str]) -> tuple[list[Delta], Said]:
    reader = AnswerReader(reading)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    last, said = reader.finish()
    return deltas + last, said


def assembled(deltas: list[Delta]) -> tuple[str, str, list[ToolCall]]:
    calls = [delta for delta in deltas if isinstance(delta, CallDelta)]
    assert [call.index for call in calls] == list(range(len(calls)))
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)),
        [ToolCall(call.name, call.arguments) for call in calls],
    )


@UNHURRIED
@given(answers(), st.lists(st.integers(0, 1000), max_size=12))
def test_pieces_are_read_as_the_whole(answer: tuple[Reading, str], cuts: list[int]) -> None:
    reading, text = answer
    whole = read_answer(text, reading)
    for pieces in (in_pieces(text, cuts), list(text)):
        deltas, said = stream(reading, pieces)
        assert said == whole
        assert assembled(deltas) == (said.reasoning or "", said.content, list(said.tool_calls))
        assert all(delta.text for delta in deltas if not isinstance(delta, CallDelta))


@UNHURRIED
@given(answers())
def test_no_text_is_lost_or_half_executed(answer: tuple[Reading, str]) -> None:
    reading, text = answer
    said = read_answer(text, reading)
    assert said.malformed == bool(said.problem)
    assert not (said.malformed and said.tool_calls)
    for call in said.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
        call.name.encode()
    if not said.tool_calls:
        # Nothing but the think tags and white space beside them is missing from the parts.
        thinking = THINKING[reading.reasoning_parser]
        tags = (thinking.opens, thinking.closes) if thinking else ()
        assert _letters(text, tags) == _letters((said.reasoning or "") + said.content, tags)


def _letters(text: str, tags: tuple[str, ...]) -> str:
    for tag in tags:
        text = text.replace(tag, "")
    return "".join(text.split())


@UNHURRIED
@given(st.text(), st.text(), st.sampled_from(sorted(TOOL_CALL_PARSERS)))
def test_reasoning_is_what_stands_before_the_closing_tag(thought: str, answer: str, parser: str) -> None:
    reading = Reading("deepseek-r1", parser, in_reasoning=False, with_tools=False)
    thought = thought.replace("</think>", "").replace("<think>", "")
    assert read_answer(f"{thought}</think>{answer}", reading) == Said(answer.lstrip(), thought.strip(), (), malformed=False)


def test_reasoning_and_content_come_as_they_are_said() -> None:
    reader = AnswerReader(Reading("qwen3", "qwen25", in_reasoning=False, with_tools=True))
    said = [
        "<thi",
        "nk>",
        "\n",
        "I ",
        "see",
        ". </th",
        "ink>",
        "\n\n",
        "Let",
        " me",
        " <tool",
        "_",
        "call>",
        '{"name": "a"}',
        "</tool_call>",
    ]
    heard = [reader.feed(piece) for piece in said]
    assert heard == [
        *([[]] * 3),
        [ReasoningDelta("I")],
        [ReasoningDelta(" see")],
        [ReasoningDelta(".")],
        *([[]] * 2),
        [ContentDelta("Let")],
        [ContentDelta(" me")],
        *([[]] * 5),
    ]
    assert reader.finish()[0] == [CallDelta(0, "a", "{}")]


@pytest.mark.parametrize("parser", ["qwen25", "mistral"])
def test_a_long_answer_costs_no_more_per_token_than_a_short_one(parser: str) -> None:
    """30,000 pieces: anything quadratic would run into the test's time limit."""
    reader = AnswerReader(Reading("qwen3", parser, in_reasoning=True, with_tools=True))
    opener = FORMATS[parser].openers[0]
    for piece in ["so "] * 10_000 + ["</think>"] + ["well "] * 10_000 + [opener] + ["{ "] * 10_000:
        reader.feed(piece)
    _, said = reader.finish()
    assert said.malformed
    assert said.reasoning == "so " * 9_999 + "so"
