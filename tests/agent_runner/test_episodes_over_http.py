"""Whole episodes over HTTP: a fake proxy, the real user simulator, the real domain; every failure has its owner."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from episode_parts import owner, player, scripted
from runner_fakes import FakeProxy, LiveApp, openai_error, rollout, says, tool_call, until

from services.agent_runner.domains import DomainBackend, TaskSpec
from services.common.wire.rollouts import Owner, Status

Live = Callable[[object], LiveApp]


async def test_small_solo_is_solved_twenty_times_out_of_twenty(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    requests = [rollout(task, episode_id=f"e{index}") for index, task in enumerate(small)]
    proxy.policy = scripted({f"e{index}.a1": task for index, task in enumerate(small)}, solo=True)
    async with player(live(proxy).url) as episodes:
        finished = await asyncio.gather(*(episodes.play(request) for request in requests))
    assert Counter((one.status, one.reward, one.termination_reason) for one in finished) == {(Status.SCORED, 1.0, "agent_stop"): 20}
    first = finished[0]
    assert first.policy_versions == [3]
    assert first.session_id == "e0.a1"
    assert proxy.sealed == {f"e{index}.a1" for index in range(20)}
    assert first.messages[-1]["content"] == "###STOP###"
    assert first.stamp.source.startswith("inspect-evals 0.26")
    assert first.stamp.digest == small[0].digest
    assert first.timings.agent_s > 0


async def test_small_with_a_user_is_solved_twenty_times_out_of_twenty(
    live: Live, proxy: FakeProxy, small: list[TaskSpec], user_simulator: str
):
    requests = [rollout(task, episode_id=f"e{index}", solo=False) for index, task in enumerate(small)]
    proxy.policy = scripted({f"e{index}.a1": task for index, task in enumerate(small)}, solo=False)
    async with player(live(proxy).url, user_simulator) as episodes:
        finished = await asyncio.gather(*(episodes.play(request) for request in requests))
    assert Counter((one.status, one.reward, one.termination_reason) for one in finished) == {(Status.SCORED, 1.0, "user_stop"): 20}
    messages = finished[0].messages
    assert [message["role"] for message in messages[:2]] == ["assistant", "user"]
    assert {message.get("requestor") for message in messages if message["role"] == "tool"} == {None, "user"}


async def test_the_policy_is_called_as_an_openai_client_would(live: Live, proxy: FakeProxy, small: list[TaskSpec], telecom: DomainBackend):
    proxy.policy = scripted({"e1.a1": small[0]}, solo=True)
    async with player(live(proxy).url) as episodes:
        await episodes.play(rollout(small[0], seed=11))
    bodies = proxy.calls["e1.a1"]
    assert proxy.call_ids == [f"e1.a1-{index}" for index in range(len(bodies))]
    assert bodies[0]["messages"][0]["role"] == "system"
    assert len(bodies[0]["messages"]) == 1
    assert bodies[0]["tools"] == telecom.tool_schemas(small[0], solo=True)
    assert (bodies[0]["model"], bodies[0]["max_tokens"], bodies[0]["temperature"]) == ("policy", 128, 1.0)
    assert len({body["seed"] for body in bodies}) == len(bodies)
    last = bodies[-1]["messages"]
    assert last[1]["tool_calls"][0]["id"] == last[2]["tool_call_id"]
    seeds = [body["seed"] for body in bodies]
    proxy.policy = scripted({"e1.a2": small[0]}, solo=True)
    async with player(live(proxy).url) as episodes:
        await episodes.play(rollout(small[0], seed=11).model_copy(update={"attempt": 2}))
    assert [body["seed"] for body in proxy.calls["e1.a2"]] == seeds


@pytest.mark.parametrize(("quality", "reward"), [("complete", 1.0), ("gives_up", 0.0), ("skips_step", 0.0)])
async def test_demonstrations_are_recorded_and_never_generated(
    live: Live, proxy: FakeProxy, small: list[TaskSpec], quality: str, reward: float
):
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[3], quality=quality, seed=2))
    assert (finished.reward, finished.demonstration.quality if finished.demonstration else None) == (reward, quality)
    recorded = proxy.demonstrations["e1.a1"]
    assert not proxy.calls
    assert [len(body["messages"]) for body in recorded] == [1 + 2 * index for index in range(len(recorded))]
    assert recorded[-1]["message"]["tool_calls"][0]["function"]["name"] == "done"
    assert len(recorded[0]["tools"]) == 44


POLICY_FAILURES: dict[str, tuple[Any, str]] = {
    "empty": (says(content=""), "empty message"),
    "text in solo mode": (says(content="hello"), "text instead of a tool call"),
    "broken arguments": (says(tool_call("toggle_data", '{"a": ')), "not valid JSON"),
    "arguments that are no object": (says(tool_call("toggle_data", "[]")), "not a JSON object"),
}


@pytest.mark.parametrize("name", POLICY_FAILURES)
async def test_what_the_policy_breaks_is_scored_zero_and_not_retried(live: Live, proxy: FakeProxy, small: list[TaskSpec], name: str):
    message, why = POLICY_FAILURES[name]
    proxy.policy = lambda _sid, _body: message
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert (finished.status, finished.reward, finished.termination_reason) == (Status.SCORED, 0.0, "agent_error")
    assert finished.reward_info is not None
    assert why in finished.reward_info.note
    assert finished.n_turns == 1
    assert len(proxy.call_ids) == 1


async def test_limits_truncate_with_reward_zero(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = lambda _sid, _body: says(tool_call("no_such_tool"))
    url = live(proxy).url
    async with player(url) as episodes:
        errors = await episodes.play(rollout(small[0], episode_id="errors"))
        steps = await episodes.play(rollout(small[0], episode_id="steps", max_steps=4))
        proxy.policy = lambda _sid, body: (
            openai_error(400, "context_length_exceeded") if len(body["messages"]) > 4 else says(tool_call("check_vpn_status"))
        )
        context = await episodes.play(rollout(small[0], episode_id="context"))
    assert [(one.status, one.reward) for one in (errors, steps, context)] == [(Status.TRUNCATED, 0.0)] * 3
    assert (errors.termination_reason, errors.n_tool_errors) == ("too_many_errors", 10)
    assert (steps.termination_reason, steps.n_turns) == ("max_steps", 3)
    assert (context.termination_reason, context.n_turns) == ("context_window_exceeded", 2)


async def test_a_proxy_that_restarts_in_between_costs_nothing(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    running = live(proxy)
    proxy.policy = scripted({"e1.a1": small[0]}, solo=True)
    proxy.delay_s = 0.05
    async with player(running.url, retry_s=20) as episodes:
        playing = asyncio.create_task(episodes.play(rollout(small[0])))
        await until(lambda: len(proxy.call_ids) >= 3)
        await asyncio.to_thread(running.stop)
        await asyncio.sleep(0.2)
        assert not playing.done()
        await asyncio.to_thread(running.start)
        finished = await playing
    assert finished.reward == 1.0
    assert sorted(proxy.answers) == [f"e1.a1-{index}" for index in range(finished.n_turns)]


async def test_names_that_do_not_exist_are_the_environments_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    request = rollout(small[0])
    async with player(live(proxy).url) as episodes:
        for change, why in (({"task_id": "nope"}, "has no task 'nope'"), ({"split": "x"}, "no split"), ({"domain": "x"}, "no back end")):
            finished = await episodes.play(request.model_copy(update={"task": request.task.model_copy(update=change)}))
            assert owner(finished) is Owner.ENV
            assert finished.failure is not None
            assert why in finished.failure.why


async def test_reasoning_and_tool_traffic_of_the_agent_never_reach_the_user(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    from fastapi import FastAPI, Request

    turns: list[str] = []
    app = FastAPI()

    @app.post("/v1/turns")
    async def turn(request: Request) -> Any:
        turns.append((await request.body()).decode())
        return {"content": "###STOP###" if len(turns) > 2 else "hello", "stop": None, "fault": "role_flip" if len(turns) == 2 else "ok"}

    said = iter(
        [
            says(tool_call("get_customer_by_id", json.dumps({"customer_id": "C1001"})), content="looking you up"),
            says(content="<think>the secret plan</think>How are you?") | {"reasoning_content": "another secret"},
            says(content="Bye."),
        ]
    )
    proxy.policy = lambda _sid, _body: next(said)
    users = LiveApp(app).start()
    try:
        async with player(live(proxy).url, users.url) as episodes:
            finished = await episodes.play(rollout(small[0], solo=False))
    finally:
        users.stop()
    assert finished.termination_reason == "user_stop"
    for hidden in ("secret", "looking you up", "C1001"):
        assert not any(hidden in turn for turn in turns)
    assert "How are you?" in turns[1]
    assert "the secret plan" in json.dumps(proxy.calls["e1.a1"][-1]["messages"])
    assert [message["fault"] for message in finished.messages if "fault" in message] == ["role_flip"]
