"""Trajectories in tau2's results format. That upstream's own tools read it is tested with upstream: tests/upstream."""

import json
from typing import Any

import pytest

from services.agent_runner.domains import TaskSpec
from services.agent_runner.records.results import ResultsInfo, export, message_json
from services.common.wire.rollouts import Check, Failure, Kind, Owner, RewardInfo, Sampling, Status, TaskRef, TaskStamp, Timings, Trajectory

ACTION = {"action_id": "a", "name": "update_task_status", "arguments": {"task_id": "task_1", "status": "completed"}}
ASSERTION = {"env_type": "assistant", "func_name": "assert_task_status", "arguments": {"task_id": "task_1", "expected_status": "completed"}}
CRITERIA = {
    "actions": [ACTION],
    "env_assertions": [ASSERTION],
    "communicate_info": ["done"],
    "nl_assertions": ["The agent is polite."],
    "reward_basis": ["DB", "COMMUNICATE"],
}
TASK = TaskSpec("mock", {"id": "update_task", "user_scenario": {"instructions": "You want a task done."}, "evaluation_criteria": CRITERIA})
TASKS = {"update_task": TASK}
INFO = ResultsInfo(domain="mock", policy="Be nice.", seed=7, tool_kinds={"update_task_status": "write"})
CALL = {"id": "c1", "type": "function", "function": {"name": "update_task_status", "arguments": json.dumps(ACTION["arguments"])}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "assistant", "content": "Hi! How can I help you today?"},
    {"role": "user", "content": None, "tool_calls": [{**CALL, "id": "u1"}]},
    {"role": "tool", "content": "Error: no", "tool_call_id": "u1", "requestor": "user", "error": True},
    {"role": "user", "content": "Please finish task 1."},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I should call a tool."},
    {"role": "tool", "content": "{}", "tool_call_id": "c1"},
    {"role": "assistant", "content": "All done."},
    {"role": "user", "content": "###STOP###"},
]
CHECKS = [
    Check(name="agent_db", passed=True, kind="DB"),
    Check(name="user_db", passed=False, kind="DB"),
    Check(name="assert", passed=True, kind="ENV_ASSERTION", counts=False),
    Check(name="action", passed=True, kind="ACTION", counts=False),
    Check(name="communicate", passed=True, kind="COMMUNICATE"),
]
REWARD = RewardInfo(reward=0.0, basis=["DB", "COMMUNICATE"], breakdown={"DB": 0.0, "COMMUNICATE": 1.0}, checks=CHECKS)


def trajectory(name: str = "e1", *, group: str = "g1", sample: int = 0, domain: str = "mock", **changes: Any) -> Trajectory:
    facts: dict[str, Any] = {
        "episode_id": name,
        "group_id": group,
        "sample_index": sample,
        "kind": Kind.EVAL,
        "task": TaskRef(domain=domain, split="base", task_id="update_task", solo_mode=False),
        "stamp": TaskStamp(source="inspect-evals 0.26.0", digest="d"),
        "status": Status.SCORED,
        "reward": 0.0,
        "reward_info": REWARD,
        "termination_reason": "user_stop",
        "messages": MESSAGES,
        "sampling": Sampling(),
        "seed": 3,
        "timings": Timings(started_at=1_700_000_000.0, total_s=8.0),
    }
    return Trajectory(**facts | changes)


def exported(*trajectories: Trajectory) -> dict[str, Any]:
    results = export(trajectories, TASKS, info=INFO)
    json.dumps(results, allow_nan=False)
    return results


def test_messages_are_in_tau2s_schema() -> None:
    messages = exported(trajectory())["simulations"][0]["messages"]
    assert [message["role"] for message in messages] == [message["role"] for message in MESSAGES]
    assert [message["turn_idx"] for message in messages] == list(range(len(MESSAGES)))
    assert messages[1]["tool_calls"] == [{"id": "u1", "name": "update_task_status", "arguments": ACTION["arguments"], "requestor": "user"}]
    failed = {key: messages[2][key] for key in ("id", "role", "content", "requestor", "error")}
    assert failed == {"id": "u1", "role": "tool", "content": "Error: no", "requestor": "user", "error": True}
    assert messages[4]["tool_calls"][0]["requestor"] == "assistant"
    assert messages[5]["error"] is False
    assert messages[6]["tool_calls"] is None, "an empty list would be a tool call to tau2"


def test_messages_keep_their_order_when_sorted_by_time() -> None:
    messages = exported(trajectory(timings=Timings(started_at=1_700_000_000.0, total_s=0.001)))["simulations"][0]["messages"]
    times = [message["timestamp"] for message in messages]
    assert times == sorted(times) and len(set(times)) == len(times)


def test_every_reward_part_stands_beside_the_tasks_own_entry() -> None:
    info = exported(trajectory())["simulations"][0]["reward_info"]
    assert (info["reward"], info["reward_basis"], info["reward_breakdown"]) == (0.0, ["DB", "COMMUNICATE"], {"DB": 0.0, "COMMUNICATE": 1.0})
    assert info["db_check"] == {"db_match": False, "db_reward": 0.0}
    assert info["env_assertions"] == [{"env_assertion": ASSERTION, "met": True, "reward": 1.0}]
    assert info["action_checks"] == [{"action": ACTION, "action_match": True, "action_reward": 1.0, "tool_type": "write"}]
    assert info["communicate_checks"][0]["info"] == "done"
    assert info["nl_assertions"] is None, "no judge was asked"


def test_an_episode_that_nobody_ended_has_a_reward_and_no_basis() -> None:
    premature = RewardInfo(reward=0.0, basis=["DB", "COMMUNICATE"], note="ended prematurely: max_steps")
    simulation = exported(trajectory(status=Status.TRUNCATED, termination_reason="max_steps", reward_info=premature))["simulations"][0]
    assert simulation["termination_reason"] == "max_steps"
    assert simulation["reward_info"] == {"reward": 0.0, "reward_basis": None, "info": {"note": premature.note}}


def test_failed_episodes_are_infrastructure_errors_without_a_reward() -> None:
    failed = trajectory(
        status=Status.FAILED,
        reward=None,
        reward_info=None,
        failure=Failure(who=Owner.USER, why="no answer"),
        termination_reason="failed_user",
        attempt=3,
    )
    simulation = exported(failed)["simulations"][0]
    assert simulation["termination_reason"] == "infrastructure_error"
    assert simulation["reward_info"] is None
    assert {key: simulation["info"][key] for key in ("error", "error_type", "failed_after_attempts")} == {
        "error": "no answer",
        "error_type": "user",
        "failed_after_attempts": 3,
    }


def test_trials_are_numbered_by_group_and_sample() -> None:
    shuffled = [trajectory("e3", group="g2"), trajectory("e2", sample=1), trajectory("e1", sample=0)]
    results = exported(*shuffled)
    assert [(one["id"], one["trial"], one["seed"]) for one in results["simulations"]] == [("e1", 0, 3), ("e2", 1, 3), ("e3", 2, 3)]
    assert results["info"]["num_trials"] == 3
    assert results["tasks"] == [TASK.raw]


def test_what_the_agent_said_unparsably_is_kept() -> None:
    broken = {"role": "assistant", "content": "Hm.", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}
    message = message_json(broken)
    assert message["content"] == "Hm."
    assert "tool_calls" not in message
    assert message["raw_data"]["message"] == broken


def test_reasoning_is_kept_out_of_the_text() -> None:
    message = exported(trajectory())["simulations"][0]["messages"][4]
    assert message["content"] is None
    assert message["raw_data"]["message"]["reasoning_content"] == "I should call a tool."


def test_one_file_holds_one_domain_and_one_mode() -> None:
    with pytest.raises(ValueError, match="e1: retail, normal, does not belong into one results file with mock"):
        exported(trajectory(domain="retail"))
    with pytest.raises(ValueError, match="e1: mock, solo"):
        exported(trajectory(task=TaskRef(domain="mock", split="base", task_id="update_task", solo_mode=True)))


def test_an_unknown_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="e1: tasks has no 'update_task'"):
        export([trajectory()], {}, info=INFO)


def test_no_trajectories_are_an_empty_file() -> None:
    results = exported()
    assert (results["simulations"], results["tasks"], results["info"]["num_trials"]) == ([], [], 0)
