"""Reporting an attempt: who wins, what is retried, what is refused, and listing what is final."""

from collections.abc import Callable
from typing import Any

import pytest
from store_helpers import StoreClient, make_group, make_request, make_trajectory


@pytest.fixture
def lease(store: StoreClient) -> dict[str, Any]:
    store.enqueue([make_request("e1")])
    return store.lease()[0]


def test_the_same_report_again_is_a_duplicate(store: StoreClient, lease: dict[str, Any]) -> None:
    trajectory = make_trajectory(lease["request"])
    outcomes = [store.put(trajectory, lease["lease_id"]) for _ in range(3)]
    assert outcomes == ["stored", "duplicate", "duplicate"]
    counts = store.stats()
    assert (counts["trajectories_in"], counts["duplicates_refused"], counts["running"]) == (1, 2, 0)
    assert store.heartbeat("w1", lease["lease_id"]) == [lease["lease_id"]], "the report ended the lease"


@pytest.mark.parametrize("who", ["user", "env", "infra", "judge"])
def test_failures_that_another_attempt_may_not_meet_are_retried(store: StoreClient, lease: dict[str, Any], who: str) -> None:
    failed = make_trajectory(lease["request"], who=who)
    assert store.put(failed, lease["lease_id"]) == "retry"
    assert store.put(failed, lease["lease_id"]) == "retry", "a repeated report costs no further attempt"
    assert store.stats()["retries"] == 1
    assert store.status("GET", "/v1/trajectories/e1")[0] == 404
    for _ in range(2):
        [lease] = store.lease(wait_s=5)
        failed = make_trajectory(lease["request"], who=who)
        outcome = store.put(failed, lease["lease_id"])
    assert outcome == "stored"
    assert store.get("e1") == failed
    assert store.put(failed, lease["lease_id"]) == "duplicate"
    store.assert_balanced()


@pytest.mark.parametrize(("fields", "status"), [({"who": "policy"}, "failed"), ({"status": "truncated", "reward": 0.0}, "truncated")])
def test_what_the_policy_did_is_final(store: StoreClient, lease: dict[str, Any], fields: dict[str, Any], status: str) -> None:
    assert store.put(make_trajectory(lease["request"], **fields), lease["lease_id"]) == "stored"
    assert store.get("e1").status == status


def test_the_first_final_attempt_wins(store: StoreClient) -> None:
    store.enqueue([make_request("e1")])
    [first] = store.lease("slow", ttl_s=0.05)
    [second] = store.lease("fast", wait_s=5)
    assert second["request"]["attempt"] == 2

    assert store.put(make_trajectory(first["request"], who="infra"), first["lease_id"]) == "retry"
    assert store.heartbeat("fast", second["lease_id"]) == [], "the failure of a lost lease does not touch its successor"

    late = make_trajectory(first["request"], reward=0.5)
    assert store.put(late, first["lease_id"]) == "stored"
    assert store.heartbeat("fast", second["lease_id"]) == [second["lease_id"]]
    assert store.put(make_trajectory(second["request"]), second["lease_id"]) == "superseded"
    assert store.get("e1") == late
    store.assert_balanced()


@pytest.mark.parametrize("state", ["queued", "delayed"])
def test_a_late_result_takes_the_episode_out_of_the_queue(make_store: Callable[..., StoreClient], state: str) -> None:
    store = make_store(retry_delay_s=0.0 if state == "queued" else 60.0)
    store.enqueue([make_request("e1")])
    [lease] = store.lease()
    store.release(lease["lease_id"])
    assert store.stats()["queued"] == 1
    assert store.put(make_trajectory(lease["request"]), lease["lease_id"]) == "stored"
    assert store.lease() == []
    store.assert_balanced()


def test_a_report_under_a_lost_lease_fails_no_other_attempt(store: StoreClient, lease: dict[str, Any]) -> None:
    store.release(lease["lease_id"], count_attempt=False)
    [held] = store.lease()
    failed = make_trajectory(held["request"], who="infra")
    assert store.put(failed, lease["lease_id"]) == "retry"
    assert store.heartbeat("w1", held["lease_id"]) == [], "the header names the lease, not the attempt alone"


def test_a_synthesised_failure_is_not_the_attempt_it_stands_for(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_attempts=1)
    store.enqueue([make_request("e1")])
    [lease] = store.lease()
    store.release(lease["lease_id"])
    assert store.put(make_trajectory(lease["request"]), lease["lease_id"]) == "superseded"


def test_episodes_that_were_never_enqueued_are_kept_aside(store: StoreClient) -> None:
    trajectory = make_trajectory(make_request("curl-1"))
    assert store.put(trajectory) == "stored"
    assert store.put(trajectory) == "duplicate"
    assert store.get("curl-1") == trajectory
    assert [item["episode_id"] for item in store.call("GET", "/v1/trajectories")["items"]] == ["curl-1"]
    assert store.stats()["trajectories_in"] == 0
    assert store.lease_batch().batch_id == ""
    assert store.status("POST", "/v1/rollouts", {"requests": [make_request("curl-1").model_dump(mode="json")]})[0] == 409
    store.assert_balanced()


def test_a_trajectory_of_something_else_is_refused(store: StoreClient, lease: dict[str, Any]) -> None:
    trajectory = make_trajectory(lease["request"])
    body = trajectory.model_dump(mode="json")
    assert store.status("PUT", "/v1/trajectories/e2", body)[1]["param"] == "episode_id"
    status, problem = store.status("PUT", "/v1/trajectories/e1", body | {"group_id": "other"})
    assert (status, problem["param"]) == (400, "group_id")
    status, problem = store.status("PUT", "/v1/trajectories/e1", body | {"schema_version": 2, "new_field": 1})
    assert (status, problem["code"]) == (400, "schema_too_new")
    assert "upgrade the store" in problem["detail"]
    status, problem = store.status("PUT", "/v1/trajectories/e1", body | {"reward": None})
    assert status == 422
    assert "status=failed" in problem["detail"]
    assert store.status("PUT", "/v1/trajectories/e1", body | {"wrong": 1})[1]["param"] == "body.wrong"
    answer = store.http.put("/v1/trajectories/e1", content=b"{nonsense")
    assert answer.status_code == 400
    assert store.stats()["running"] == 1


def test_a_body_over_the_limit_is_refused_with_413(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_body_mb=1)
    assert store.http.put("/v1/trajectories/e1", content=b"x" * (2**20 + 1)).status_code == 413
    unannounced = (b"x" * 2**18 for _ in range(5))
    assert store.http.put("/v1/trajectories/e1", content=unannounced).status_code == 413


def test_listing_pages_in_completion_order_and_filters(store: StoreClient) -> None:
    store.enqueue([*make_group("g1", 5), *make_group("g2", 3, kind="eval")])
    leases = {lease["request"]["episode_id"]: lease for lease in store.lease(limit=8)}
    order = ["g1.3", "g2.0", "g1.0", "g2.2", "g1.1", "g1.4", "g2.1", "g1.2"]
    for name in order:
        who = "policy" if name == "g1.4" else ""
        store.put(make_trajectory(leases[name]["request"], who=who), leases[name]["lease_id"])

    seen: list[str] = []
    cursor = 0
    while items := (page := store.call("GET", f"/v1/trajectories?after={cursor}&limit=3"))["items"]:
        seen += [item["episode_id"] for item in items]
        cursor = page["next"]
    assert seen == order

    def listed(query: str) -> list[str]:
        return [item["episode_id"] for item in store.call("GET", f"/v1/trajectories?{query}")["items"]]

    assert listed("kind=eval") == ["g2.0", "g2.2", "g2.1"]
    assert listed("group_id=g1&status=failed") == ["g1.4"]
    assert listed("task_id=task-1&limit=2") == order[:2]
    assert listed("task_id=other") == []
    assert all("messages" not in item for item in store.call("GET", "/v1/trajectories")["items"])
