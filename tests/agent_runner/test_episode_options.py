"""Options of an episode and what is reported of it: thinking tool, histories, credit, events, going on from a recording."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from episode_parts import owner, player, saying, scripted
from fastapi.responses import JSONResponse
from runner_fakes import FakeJudge, FakeProxy, FakeUsers, LiveApp, rollout, says, tool_call, verdicts

from services.agent_runner.conversation.thinking import NOTED
from services.agent_runner.domains import DomainBackend, TaskSpec, ToolResult
from services.agent_runner.records.rebuild import Difference, recorded_steps, reexecute
from services.common.wire.rollouts import Owner, Status, Trajectory

Live = Callable[[object], LiveApp]
LOOK = says(tool_call("check_vpn_status"))
DONE = says(tool_call("done"))


def thinking(text: str) -> Any:
    return says(tool_call("think", json.dumps({"thoughts": text})))


@pytest.mark.parametrize("solo", [True, False])
async def test_the_thinking_tool_is_offered_and_answered_and_changes_nothing(
    live: Live, proxy: FakeProxy, small: list[TaskSpec], telecom: DomainBackend, solo: bool
):
    proxy.policy = saying(thinking("hm"), says(tool_call("think", "{}")), DONE if solo else says(content="Bye"))
    users = FakeUsers(lambda messages: {"content": "###STOP###" if len(messages) > 2 else "hi"})
    async with player(live(proxy).url, live(users).url, econfig={"add_thinking_tool": True}) as episodes:
        finished = await episodes.play(rollout(small[0], solo=solo))
    names = [tool["function"]["name"] for tool in proxy.calls["e1.a1"][0]["tools"]]
    assert names.index("think") == 13
    assert len(names) == (45 if solo else 14)
    results = [message["content"] for message in finished.messages if message["role"] == "tool"]
    assert results == [NOTED, "Error: think takes one argument, thoughts"]
    assert finished.n_tool_errors == 1
    assert finished.end_state == list(telecom.new_session(small[0], solo=solo).fingerprint())
    assert not any("hm" in json.dumps(body) for body in users.bodies)


async def test_without_the_option_there_is_no_thinking_tool(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(thinking("hm"), DONE)
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert "think" not in [tool["function"]["name"] for tool in proxy.calls["e1.a1"][0]["tools"]]
    assert (finished.messages[1]["content"], finished.messages[1]["error"]) == ("Error: Tool 'think' not found.", True)


async def test_a_conversation_with_a_history_begins_where_it_ends(live: Live, proxy: FakeProxy, mock: DomainBackend):
    task = next(task for task in mock.tasks(mock.splits()[0]) if task.task_id == "update_task_with_message_history")
    request = rollout(task, solo=False)
    request = request.model_copy(update={"task": request.task.model_copy(update={"split": mock.splits()[0]})})
    update = json.dumps({"task_id": "task_2", "status": "completed"})
    proxy.policy = saying(says(tool_call("update_task_status", update)), says(content="Done."))
    users = FakeUsers(lambda messages: {"content": "###STOP###" if len(messages) > 3 else "please mark it as done"})
    async with player(live(proxy).url, live(users).url) as episodes:
        finished = await episodes.play(request)
    assert (finished.status, finished.reward, finished.termination_reason) == (Status.SCORED, 1.0, "user_stop")
    assert [message["role"] for message in users.bodies[0]["messages"]] == ["user", "assistant"]
    seen = [message["role"] for message in proxy.calls["e1.a1"][0]["messages"]]
    assert seen == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert len(finished.messages) == 4 + 5
    assert (finished.n_turns, finished.user_faults) == (2, {"ok": 2})


@pytest.mark.parametrize(
    ("econfig", "agent_discount", "expected"),
    [
        ({}, 1.0, [1.0, 1.0, 1.0]),
        ({"turn_discount": 0.5}, 0.9, [0.25, 0.5, 1.0]),
        ({}, 0.5, [0.25, 0.5, 1.0]),
    ],
)
async def test_each_call_earns_its_discounted_part(
    live: Live, proxy: FakeProxy, telecom: DomainBackend, econfig: Any, agent_discount: float, expected: list[float]
):
    task = next(task for task in telecom.tasks("full") if len(task.actions) == 1)
    fix = task.actions[0]
    proxy.policy = saying(LOOK, says(tool_call(fix.name, json.dumps(fix.arguments))), DONE)
    async with player(live(proxy).url, econfig=econfig, rollout={"agent": {"turn_discount": agent_discount}}) as episodes:
        finished = await episodes.play(rollout(task))
    assert finished.reward == 1.0
    assert finished.turn_rewards == expected


async def test_the_format_penalty_falls_on_the_call_that_could_not_be_parsed(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(LOOK, says(tool_call("toggle_data", '{"a": ')))
    async with player(live(proxy).url, econfig={"invalid_format_penalty": 0.25, "turn_discount": 0.5}) as episodes:
        finished = await episodes.play(rollout(small[0]))
    assert (finished.status, finished.reward, finished.format_errors) == (Status.SCORED, 0.0, [1])
    assert finished.turn_rewards == [-0.125, -0.25]


async def test_a_call_that_the_proxy_could_not_parse_goes_on_as_text_and_is_penalised(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    broken = says(content='<tool_call>{"name": "toggle_da')
    answer = JSONResponse({"choices": [{"index": 0, "message": broken, "finish_reason": "length"}]}, headers={"X-Malformed-Tool-Call": "1"})
    proxy.policy = saying(says(content="Hello"), answer, says(content="Bye"))
    users = FakeUsers(lambda messages: {"content": "###STOP###" if messages[-1]["content"] == "Bye" else "go on"})
    async with player(live(proxy).url, live(users).url, econfig={"invalid_format_penalty": 0.25}) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert (finished.termination_reason, finished.format_errors) == ("user_stop", [1])
    assert finished.turn_rewards == [-0.25, -0.25, 0.0]


async def test_user_turns_are_counted_by_their_label(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    said = [("a", "role_flip"), ("b", "ok"), ("c", "role_flip"), ("###STOP###", "ok")]
    replies = iter([{"content": content, "fault": fault} for content, fault in said])
    users = FakeUsers(lambda _messages: next(replies))
    proxy.policy = saying(says(content="And then?"))
    async with player(live(proxy).url, live(users).url) as episodes:
        finished = await episodes.play(rollout(small[0], solo=False))
    assert finished.user_faults == {"role_flip": 2, "ok": 2}


async def test_whoever_watches_sees_everything_in_order(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    events: list[tuple[str, Any]] = []
    proxy.policy = saying(LOOK, DONE)
    async with player(live(proxy).url) as episodes:
        finished = await episodes.play(rollout(small[0]), watch=lambda kind, data: events.append((kind, data)))
    assert [kind for kind, _ in events] == ["started", "message", "turn", "message", "turn", "message", "turn", "scored"]
    assert [data for kind, data in events if kind == "message"] == finished.messages
    assert [data["role"] for kind, data in events if kind == "turn"] == ["agent", "env", "agent"]
    assert events[2][1]["policy_version"] == 3
    assert events[-1][1]["reward"] == 0.0
    json.dumps(events)


@pytest.mark.parametrize("solo", [True, False])
async def test_an_episode_goes_on_live_from_any_of_its_turns(
    live: Live, proxy: FakeProxy, small: list[TaskSpec], user_simulator: str, solo: bool
):
    policy = scripted({"e1.a1": small[0]}, solo=solo)
    proxy.policy = policy
    url = live(proxy).url
    async with player(url, user_simulator) as episodes:
        whole = await episodes.play(rollout(small[0], solo=solo))
        assert whole.reward == 1.0
        turns = [index for index, message in enumerate(whole.messages) if message["role"] == "assistant"]
        for number, upto in enumerate(turns[1 - solo :]):
            steps = [message for message in whole.messages[upto:] if message["role"] == "assistant"]
            proxy.policy = saying(*(as_said(message) for message in steps))
            episode_id = f"again{number}"
            again = await episodes.play(rollout(small[0], episode_id=episode_id, solo=solo), resume=whole.messages[:upto])
            assert [plain(message) for message in again.messages] == [plain(message) for message in whole.messages]
            assert (again.reward, again.end_state, again.termination_reason) == (whole.reward, whole.end_state, whole.termination_reason)
            assert again.n_turns == len(steps) == len(proxy.calls[f"{episode_id}.a1"]) == len(again.turn_rewards)


def as_said(message: Any) -> Any:
    """What the policy must have said: a solo stop was a call of ``done``."""
    return DONE if message["content"] == "###STOP###" else {key: message.get(key) for key in ("role", "content", "tool_calls")}


def plain(message: Any) -> Any:
    """What must be the same; the simulated user puts things differently from turn to turn."""
    text = message["content"] if message["role"] != "user" else None
    return message["role"], text, [call["function"] for call in message.get("tool_calls") or ()]


async def test_a_recording_that_does_not_fit_is_refused(live: Live, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = saying(LOOK, DONE)
    async with player(live(proxy).url) as episodes:
        whole = await episodes.play(rollout(small[0]))
        changed = [whole.messages[0], whole.messages[1] | {"content": "another result"}]
        for resume, why in (
            (changed, "1 results differ; first messages[1]: check_vpn_status gave 'another result' then"),
            (whole.messages, "leave out the last turn"),
            ([whole.messages[1]], "answers no call before it"),
        ):
            finished = await episodes.play(rollout(small[0], episode_id="again"), resume=resume)
            assert owner(finished) is Owner.ENV
            assert finished.failure is not None
            assert why in finished.failure.why
        other_way = await episodes.play(rollout(small[0], episode_id="normal", solo=False), resume=whole.messages[:2])
    assert other_way.failure is not None
    assert "do not begin as this task's conversations do" in other_way.failure.why


def test_recorded_calls_are_made_again_and_compared(telecom: DomainBackend, small: list[TaskSpec]):
    first = telecom.new_session(small[0], solo=True)
    names = ["check_vpn_status", "no_such_tool", "toggle_data", "check_network_status"]
    messages: list[Any] = []
    for name in names:
        result = first.call(name, {})
        messages.append(says(tool_call(name, call_id=name)))
        messages.append({"role": "tool", "content": result.content, "tool_call_id": name} | ({"error": True} if result.error else {}))
    messages.append(says(tool_call("think", '{"thoughts": ""}', call_id="t")))
    messages.append({"role": "tool", "content": NOTED, "tool_call_id": "t"})
    again = telecom.new_session(small[0], solo=True)
    assert reexecute(again, [*messages, says(tool_call("toggle_data"))]) == []
    assert again.fingerprint() == first.fingerprint()
    recorded = ToolResult(str(messages[5]["content"]), error=True)
    messages[5]["error"] = True
    (difference,) = reexecute(telecom.new_session(small[0], solo=True), messages)
    assert difference == Difference(5, "toggle_data", recorded, ToolResult(recorded.content))
    assert [step.name for step in recorded_steps(messages, skip=4)] == ["toggle_data", "check_network_status", "think"]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "tool", "content": "x", "tool_call_id": "a"}], "answers no call"),
        ([says(tool_call("f", call_id="b")), {"role": "tool", "content": "x", "tool_call_id": "a"}], "is not the call before it"),
        ([says(tool_call("f", "{", call_id="a")), {"role": "tool", "content": "x", "tool_call_id": "a"}], "no readable arguments"),
    ],
)
def test_messages_that_are_no_recording_are_refused(messages: Any, why: str):
    with pytest.raises(ValueError, match=why):
        recorded_steps(messages)


async def test_a_judged_episode_has_the_judges_checks(live: Live, proxy: FakeProxy, mock: DomainBackend):
    task = next(task for task in mock.tasks(mock.splits()[0]) if task.task_id == "create_task_1")
    criteria = task.raw["evaluation_criteria"] | {"nl_assertions": ["was kind"], "reward_basis": ["DB", "NL_ASSERTION"]}
    judged = TaskSpec("mock", task.raw | {"evaluation_criteria": criteria})
    finished: list[Trajectory] = []
    for met in (True, False):
        judge = FakeJudge(verdicts(met))
        finished.append(await play_judged(live, proxy, judged, live(judge).url))
        assert "assistant: Hi!" in judge.bodies[0]["messages"][1]["content"]
    assert [one.reward for one in finished] == [1.0, 0.0]
    assert [one.reward_info.breakdown["NL_ASSERTION"] for one in finished if one.reward_info] == [1.0, 0.0]


async def play_judged(live: Live, proxy: FakeProxy, task: TaskSpec, judge_url: str) -> Trajectory:
    arguments = json.dumps(task.actions[0].arguments)
    proxy.policy = saying(says(tool_call(task.actions[0].name, arguments)), says(content="It is there."))
    proxy.answers.clear()
    users = FakeUsers(lambda messages: {"content": "###STOP###" if len(messages) > 2 else "create it"})
    econfig = {"judge_llm": "grader", "judge_llm_base_url": f"{judge_url}/v1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.agent_runner.episodes.world.Worlds.find", lambda *_: found(task))
        async with player(live(proxy).url, live(users).url, econfig=econfig) as episodes:
            return await episodes.play(rollout(task, solo=False))


async def found(task: TaskSpec) -> tuple[DomainBackend, TaskSpec]:
    from services.agent_runner.domains import open_backend

    return open_backend("mock", "inspect_evals"), task
