"""Whatever others break has the right owner and no reward: the table of docs/reward.md, row by row."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from episode_parts import OddBackend, owner, player, saying, scripted
from fastapi import Response
from runner_fakes import FakeJudge, FakeProxy, FakeUsers, LiveApp, free_port, openai_error, rollout, says, tool_call, until

from services.agent_runner.domains import DomainBackend, TaskSpec
from services.common.wire.rollouts import Owner, Status

Live = Callable[[object], LiveApp]
LOOK = says(tool_call("check_vpn_status"))


@pytest.mark.parametrize("answer", ["500", "409", "garbage", "no message"])
async def test_what_the_proxy_breaks_is_infrastructure(live: Live, proxy: FakeProxy, small: list[TaskSpec], answer: str):
    answers: dict[str, Any] = {
        "500": openai_error(500, "internal_error"),
        "409": openai_error(409, "conflict"),
        "garbage": Response("<html>"),
        "no message": "not an object",
    }
    proxy.policy = lambda _sid, body: answers[answer] if len(body["messages"]) > 2 else LOOK
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.INFRA
    assert "e1.a1" in proxy.sealed
    assert len(finished.messages) == 2


async def test_a_proxy_that_is_down_is_infrastructure(small: list[TaskSpec]):
    async with player(f"http://127.0.0.1:{free_port()}", retry_s=0.1) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.INFRA
    assert finished.session_id is None


async def test_a_session_that_cannot_be_sealed_is_infrastructure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(says(tool_call("done")))
    proxy.seal_status = 500
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.INFRA
    assert finished.reward_info is None


async def test_a_user_simulator_that_is_down_is_the_users_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    async with player(live(proxy).url, f"http://127.0.0.1:{free_port()}", episode_timeout_s=0.6) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert owner(finished) is Owner.USER


@pytest.mark.parametrize("answer", ["500", "garbage"])
async def test_a_user_simulator_that_is_broken_is_the_users_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec], answer: str):
    users = FakeUsers(lambda _messages: openai_error(500, "internal_error") if answer == "500" else {"surprise": 1})
    async with player(live(proxy).url, live(users).url) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert owner(finished) is Owner.USER


@pytest.mark.parametrize("fault", ["empty", "backend_error"])
async def test_a_user_without_a_turn_is_the_users_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec], fault: str):
    users = FakeUsers(lambda _messages: {"fault": fault, "detail": "no words"})
    async with player(live(proxy).url, live(users).url) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert owner(finished) is Owner.USER
    assert finished.failure is not None
    assert fault in finished.failure.why
    assert finished.user_faults == {fault: 1}


async def test_a_user_that_breaks_an_enforced_protocol_is_the_users_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    call = {"id": "u", "name": "check_vpn_status", "arguments": {}}
    users = FakeUsers(lambda _messages: {"content": "one moment", "tool_calls": [call]})
    async with player(live(proxy).url, live(users).url, econfig={"enforce_communication_protocol": True}) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert owner(finished) is Owner.USER
    assert finished.failure is not None
    assert "text and tool calls" in finished.failure.why


async def test_a_silent_user_that_eats_the_time_is_the_users_failure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    users = FakeUsers(lambda _messages: {"content": "hm"})
    users.delay_s = 30
    async with player(live(proxy).url, live(users).url, episode_timeout_s=0.5) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert owner(finished) is Owner.USER
    assert finished.failure is not None
    assert "waited for the user" in finished.failure.why


async def test_a_slow_policy_is_truncated_but_a_silent_one_is_infrastructure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(LOOK)
    proxy.delay_s = 0.1
    url = live(proxy).url
    # Half of the limit is far above what a turn takes on a machine that is busy with other things.
    async with player(url, episode_timeout_s=4) as episodes:
        slow = await episodes.play(rollout(small[0], episode_id="slow", max_steps=1000))
    proxy.delay_s = 30
    async with player(url, episode_timeout_s=0.5) as episodes:
        silent = await episodes.play(rollout(small[0], episode_id="silent"))
    assert (slow.status, slow.reward, slow.termination_reason) == (Status.TRUNCATED, 0.0, "timeout")
    assert owner(silent) is Owner.INFRA


async def test_a_full_context_is_truncated_and_says_so(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(LOOK, openai_error(400, "context_length_exceeded"))
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert (finished.status, finished.termination_reason, finished.n_turns) == (Status.TRUNCATED, "context_window_exceeded", 1)
    assert finished.turn_rewards == [0.0]


async def test_a_context_that_cannot_hold_the_prompt_is_infrastructure(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(openai_error(400, "context_length_exceeded"))
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.INFRA
    assert finished.failure is not None
    assert "prompt" in finished.failure.why


@pytest.mark.parametrize("odd", ["call", "new_session", "fingerprint"])
@pytest.mark.parametrize("inline", [True, False])
async def test_environment_code_that_breaks_is_the_environments_failure(
    live: Live, proxy: FakeProxy, telecom: DomainBackend, small: list[TaskSpec], monkeypatch: pytest.MonkeyPatch, odd: str, inline: bool
):
    backend = OddBackend(telecom, odd=odd, inline=inline)
    monkeypatch.setattr("services.agent_runner.episodes.world.open_backend", lambda *_, **__: backend)
    monkeypatch.setattr("services.agent_runner.episodes.world.warm_up", lambda *_, **__: None)
    proxy.policy = saying(LOOK, says(tool_call("done")))
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.ENV


async def test_a_tool_that_hangs_in_its_thread_is_the_environments_failure_and_stalls_nobody(
    live: Live, proxy: FakeProxy, telecom: DomainBackend, small: list[TaskSpec], monkeypatch: pytest.MonkeyPatch
):
    backend = OddBackend(telecom, inline=False, delay_s=0.5)
    monkeypatch.setattr("services.agent_runner.episodes.world.open_backend", lambda *_, **__: backend)
    proxy.policy = saying(LOOK)
    async with player(live(proxy).url, tool_timeout_s=0.15) as episodes:
        playing = asyncio.create_task(episodes.play(rollout(small[0])))
        lag = 0.0
        while not playing.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            lag = max(lag, time.monotonic() - before)
        finished = await playing
    assert owner(finished) is Owner.ENV
    assert finished.failure is not None
    assert finished.failure.why == "timeout: check_vpn_status took over 0.15 s"
    assert lag < 0.15


def judged_task(task: TaskSpec) -> TaskSpec:
    criteria = task.raw["evaluation_criteria"] | {"nl_assertions": ["was kind"], "reward_basis": ["ACTION", "NL_ASSERTION"], "actions": []}
    return TaskSpec(task.domain, task.raw | {"evaluation_criteria": criteria})


class JudgedBackend(OddBackend):
    """telecom, with statements to judge."""

    def task(self, split: str, task_id: str) -> TaskSpec:
        return judged_task(self._inner.task(split, task_id))


@pytest.fixture
def judged_telecom(telecom: DomainBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.agent_runner.episodes.world.open_backend", lambda *_, **__: JudgedBackend(telecom))


def grader(url: str) -> dict[str, Any]:
    return {"judge_llm": "grader", "judge_llm_base_url": f"{url}/v1", "judge_timeout_s": 1}


@pytest.mark.usefixtures("judged_telecom")
async def test_a_judge_that_fails_is_the_judges_failure_and_the_rest_of_the_reward_is_kept(
    live: Live, proxy: FakeProxy, small: list[TaskSpec]
):
    proxy.policy = saying(says(tool_call("done")))
    for url in (live(FakeJudge("no idea")).url, live(FakeJudge(openai_error(500, "x"))).url, f"http://127.0.0.1:{free_port()}"):
        async with player(live(proxy).url, econfig=grader(url)) as episodes:
            finished = await episodes.play(rollout(small[0]))
        assert owner(finished) is Owner.JUDGE
        assert finished.reward_info is not None
        assert (finished.reward_info.pending, finished.reward_info.breakdown) == (["NL_ASSERTION"], {"ACTION": 1.0})
        assert finished.end_state
        assert len(finished.messages) == 1


@pytest.mark.usefixtures("judged_telecom")
async def test_a_task_that_needs_a_judge_is_refused_at_once_without_one(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.JUDGE
    assert finished.failure is not None
    assert "set econfig.judge_llm" in finished.failure.why
    assert not proxy.call_ids


async def test_a_cancelled_episode_seals_its_session_and_stays_cancelled(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    events: list[tuple[str, Any]] = []
    proxy.policy = saying(LOOK)
    proxy.delay_s = 0.2
    async with player(live(proxy).url) as episodes:
        playing = asyncio.create_task(episodes.play(rollout(small[0]), watch=lambda kind, data: events.append((kind, data))))
        await until(lambda: len(proxy.call_ids) >= 1)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
    assert proxy.sealed == {"e1.a1"}
    assert events[-1] == ("failed", {"who": "infra", "why": "cancelled"})


async def test_a_task_whose_world_cannot_be_is_refused_before_the_proxy_hears_of_it(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    request = rollout(small[0])
    async with player(live(proxy).url) as episodes:
        nobody = await episodes.play(request.model_copy(update={"task": request.task.model_copy(update={"task_id": "nope"})}))
    assert owner(nobody) is Owner.ENV
    assert nobody.session_id is None


async def test_a_fault_in_between_leaves_the_messages_so_far(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    whole = scripted({"e1.a1": small[0]}, solo=True)
    proxy.policy = lambda sid, body: openai_error(500, "x") if len(body["messages"]) >= 5 else whole(sid, body)
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert owner(finished) is Owner.INFRA
    assert [message["role"] for message in finished.messages] == ["assistant", "tool"] * 2
    assert finished.n_turns == 2
