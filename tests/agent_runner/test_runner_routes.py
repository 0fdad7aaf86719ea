"""The agent runner's own HTTP surface, served by uvicorn, with store, proxy and user simulator behind it."""

from typing import Any
from urllib.parse import quote

import pytest
from runner_fakes import rollout, says, tool_call
from runner_stack import Stack, playing, wait_until

from services.agent_runner.domains import DOMAINS, TaskSpec


def test_an_episode_can_be_run_and_waited_for(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[1])
    trajectory = stack.play(domain="telecom", split="small", task_id=small[1].task_id, solo_mode=True)
    assert (trajectory["reward"], trajectory["status"], trajectory["termination_reason"]) == (1.0, "scored", "agent_stop")
    assert trajectory["reward_info"]["breakdown"] == {"ENV_ASSERTION": 1.0}
    assert trajectory["policy_versions"] == [3]
    assert trajectory["timings"]["total_s"] > 0
    assert trajectory["messages"][0]["role"] == "assistant"
    episode_id = trajectory["episode_id"]
    assert stack.store.trajectories[episode_id] == trajectory
    assert stack.store.lease_headers[episode_id] is None
    view = stack.view(episode_id)
    assert (view["state"], view["turn"], view["messages"], view["trajectory"]) == ("finished", trajectory["n_turns"], [], trajectory)


def test_without_wait_the_answer_is_an_id_to_ask_for(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0], solo=False)
    stack.proxy.delay_s = 0.05
    episode_id = stack.start(task_id=small[0].task_id, solo_mode=False)
    assert stack.view(episode_id)["state"] in ("queued", "running")
    wait_until(lambda: stack.view(episode_id)["turn"] >= 2)
    running = stack.view(episode_id)
    assert running["state"] == "running"
    assert running["messages"][0]["content"] == "Hi! How can I help you today?"
    assert running["trajectory"] is None
    view = stack.finished(episode_id)
    assert view["trajectory"]["reward"] == 1.0
    assert view["trajectory"]["task"]["solo_mode"] is False
    assert view["trajectory"]["messages"][: len(running["messages"])] == running["messages"]


def test_a_demonstration_can_be_asked_for(stack: Stack, small: list[TaskSpec]):
    trajectory = stack.play(task_id=small[0].task_id, demonstration={"quality": "gives_up"}, seed=3)
    assert (trajectory["kind"], trajectory["reward"]) == ("demo", 0.0)
    assert len(stack.proxy.demonstrations) == 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"task_id": "[mobile_data_issue]data_mode_of[PERSONA:None]"}, 404, "data_mode_off[PERSONA:None]"),
        ({"task_id": "x"}, 404, "has no task 'x'"),
        ({"domain": "hotels"}, 400, "domain: no back end for 'hotels'"),
        ({"split": "dev"}, 400, "split: telecom has no split 'dev'"),
        ({"split": "/etc/tasks.json"}, 400, "not a task file that train_dataset"),
        ({"colour": "red"}, 422, "body.colour"),
        ({"max_steps": 0}, 422, "body.max_steps"),
    ],
)
def test_wrong_requests_name_the_field_and_the_remedy(stack: Stack, small: list[TaskSpec], change: dict[str, Any], status: int, words: str):
    answer = stack.http.post("/v1/episodes", json={"task_id": small[0].task_id} | change)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_every_domain_is_listed_with_its_splits(stack: Stack):
    domains = {view["domain"]: view for view in stack.http.get("/v1/domains").json()["items"]}
    assert list(domains) == list(DOMAINS)
    assert domains["telecom"]["splits"]["full"] == 2285
    assert domains["airline"]["splits"] == {"base": 50, "train": 30, "test": 20}
    assert domains["mock"]["source"].startswith("inspect-evals 0.26")
    assert {view["problem"] for view in domains.values()} == {""}


def test_the_tasks_of_a_split_are_listed_with_their_floor(stack: Stack, small: list[TaskSpec]):
    listing = stack.http.get("/v1/tasks", params={"domain": "telecom", "split": "small"}).json()
    assert [task["task_id"] for task in listing["tasks"]] == [task.task_id for task in small]
    assert listing["tasks"][0] == {
        "task_id": small[0].task_id,
        "digest": small[0].digest,
        "scenario": small[0].scenario,
        "reward_basis": ["ENV_ASSERTION"],
        "solo": True,
        "n_actions": len(small[0].actions),
    }
    assert (listing["n_tasks"], listing["floor"], listing["next"]) == (20, 0.0, None)
    assert stack.http.get("/v1/tasks", params={"split": "x"}).status_code == 400
    airline = stack.http.get("/v1/tasks", params={"domain": "airline", "solo": False}).json()
    assert airline["split"] == "base"
    assert airline["floor"] > 0.3


def test_a_list_of_tasks_can_be_paged_through(stack: Stack, small: list[TaskSpec]):
    found: list[str] = []
    after: int | None = 0
    while after is not None:
        page = stack.http.get("/v1/tasks", params={"split": "small", "limit": 8, "after": after}).json()
        found += [task["task_id"] for task in page["tasks"]]
        after = page["next"]
    assert found == [task.task_id for task in small]


def test_one_task_is_shown_as_it_stands_in_the_data(stack: Stack, small: list[TaskSpec]):
    detail = stack.http.get(f"/v1/tasks/{quote(small[0].task_id)}", params={"domain": "telecom", "split": "small"}).json()
    assert detail["raw"] == small[0].raw
    assert (detail["task"]["digest"], detail["floor"]) == (small[0].digest, 0.0)
    missing = stack.http.get("/v1/tasks/nope", params={"domain": "mock"})
    assert (missing.status_code, missing.json()["close"]) == (404, [])


def test_an_unknown_episode_is_not_found(stack: Stack):
    for path in ("nope", "nope/events"):
        answer = stack.http.get(f"/v1/episodes/{path}")
        assert answer.status_code == 404
        assert "no episode 'nope'" in answer.json()["detail"]


def test_the_app_works_off_the_queue_by_itself_and_counts(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = lambda _sid, _body: says(tool_call("done"))
    stack.store.queue.append(rollout(small[0], episode_id="queued"))
    wait_until(lambda: "queued" in stack.store.trajectories)
    assert stack.store.trajectories["queued"]["reward"] == 0.0
    assert stack.store.lease_headers["queued"] == "lease-queued-1"
    assert stack.metric('episodes_total{domain="telecom",owner="",status="scored"}') == 1
    wait_until(lambda: stack.metric('rewarded_episodes_total{domain="telecom"}') == 1)
    assert stack.metric('reward_sum{domain="telecom"}') == stack.metric('floor_sum{domain="telecom"}') == 0.0
    assert stack.metric('event_loop_lag_seconds{quantile="0.99"}') > 0


def test_more_episodes_than_the_capacity_are_refused(stack: Stack, small: list[TaskSpec]):
    stack.proxy.delay_s = 5
    answers = [stack.http.post("/v1/episodes", json={"task_id": small[0].task_id}) for _ in range(65)]
    assert {answer.status_code for answer in answers[:64]} == {202}
    assert answers[64].status_code == 429
    assert answers[64].headers["retry-after"] == "5"
