"""Tokens read as they come say what they say when read at once, whatever the text and wherever it is cut."""

from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_helpers import call_text, tool

from services.policy_proxy.calls.generation import Piece
from services.policy_proxy.calls.speech import Form, Speech, cut_at_stop, read_forced, read_text
from services.policy_proxy.chat.answer import Part
from services.policy_proxy.parsing import Reading
from services.policy_proxy.prompts.rendering import Renderer

PIECES = [
    "a ",
    "b",
    "\n",
    "<",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "END",
    "EN",
    "zz",
    "é",
    "€",
    "🙂",
    call_text("look_up"),
]
STOPS = [(), ("END",), ("EN", "zz!"), ("<", "b<")]


def reading(*, in_reasoning: bool = False) -> Reading:
    return Reading("qwen3", "qwen25", in_reasoning=in_reasoning, with_tools=True, tools=[tool()], max_calls=1)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    stops=st.sampled_from(STOPS),
    in_reasoning=st.booleans(),
    ends=st.booleans(),
)
def test_parts_together_are_the_answer(
    renderer: Renderer, pieces: list[str], cuts: list[int], stops: tuple[str, ...], in_reasoning: bool, ends: bool
) -> None:
    ids = [int(token) for token in renderer._ids("".join(pieces))] + [renderer.eos_id] * ends
    form = Form(reading(in_reasoning=in_reasoning), stops)
    parts: list[Part] = []
    speech = Speech(0, form, renderer, parts.extend, with_logprobs=True)
    left, number = list(ids), 0
    while left:
        n_tokens = cuts[number % len(cuts)]
        speech.hear(Piece(left[:n_tokens], [-1.0] * len(left[:n_tokens])))
        left, number = left[n_tokens:], number + 1
    said = speech.finish()
    text = renderer.decode(ids[: len(ids) - ends])
    if not stops:
        assert said == read_text(text, form)
    assert "".join(part.delta.get("content", "") for part in parts) == said.content
    assert "".join(part.delta.get("reasoning_content", "") for part in parts) == (said.reasoning or "")
    assert not any(stop in said.content + (said.reasoning or "") for stop in stops)
    assert sum(len(part.logprobs) for part in parts) == len(ids)


def test_the_first_stop_string_counts() -> None:
    assert cut_at_stop("one END two STOP", ("STOP", "END")) == "one "
    assert cut_at_stop("one", ("END",)) == "one"


def test_forced_calls_are_an_array_after_the_reasoning() -> None:
    said = read_forced('<think>\nhm\n</think>\n\n[{"name": "a", "parameters": {"x": 1}}, {"name": "b", "parameters": {}}]', reading())
    assert said.reasoning == "hm"
    assert [(call.name, call.arguments) for call in said.tool_calls] == [("a", '{"x": 1}'), ("b", "{}")]
    assert said.content == ""
    # A grammar that begins with the first token leaves no room for the tag that the prompt opened.
    assert read_forced('[{"name": "a", "parameters": {}}]', reading(in_reasoning=True)).tool_calls
    for text in ("", "[]", "{}", "[1]", '[{"name": 1}]', '[{"name": "a", "parameters": []}]', "no"):
        said = read_forced(text, reading())
        assert (said.malformed, said.content, said.tool_calls) == (True, text, ())
        assert said.problem


def test_token_bytes_are_exact(renderer: Renderer) -> None:
    text = "Grüße 🙂 <|im_end|><tool_call>\n"
    assert b"".join(renderer.token_bytes(int(token)) for token in renderer._ids(text)).decode() == text
    assert renderer.token_bytes(10**7) == b""
