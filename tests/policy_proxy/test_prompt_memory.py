"""What memory keeps so that a call costs only what is new: digests of what is skipped, tips, and texts encoded before."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_helpers import TEMPLATE, tool, user
from template_samples import DEEPSEEK, QWEN3, QWEN25
from tokenizers import Tokenizer

from services.common.wire.calls import CallRecord
from services.policy_proxy.chat import ChatRequest
from services.policy_proxy.chat.answer import assistant_message
from services.policy_proxy.chat.messages import read_messages
from services.policy_proxy.parsing import Reading, read_answer
from services.policy_proxy.prompts.alignment import RESPONSE_KEY, mark
from services.policy_proxy.prompts.known_texts import KnownTexts
from services.policy_proxy.prompts.prompts import Prompts
from services.policy_proxy.prompts.rendering import SEGMENT_MIN_CHARS, Renderer
from services.policy_proxy.prompts.template import ChatTemplate
from services.policy_proxy.prompts.texts import BeginningNeeded, Text, new_digest
from services.policy_proxy.sessions.table import Session
from services.policy_proxy.sessions.tips import TIPS_PER_SESSION, Tip, Tips, history_digests

Json = dict[str, Any]
END = "<|im_end|>"
TEXTS = st.text(alphabet="ab é🙂\n", max_size=30)


def without(text: str, skipped: int) -> Text:
    """``text`` where the first bytes are not at hand."""
    data = text.encode()
    return Text(skipped, new_digest(data[:skipped]), data[skipped:])


@given(TEXTS, st.integers(0, 40), st.lists(st.integers(0, 130), max_size=5))
def test_digests_are_those_of_the_whole_text(text: str, skipped: int, lengths: list[int]) -> None:
    data = text.encode()
    part = without(text, min(skipped, len(data)))
    asked = [length for length in lengths if length >= part.skipped]
    found = {n: hashlib.blake2b(data[:n], digest_size=16).hexdigest() for n in asked if n <= len(data)}
    assert part.digests(asked) == found == part.digests(asked)
    assert len(part) == len(data)


@given(TEXTS, TEXTS, st.integers(0, 40), st.integers(0, 40))
def test_what_follows_a_text_is_found_whatever_is_at_hand(start: str, end: str, skipped: int, other_skipped: int) -> None:
    n = len(start.encode())
    whole, first = without(start + end, min(skipped, n)), without(start, min(other_skipped, n))
    assert whole.after_text(first) == end
    assert whole.after(n) == end
    assert without("x" + start + end, min(skipped, n)).after_text(without("y" + start, min(other_skipped, n))) is None


def test_nothing_is_guessed_about_the_beginning() -> None:
    text = without("hello world", 6)
    for question in (lambda: text.after(3), lambda: text.digests([3]), lambda: text.after_text(Text.of("hel"))):
        with pytest.raises(BeginningNeeded):
            question()
    assert text.after_text(Text.of("hello world!")) is None
    assert text.ends_with("world")
    assert not text.ends_with("hello world")


def test_histories_differ_where_their_json_differs() -> None:
    """To Python 1, 1.0 and true are equal, and so are objects in another order; a template writes them differently."""

    def digest(value: Any) -> bytes:
        return history_digests([user("a"), user(value)], [2])[2]

    values = [1, 1.0, True, "1", {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1], ["1"], None, ""]
    assert len({digest(value) for value in values}) == len(values)


@given(st.lists(st.sampled_from([user("a"), user("b"), user("é")]), max_size=6), st.lists(st.integers(0, 7), max_size=4))
def test_a_history_has_one_digest_however_it_is_cut(messages: list[dict[str, Any]], counts: list[int]) -> None:
    found = history_digests(messages, counts)
    assert found == {n: history_digests(messages[:n], [n])[n] for n in counts if n <= len(messages)}


class Memory:
    """One session seen by two proxies: one that keeps tips, and one that has the records alone."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.tips = Tips()
        self.session = Session("s")
        self._with, self._without = Prompts(renderer, 10**6, self.tips), Prompts(renderer, 10**6, Tips(0))

    async def say(self, messages: list[Json], tools: list[Json], said: str) -> Json:
        """One call; the message it is read as."""
        request = ChatRequest(messages=read_messages(messages), tools=tools)
        prompt, other = await self._with.of(self.session, request), await self._without.of(self.session, request)
        assert (prompt.parent, prompt.ids.tolist(), prompt.new_ids.tolist()) == (other.parent, other.ids.tolist(), other.new_ids.tolist())
        assert same(prompt.text, other.text)
        output = self.renderer._ids(said)
        marks = [mark(each.text, said, len(messages), ends_turn=said.endswith(END)) for each in (prompt, other)]
        assert marks[0] == marks[1]
        reading = Reading("qwen3", "qwen25", prompt.text.ends_with("<think>"), bool(tools))
        message = assistant_message(read_answer(said.removesuffix(END), reading))
        record = CallRecord(
            call_id=f"call-{len(self.session.calls)}",
            session_id="s",
            ordinal=len(self.session.calls),
            parent=prompt.parent,
            prompt=prompt.new_ids.tobytes(),
            output=output.tobytes(),
            versions=[(0, len(output))],
            finish_reason="stop",
            response={"choices": [{"message": message}], RESPONSE_KEY: marks[0].as_json()},
        )
        self.session.add(record)
        for prompts in (self._with, self._without):
            prompts.keep(prompt, record, len(messages))
        return message


def same(one: Text, other: Text) -> bool:
    return len(one) == len(other) and one.digests([len(one)]) == other.digests([len(other)])


SAID = st.sampled_from(
    [
        f"hello{END}",
        f"  hello \n{END}",
        "cut off",
        f"<think>\nhm\n</think>\n\nso{END}",
        f'<tool_call>\n{{"name": "look_up", "arguments": {{"x":  1}}}}\n</tool_call>{END}',
        f'so <tool_call>{{"arguments": {{"x": 1.0}}, "name": "fix"}}</tool_call>{END}',
        f"<tool_call>{{</tool_call>{END}",
        END,
    ]
)
STEP = st.tuples(
    st.integers(0, 1), SAID, st.sampled_from(["", "", "", "edit", "cut", "again", "other tools"]), st.sampled_from(["ok", "é", ""])
)


@pytest.mark.parametrize("source", [QWEN25, QWEN3, TEMPLATE, DEEPSEEK], ids=["qwen25", "qwen3", "trimming", "deepseek"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=8))
async def test_a_prompt_is_the_same_with_and_without_memory(model_folder: Path, source: str, steps: list[Any]) -> None:
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    memory = Memory(Renderer(tokenizer, {"default": ChatTemplate(source, {})}, END))
    histories = [[{"role": "system", "content": f"agent {number}"}, user("hi")] for number in range(2)]
    for agent, said, change, reply in steps:
        messages = histories[agent]
        if change == "edit":
            messages[1] = user(reply)
        elif change == "cut":
            del messages[4:]
        message = await memory.say(messages, [tool("other" if change == "other tools" else "look_up")], said)
        if change != "again":
            results = [{"role": "tool", "tool_call_id": call["id"], "content": reply} for call in message.get("tool_calls") or []]
            histories[agent] = [*messages, message, *(results or [user(reply)])]


def tip(name: str, n_tokens: int = 1000) -> Tip:
    return Tip(name, 1, b"", None, np.zeros(n_tokens, "<i4"))


def test_a_tip_takes_the_place_of_the_one_it_grew_from() -> None:
    tips = Tips()
    tips.put("s", tip("a"), None)
    tips.put("s", tip("b"), "a")
    tips.put("s", tip("c"), "a")
    assert [each.call_id for each in tips.of("s")] == ["b", "c"]
    assert tips.bytes == sum(each.cost for each in tips.of("s"))
    tips.put("s", tip("c"), "b")
    assert [each.call_id for each in tips.of("s")] == ["c"]
    tips.drop("s")
    assert (tips.bytes, list(tips.of("s"))) == (0, [])


def test_tips_stay_within_their_budget() -> None:
    budget = 5 * tip("a").cost
    tips = Tips(budget)
    for number in range(50):
        tips.put(f"s{number % 7}", tip(f"call-{number}"), None)
        tips.of("s0")
        assert tips.bytes <= budget
    assert tips.of("s0")
    for number in range(50):
        tips.put("s0", tip(f"call-{number}", 1), None)
    assert len(tips.of("s0")) == TIPS_PER_SESSION
    tips.put("huge", tip("h", 10**6), None)
    assert tips.bytes == 0


def test_known_texts_stay_within_their_budget() -> None:
    known = KnownTexts(10_000)
    for number in range(100):
        known.put(f"{number}" * 100, np.zeros(10, "<i4"))
        assert known.bytes <= 10_000
    assert 0 < len(known) < 100
    assert known.get("99" * 100) is not None
    assert known.get("1" * 100) is None


async def test_turns_seen_before_are_not_tokenised_again(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a template writes the history anew, most of its turns are still the same."""
    turns = [f"<|im_start|>user\nturn {number} {'word ' * 100}<|im_end|>" for number in range(40)]
    first = await renderer.encode("".join(turns))
    encoded: list[str] = []
    ids_of = renderer._ids
    monkeypatch.setattr(renderer, "_ids", lambda text: encoded.append(text) or ids_of(text))
    edited = [*turns[:3], "<|im_start|>user\nedited<|im_end|>", *turns[4:]]
    again = await renderer.encode("".join(edited))
    assert encoded == ["<|im_start|>user\nedited<|im_end|>"]
    assert again.tolist() == ids_of("".join(edited)).tolist() != first.tolist()


async def test_long_new_text_is_tokenised_off_the_event_loop(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:

    threads: set[str] = set()
    all_ids = renderer._all_ids
    monkeypatch.setattr(renderer, "_all_ids", lambda texts: threads.add(threading.current_thread().name) or all_ids(texts))
    short = "of no length<|im_end|>" * (SEGMENT_MIN_CHARS // 10)
    assert (await renderer.encode(short)).tolist() == renderer._ids(short).tolist()
    assert threads == {"MainThread"}
    long = "".join(f"{number} and on<|im_end|>" for number in range(5000))
    assert (await renderer.encode(long)).tolist() == renderer._ids(long).tolist()
    assert len(threads) == 2
