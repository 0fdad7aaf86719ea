"""What the proxy records is what SGLang sampled, and what transformers computes for the same tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_models import ANSWER, CALL, QUESTION, REPORT, SYSTEM, WEATHER, hf_logprobs
from real_stack import MakeStack, RealSession, Stack, ask, control

from services.common.wire.calls import CallRecord, Row, rows_of

TOLERANCE = 1e-5
"""Nats. Both compute in fp32 on the same CPU, in another order."""

Figure = Callable[[str, str], None]


def assert_as_sent(stack: Stack, record: CallRecord, row: Row) -> None:
    """The row's tokens and logprobs are those that went over the wire to SGLang and back."""
    exchanges = stack.tap.generations(record.call_id)
    entries = [entry for exchange in exchanges for entry in exchange.meta["output_token_logprobs"]]
    assert row.ids.tolist() == exchanges[0].body["input_ids"] + [entry[1] for entry in entries]
    assert record.output_ids().tolist() == [entry[1] for entry in entries]
    logprobs = record.output_logprobs()
    assert logprobs is not None
    assert logprobs.tolist() == pytest.approx([entry[0] for entry in entries], abs=1e-7)


def off_by(folder: Path, row: Row, temperature: float = 1.0) -> float:
    """The largest difference between captured logprobs and transformers'."""
    assert row.logprobs is not None
    return float(np.abs(row.logprobs - hf_logprobs(folder, row.ids.tolist(), row.n_output, temperature)).max())


def sglang_scores(server: str, row: Row) -> np.ndarray:
    """What SGLang itself says about the output's tokens when they come as a prompt."""
    n_prompt = len(row.ids) - row.n_output
    params = {"max_new_tokens": 1, "temperature": 1.0}
    body = {"input_ids": row.ids.tolist(), "sampling_params": params, "return_logprob": True, "logprob_start_len": n_prompt - 1}
    entries = ask(server, "POST", "/generate", **body).raise_for_status().json()["meta_info"]["input_token_logprobs"]
    return np.asarray([entry[0] for entry in entries[-row.n_output :]], np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_sampled_tokens_have_the_logprobs_of_sglang_and_of_transformers(
    make_stack: MakeStack, sglang: str, random_policies: list[Path], temperature: float, figure: Figure
) -> None:
    stack = make_stack(random_policies[0])
    session = stack.open()
    session.post([SYSTEM, QUESTION], temperature=temperature, max_tokens=200, seed=7)
    session.post([SYSTEM, QUESTION], temperature=temperature, max_tokens=200, seed=8)
    records = session.records()
    rows = rows_of(records)
    for record, row in zip(records, rows, strict=True):
        assert_as_sent(stack, record, row)
        # A greedy token's logprob is that of the undivided logits.
        assert off_by(random_policies[0], row, temperature or 1.0) < TOLERANCE
    if temperature == 1.0:
        assert float(np.abs(rows[0].logprobs - sglang_scores(sglang, rows[0])).max()) < TOLERANCE
    worst = max(off_by(random_policies[0], row, temperature or 1.0) for row in rows)
    figure(
        f"captured and transformers' logprobs at temperature {temperature:g}", f"{sum(r.n_output for r in rows)} tokens, {worst:.1e} nats"
    )


def test_a_conversation_with_a_tool_call(make_stack: MakeStack, sglang: str, taught: Path, figure: Figure) -> None:
    stack = make_stack(taught)
    control(sglang, "/flush_cache")
    session = stack.open()
    called = say(session, [SYSTEM, QUESTION])
    assert called["content"] is None
    assert [call["function"]["name"] for call in called["tool_calls"]] == ["get_weather"]
    assert called["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": REPORT}
    answered = say(session, [SYSTEM, QUESTION, called, result])
    assert answered["content"] == ANSWER
    first, second = session.records()
    assert (first.parent, second.parent) == (None, first.call_id)
    for record, row in zip([first, second], rows_of([first, second]), strict=True):
        assert_as_sent(stack, record, row)
        assert off_by(taught, row) < TOLERANCE
    cached = stack.tap.generations(second.call_id)[0].meta["cached_tokens"]
    n_first = len(first.prompt_ids()) + len(first.output_ids())
    # The last sampled token's keys were never computed: generation ended with it.
    assert n_first - 1 <= cached <= n_first
    n_prompt = len(stack.tap.generations(second.call_id)[0].body["input_ids"])
    figure("radix cache on turn 2", f"{cached} of {n_prompt} prompt tokens, {n_first} of them from turn 1")


def test_the_openai_sdk_gets_a_tool_call(make_stack: MakeStack, taught: Path) -> None:
    session = make_stack(taught).open()
    with session.openai() as client:
        reply = client.chat.completions.create(model="policy", messages=[SYSTEM, QUESTION], tools=[WEATHER], temperature=0.0)
    [call] = reply.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert reply.choices[0].finish_reason == "tool_calls"


def test_the_prompt_is_the_one_that_transformers_would_write(make_stack: MakeStack, taught: Path) -> None:
    from transformers import AutoTokenizer

    stack = make_stack(taught)
    session = stack.open()
    as_sent = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    said, result = {"role": "assistant", "content": None}, {"role": "tool", "tool_call_id": "c1", "content": REPORT}
    say(session, [SYSTEM, QUESTION, said | {"tool_calls": [as_sent]}, result])
    [record] = session.records()
    messages = [SYSTEM, QUESTION, said | {"tool_calls": [CALL]}, result]
    theirs = AutoTokenizer.from_pretrained(taught).apply_chat_template(messages, tools=[WEATHER], add_generation_prompt=True)
    assert stack.tap.generations(record.call_id)[0].body["input_ids"] == list(getattr(theirs, "input_ids", theirs))


def say(session: RealSession, messages: list[Any]) -> Any:
    """A greedy call with the weather tool; its message."""
    return session.post(messages, tools=[WEATHER], temperature=0.0).json()["choices"][0]["message"]
