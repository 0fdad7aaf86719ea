"""Hypothesis strategies: conversations as agents send them, in template form, and odd ones."""

from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

THOUGHT, RESULT = "<think>\nhm\n</think>\n\nso", "<tool_response>\nx\n</tool_response>"
TEXTS = st.sampled_from(["", "hello", " spaced \n", "é 日本 🙂", THOUGHT, RESULT, "<|im_end|>", "a </think> b"])
VALUES = st.sampled_from([1, 1.0, True, None, "é", [1, {"b": 2, "a": 1}]])
USERS = st.builds(lambda text: {"role": "user", "content": text}, TEXTS)
RESULTS = st.builds(lambda text: {"role": "tool", "tool_call_id": "c", "content": text}, TEXTS)
CALLS = st.builds(
    lambda name, value: {"id": "c", "type": "function", "function": {"name": name, "arguments": {"x": value}}},
    st.sampled_from(["look_up", "fix"]),
    VALUES,
)


@st.composite
def answers(draw: st.DrawFn) -> list[Json]:
    """An assistant message, and the results of its calls."""
    message: Json = {"role": "assistant", "content": draw(TEXTS)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(st.sampled_from(["", "hm", "\nlong\nthoughts\n"]))
    calls = draw(st.lists(CALLS, max_size=2))
    if calls:
        message["tool_calls"] = calls
    return [message, *(draw(RESULTS) for _ in calls)]


@st.composite
def conversations(draw: st.DrawFn, max_turns: int = 5) -> list[list[Json]]:
    """Turns: what a prompt ends with, again and again; all of them together are the conversation."""
    system = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    turns = [[*system, draw(USERS)]]
    for _ in range(draw(st.integers(0, max_turns))):
        turn = draw(answers())
        turns.append([*turn, draw(USERS)] if "tool_calls" not in turn[0] or draw(st.booleans()) else turn)
    return turns
