"""Cancelling by request: whatever an episode waits for, it ends as a final failure of nobody's making, stored and never trained on."""

import httpx
import pytest
from runner_fakes import rollout, says, tool_call
from runner_stack import Stack, playing, wait_until

from services.agent_runner.domains import TaskSpec
from services.common.wire.rollouts import Status, Trajectory

FINAL = {"who": "infra", "why": "cancelled by request", "final": True}


def cancel(stack: Stack, episode_id: str) -> httpx.Response:
    return stack.http.post(f"/v1/episodes/{episode_id}/cancel")


def test_a_requested_episode_is_cancelled_in_the_middle_of_a_call(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    episode_id = stack.start(task_id=small[0].task_id)
    stack.proxy.delay_s = 0.1
    wait_until(lambda: stack.view(episode_id)["turn"] >= 1)
    stack.proxy.delay_s = 30
    answer = cancel(stack, episode_id)
    assert (answer.status_code, answer.json()) == (202, {"episode_id": episode_id, "state": "cancelling"})
    trajectory = Trajectory.model_validate(stack.finished(episode_id)["trajectory"])
    assert (trajectory.status, trajectory.reward, trajectory.termination_reason) == (Status.FAILED, None, "failed_infra")
    assert trajectory.failure is not None
    assert trajectory.failure.model_dump(mode="json") == FINAL
    assert trajectory.stamp.digest == small[0].digest
    assert trajectory.n_turns >= 1
    assert trajectory.policy_versions == [3]
    assert len(trajectory.messages) >= 2
    assert trajectory.session_id in stack.proxy.sealed
    wait_until(lambda: episode_id in stack.store.trajectories)
    assert stack.metric('episodes_total{domain="telecom",owner="infra",status="failed"}') == 1


def test_a_leased_episode_is_cancelled_and_reported_with_its_lease(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = lambda _sid, _body: says(tool_call("check_vpn_status"))
    stack.proxy.delay_s = 0.02
    stack.store.queue.append(rollout(small[0], episode_id="leased", max_steps=10_000))
    wait_until(lambda: stack.http.get("/v1/episodes/leased").status_code == 200 and stack.view("leased")["turn"] >= 1)
    assert cancel(stack, "leased").status_code == 202
    assert cancel(stack, "leased").status_code in (202, 409)
    wait_until(lambda: "leased" in stack.store.trajectories)
    assert stack.store.trajectories["leased"]["failure"] == FINAL
    assert stack.store.lease_headers["leased"] == "lease-leased-1"
    # Its slot is free again.
    stack.store.queue.append(rollout(small[0], episode_id="next", max_steps=2))
    wait_until(lambda: "next" in stack.store.trajectories)


def test_an_episode_that_has_not_begun_is_cancelled_without_a_session(stack: Stack, small: list[TaskSpec]):
    turnstile = stack.app.state.live._turnstile
    turnstile._gap_s = 1.0
    episode_id = stack.start(task_id=small[0].task_id)
    assert stack.view(episode_id)["state"] == "queued"
    assert cancel(stack, episode_id).status_code == 202
    trajectory = stack.finished(episode_id)["trajectory"]
    assert (trajectory["failure"], trajectory["session_id"], trajectory["messages"]) == (FINAL, None, [])
    assert stack.proxy.opened == set()


def test_what_has_ended_or_is_unknown_cannot_be_cancelled(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    trajectory = stack.play(task_id=small[0].task_id)
    ended = cancel(stack, trajectory["episode_id"])
    assert (ended.status_code, ended.json()["code"]) == (409, "episode_ended")
    stack.store.trajectories["elsewhere"] = trajectory | {"episode_id": "elsewhere"}
    assert cancel(stack, "elsewhere").status_code == 409
    unknown = cancel(stack, "nope")
    assert (unknown.status_code, "ask the runner that plays it" in unknown.json()["detail"]) == (404, True)


@pytest.mark.parametrize("solo", [True, False])
def test_the_events_of_a_cancelled_episode_end_with_its_trajectory(stack: Stack, small: list[TaskSpec], solo: bool):
    stack.proxy.policy = playing(small[0], solo=solo)
    stack.proxy.delay_s = 30
    episode_id = stack.start(task_id=small[0].task_id, solo_mode=solo)
    wait_until(lambda: stack.proxy.opened)
    cancel(stack, episode_id)
    stack.finished(episode_id)
    kinds = [line for line in stack.http.get(f"/v1/episodes/{episode_id}/events").text.splitlines() if line.startswith("event: ")]
    assert "event: cancelling" in kinds
    assert kinds[-1] == "event: finished"
