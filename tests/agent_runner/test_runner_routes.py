"""The agent runner's own HTTP surface, served by uvicorn, with store, proxy and user simulator behind it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from runner_fakes import FakeProxy, FakeStore, LiveApp, config_for, rollout, says, tool_call

from services.agent_runner.app import create_app
from services.agent_runner.demonstrator import Demonstrator
from services.agent_runner.domains import TaskSpec

Live = Callable[[object], LiveApp]


@dataclass(frozen=True)
class Stack:
    http: httpx.Client
    store: FakeStore
    proxy: FakeProxy


@pytest.fixture
def stack(live: Live, store: FakeStore, proxy: FakeProxy, user_simulator: str, small: list[TaskSpec]) -> Iterator[Stack]:
    config = config_for(store=live(store).url, proxy=live(proxy).url, users=user_simulator)
    runner = LiveApp(create_app(config)).start()
    with httpx.Client(base_url=runner.url, timeout=20) as http:
        give_up_at = time.monotonic() + 20
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        yield Stack(http, store, proxy)
    runner.stop()


def playing(task: TaskSpec, *, solo: bool = True) -> Callable[[str, object], Any]:
    demonstrator = Demonstrator(task, "complete", 0, solo=solo)
    return lambda _sid, _body: demonstrator.next_message(None)


def test_an_episode_can_be_run_and_waited_for(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[1])
    body = {"domain": "telecom", "split": "small", "task_id": small[1].task_id, "solo_mode": True}
    answer = stack.http.post("/v1/episodes", params={"wait": "true"}, json=body)
    assert answer.status_code == 200
    trajectory = answer.json()
    assert (trajectory["reward"], trajectory["status"], trajectory["termination_reason"]) == (1.0, "scored", "agent_stop")
    assert trajectory["reward_info"]["breakdown"] == {"ENV_ASSERTION": 1.0}
    assert trajectory["policy_versions"] == [3]
    assert trajectory["timings"]["total_s"] > 0
    assert trajectory["messages"][0]["role"] == "assistant"
    episode_id = trajectory["episode_id"]
    assert stack.store.trajectories[episode_id] == trajectory
    assert stack.store.lease_headers[episode_id] is None
    assert stack.http.get(f"/v1/episodes/{episode_id}").json() == {"state": "finished", "trajectory": trajectory}


def test_without_wait_the_answer_is_an_id_to_ask_for(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0], solo=False)
    stack.proxy.delay_s = 0.02
    answer = stack.http.post("/v1/episodes", json={"task_id": small[0].task_id, "solo_mode": False})
    assert answer.status_code == 202
    url = f"/v1/episodes/{answer.json()['episode_id']}"
    assert stack.http.get(url).json()["state"] == "running"
    give_up_at = time.monotonic() + 15
    while (view := stack.http.get(url).json())["state"] == "running":
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert view["trajectory"]["reward"] == 1.0
    assert view["trajectory"]["task"]["solo_mode"] is False


def test_a_demonstration_can_be_asked_for(stack: Stack, small: list[TaskSpec]):
    body = {"task_id": small[0].task_id, "demonstration": {"quality": "gives_up"}, "seed": 3}
    trajectory = stack.http.post("/v1/episodes", params={"wait": "true"}, json=body).json()
    assert (trajectory["kind"], trajectory["reward"]) == ("demo", 0.0)
    assert len(stack.proxy.demonstrations) == 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"task_id": "[mobile_data_issue]data_mode_of[PERSONA:None]"}, 404, "data_mode_off[PERSONA:None]"),
        ({"task_id": "x"}, 404, "/v1/tasks?domain=telecom&split=small"),
        ({"domain": "retail"}, 400, "domain: no back end for 'retail'"),
        ({"split": "dev"}, 400, "split: telecom has no split 'dev'"),
        ({"colour": "red"}, 422, "body.colour"),
        ({"max_steps": 0}, 422, "body.max_steps"),
    ],
)
def test_wrong_requests_name_the_field_and_the_remedy(stack: Stack, small: list[TaskSpec], change: dict[str, Any], status: int, words: str):
    answer = stack.http.post("/v1/episodes", json={"task_id": small[0].task_id} | change)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_what_there_is_to_run_is_listed(stack: Stack, small: list[TaskSpec]):
    domains = stack.http.get("/v1/domains").json()["items"]
    assert [(view["domain"], view["splits"]["full"]) for view in domains] == [("telecom", 2285)]
    listing = stack.http.get("/v1/tasks", params={"domain": "telecom", "split": "small"}).json()
    assert [task["task_id"] for task in listing["tasks"]] == [task.task_id for task in small]
    assert listing["tasks"][0] == {
        "task_id": small[0].task_id,
        "digest": small[0].digest,
        "scenario": small[0].scenario,
        "reward_basis": ["ENV_ASSERTION"],
        "solo": True,
    }
    assert stack.http.get("/v1/tasks", params={"split": "x"}).status_code == 400


def test_an_unknown_episode_is_not_found(stack: Stack):
    answer = stack.http.get("/v1/episodes/nope")
    assert answer.status_code == 404
    assert "no episode 'nope'" in answer.json()["detail"]


def test_the_app_works_off_the_queue_by_itself(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = lambda _sid, _body: says(tool_call("done"))
    stack.store.queue.append(rollout(small[0], episode_id="queued"))
    give_up_at = time.monotonic() + 10
    while "queued" not in stack.store.trajectories:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert stack.store.trajectories["queued"]["reward"] == 0.0
    assert stack.store.lease_headers["queued"] == "lease-queued-1"


def test_more_episodes_than_the_capacity_are_refused(stack: Stack, small: list[TaskSpec]):
    stack.proxy.delay_s = 5
    answers = [stack.http.post("/v1/episodes", json={"task_id": small[0].task_id}) for _ in range(65)]
    assert {answer.status_code for answer in answers[:64]} == {202}
    assert answers[64].status_code == 429
    assert answers[64].headers["retry-after"] == "5"
