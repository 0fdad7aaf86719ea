"""The judge of NL assertions: a real HTTP server, strict reading, memory; a judge that fails is never a verdict."""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st
from runner_fakes import FakeJudge, LiveApp, free_port, verdicts

from services.agent_runner.conversation.messages import Message, ToolCall
from services.agent_runner.reward.judge import ATTEMPTS, Judge, JudgeFailed, open_judge, read_verdicts
from services.common.config.experiment import EnvConfig

TALK = [
    Message("assistant", "Hi!"),
    Message("user", "Where is my parcel?"),
    Message("assistant", None, (ToolCall("c", "find", {"n": 1}),), private={"reasoning_content": "a secret"}),
    Message("tool", "on its way", tool_call_id="c"),
    Message("assistant", "On its way."),
]
ASKED = ["The agent is kind", "The agent finds the parcel"]


def judge_at(url: str, **settings: Any) -> Judge:
    config = {"judge_llm": "openai/grader", "judge_llm_base_url": f"{url}/v1", "judge_timeout_s": 5, **settings}
    judge = open_judge(EnvConfig.model_validate(config))
    assert judge is not None
    return judge


async def test_the_whole_conversation_and_all_assertions_are_asked_at_once(live: Callable[[Any], LiveApp]):
    fake = FakeJudge(verdicts(True, False))
    judge = judge_at(live(fake).url, judge_llm_args={"max_tokens": 64})
    checks = await judge.decide(TALK, ASKED)
    await judge.close()
    assert [(check.passed, check.kind, check.detail) for check in checks] == [
        (True, "NL_ASSERTION", "The agent is kind: seen"),
        (False, "NL_ASSERTION", "The agent finds the parcel: seen"),
    ]
    (body,) = fake.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader", 0.0, 64)
    question = body["messages"][1]["content"]
    assert "assistant: Hi!\nuser: Where is my parcel?\nassistant: None\ntool: on its way\nassistant: On its way." in question
    assert json.dumps(ASKED, separators=(",", ":")) in question
    assert "secret" not in question


async def test_what_was_decided_is_not_asked_again(live: Callable[[Any], LiveApp]):
    fake = FakeJudge(verdicts(True, True))
    judge = judge_at(live(fake).url)
    first = await judge.decide(TALK, ASKED)
    assert await judge.decide(TALK, ASKED) is first
    assert len(fake.bodies) == 1
    await judge.decide(TALK[:2], ASKED)
    await judge.close()
    assert len(fake.bodies) == 2


async def test_an_answer_that_cannot_be_read_is_asked_for_again(live: Callable[[Any], LiveApp]):
    fake = FakeJudge("let me think", verdicts(True), verdicts(True, True))
    judge = judge_at(live(fake).url)
    assert len(await judge.decide(TALK, ASKED)) == 2
    await judge.close()
    assert len(fake.bodies) == ATTEMPTS


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (verdicts(), "decided 0 of 2"),
        (verdicts(True), "decided 1 of 2"),
        (verdicts(True, True, True), "decided 3 of 2"),
        (verdicts(True, "yes"), "neither true nor false"),
        (verdicts(True, None), "neither true nor false"),
        ("yes and no", "not valid JSON"),
        ("[true, true]", "no list of results"),
        (JSONResponse({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400), "too long"),
        (JSONResponse({"error": {"message": "broken", "code": "internal"}}, 500), "broken"),
        (JSONResponse({"choices": []}), "no chat completion"),
        (JSONResponse({"choices": [{"message": {"content": None}}]}), "no text"),
    ],
)
async def test_no_verdict_is_ever_guessed(live: Callable[[Any], LiveApp], answer: Any, why: str):
    judge = judge_at(live(FakeJudge(answer)).url)
    with pytest.raises(JudgeFailed, match=why):
        await judge.decide(TALK, ASKED)
    await judge.close()


async def test_a_judge_that_is_down_has_failed_within_its_deadline():
    judge = judge_at(f"http://127.0.0.1:{free_port()}", judge_timeout_s=0.3)
    with pytest.raises(JudgeFailed, match=r"unreachable|within 0\.3 s"):
        await judge.decide(TALK, ASKED)
    await judge.close()


def test_without_a_model_there_is_no_judge():
    assert open_judge(EnvConfig()) is None


@pytest.mark.parametrize("wrapped", ["```json\n{}\n```", "```\n{}```", "<think>hm</think>{}", "  {}\n"])
def test_fences_and_reasoning_around_the_answer_are_allowed(wrapped: str):
    assert [check.passed for check in read_verdicts(wrapped.replace("{}", verdicts(False)), ["a"])] == [False]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["results", "metExpectation", "x"]), inner, max_size=3),
    max_leaves=10,
)


@given(ANYTHING.map(json.dumps) | st.text(max_size=20), st.lists(st.text(max_size=3), min_size=1, max_size=3))
def test_an_answer_decides_every_assertion_or_is_none(answer: str, assertions: list[str]):
    try:
        checks = read_verdicts(answer, assertions)
    except JudgeFailed:
        return
    assert len(checks) == len(assertions)


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="litellm is not installed")
@pytest.mark.filterwarnings("ignore")
async def test_a_litellm_name_is_asked_through_litellm(live: Callable[[Any], LiveApp]):
    fake = FakeJudge(verdicts(True, False))
    arguments = {"api_base": f"{live(fake).url}/v1", "api_key": "none"}
    judge = open_judge(EnvConfig(judge_llm="openai/grader", judge_llm_args=arguments))
    assert judge is not None
    assert [check.passed for check in await judge.decide(TALK, ASKED)] == [True, False]
    assert fake.bodies[0]["model"] == "grader"


async def test_a_litellm_judge_without_litellm_has_failed():
    if importlib.util.find_spec("litellm") is not None:
        pytest.skip("litellm is installed")
    judge = open_judge(EnvConfig(judge_llm="some/model"))
    assert judge is not None
    with pytest.raises(JudgeFailed, match="litellm"):
        await judge.decide(TALK, ASKED)
