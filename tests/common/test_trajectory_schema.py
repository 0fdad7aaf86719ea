"""A failure is data with an owner and no reward; everything else has a reward. The schemas refuse any mixture."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.common.wire.rollouts import (
    Demonstration,
    Failure,
    Kind,
    Owner,
    RolloutRequest,
    Sampling,
    Status,
    TaskRef,
    TaskStamp,
    Timings,
    Trajectory,
)

BASE: dict[str, Any] = {
    "episode_id": "e1",
    "group_id": "g1",
    "kind": Kind.TRAIN,
    "task": TaskRef(task_id="t"),
    "stamp": TaskStamp(source="test", digest="0"),
    "termination_reason": "agent_stop",
    "sampling": Sampling(),
    "timings": Timings(started_at=0.0, total_s=1.0),
}
FAILURE = Failure(who=Owner.INFRA, why="the server is away")


@pytest.mark.parametrize("status", [Status.SCORED, Status.TRUNCATED])
def test_scored_and_truncated_carry_a_reward(status: Status) -> None:
    assert Trajectory(**BASE, status=status, reward=0.0).reward == 0.0


def test_failed_carries_a_failure() -> None:
    assert Trajectory(**BASE, status=Status.FAILED, failure=FAILURE).reward is None


@pytest.mark.parametrize(
    "fields",
    [
        {"status": Status.FAILED},
        {"status": Status.FAILED, "reward": 0.0, "failure": FAILURE},
        {"status": Status.SCORED},
        {"status": Status.SCORED, "reward": 1.0, "failure": FAILURE},
    ],
)
def test_a_failure_with_a_reward_and_a_result_without_one_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="carries a failure and no reward"):
        Trajectory(**BASE, **fields)


def test_demonstrations_and_only_they_have_a_script() -> None:
    task = TaskRef(task_id="t")
    RolloutRequest(episode_id="e", group_id="g", task=task, kind=Kind.DEMO, demonstration=Demonstration())
    for kind, script in ((Kind.DEMO, None), (Kind.TRAIN, Demonstration())):
        with pytest.raises(ValidationError, match="demonstration"):
            RolloutRequest(episode_id="e", group_id="g", task=task, kind=kind, demonstration=script)


@pytest.mark.parametrize("bad", ["", "a b", "../x", "a/b", "x" * 161])
def test_ids_are_safe_in_urls_keys_and_file_names(bad: str) -> None:
    with pytest.raises(ValidationError):
        RolloutRequest(episode_id=bad, group_id="g", task=TaskRef(task_id="t"))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Sampling.model_validate({"temprature": 1.0})
