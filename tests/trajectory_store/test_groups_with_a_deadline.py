"""Quorum and deadline, late members, staleness at the lease, shards of a batch."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import StoreClient, episode_ids, make_group, make_trajectory, wait_until

from services.common.wire.store import Batch
from services.trajectory_store.shards import shard_of


@pytest.fixture
def hasty(make_store: Callable[..., StoreClient]) -> StoreClient:
    return make_store(group_deadline_s=0.4, group_quorum=0.5, retry_delay_s=30.0)


def test_a_quorum_is_delivered_after_the_deadline_and_late_members_are_kept(hasty: StoreClient) -> None:
    hasty.enqueue(make_group("g1", 6))
    leases = hasty.lease(limit=5)
    for lease in leases[:3]:
        hasty.put(make_trajectory(lease["request"]), lease["lease_id"])
    hasty.put(make_trajectory(leases[3]["request"], who="env"), leases[3]["lease_id"])
    assert hasty.lease_batch().batch_id == "", "the deadline is not over"
    batch = hasty.lease_batch(wait_s=5)
    assert episode_ids(batch) == ["g1.0", "g1.1", "g1.2"]
    assert hasty.stats()["queued"] == 0, "nobody plays the member that was still queued, nor the retry"
    hasty.assert_balanced()

    late = leases[4]
    assert hasty.heartbeat("w1", late["lease_id"]) == []
    assert hasty.put(make_trajectory(late["request"]), late["lease_id"]) == "stored"
    assert hasty.get("g1.4").reward == 1.0
    assert hasty.lease_batch().groups == batch.groups, "redelivery is not changed by a late member"
    hasty.ack(batch)
    assert hasty.stats()["drops"] == {"late": 3}
    assert hasty.lease_batch(allow_partial=True).batch_id == ""
    hasty.assert_balanced()


def test_without_a_quorum_a_group_waits_on(hasty: StoreClient) -> None:
    hasty.enqueue(make_group("g1", 4))
    leases = hasty.lease(limit=4)
    hasty.put(make_trajectory(leases[0]["request"]), leases[0]["lease_id"])
    hasty.put(make_trajectory(leases[1]["request"], who="policy"), leases[1]["lease_id"])
    time.sleep(0.9)
    assert hasty.lease_batch().batch_id == "", "a failed member is no part of a quorum"
    hasty.put(make_trajectory(leases[2]["request"]), leases[2]["lease_id"])
    assert episode_ids(hasty.lease_batch(wait_s=5)) == ["g1.0", "g1.1", "g1.2"], "it becomes ready with the member that makes the quorum"
    hasty.assert_balanced()


def test_evaluation_waits_for_everybody(hasty: StoreClient) -> None:
    hasty.enqueue(make_group("e1", 2, kind="eval"))
    lease, _ = hasty.lease(limit=2)
    hasty.put(make_trajectory(lease["request"]), lease["lease_id"])
    time.sleep(0.9)
    assert hasty.lease_batch(kind="eval").batch_id == ""


def test_a_late_failure_is_not_tried_again(hasty: StoreClient) -> None:
    hasty.enqueue(make_group("g1", 2))
    done, late = hasty.lease(limit=2)
    hasty.put(make_trajectory(done["request"]), done["lease_id"])
    wait_until(lambda: hasty.stats()["ready_groups"] == 1, what="the deadline")
    assert hasty.put(make_trajectory(late["request"], who="env"), late["lease_id"]) == "stored"
    assert hasty.stats()["queued"] == 0
    hasty.assert_balanced()


def versioned(request: dict[str, Any], *versions: int) -> Any:
    return make_trajectory(request).model_copy(update={"policy_versions": list(versions)})


def test_stale_episodes_are_dropped_at_the_lease(store: StoreClient) -> None:
    store.enqueue([*make_group("old", 2), *make_group("mixed", 2), *make_group("new", 2)])
    versions = {"old.0": (0, 1), "old.1": (1,), "mixed.0": (1, 3), "mixed.1": (2, 3), "new.0": (3,), "new.1": ()}
    for lease in store.lease(limit=6):
        store.put(versioned(lease["request"], *versions[lease["request"]["episode_id"]]), lease["lease_id"])
    batch = store.lease_batch(2, max_staleness=1, policy_version=3)
    assert episode_ids(batch) == ["mixed.1", "new.0", "new.1"], "what names no version cannot be stale"
    assert store.stats()["drops"] == {"stale": 3}
    store.ack(batch)
    assert store.stats()["waiting"] == 0
    store.assert_balanced()


def test_staleness_counts_from_the_newest_published_version(store: StoreClient) -> None:
    store.call("POST", "/v1/policy_versions", {"version": 5, "path": "v5"})
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    store.put(versioned(lease["request"], 3), lease["lease_id"])
    assert store.lease_batch(max_staleness=2).batch_id
    assert store.lease_batch(max_staleness=0).redelivered, "what is leased already is not taken away"


def test_ranks_read_disjoint_shards_of_one_batch(store: StoreClient) -> None:
    for number in range(5):
        store.enqueue(make_group(f"g{number}", 2))
    for lease in store.lease(limit=10):
        store.play_session(lease["request"]["episode_id"] + ".a1")
        store.put(make_trajectory(lease["request"], session_id=lease["request"]["episode_id"] + ".a1"), lease["lease_id"])
    leader = store.lease_batch(5, content=False)
    assert [len(group.episodes) for group in leader.groups] == [0] * 5

    def shard(rank: int) -> Batch:
        answer = store.http.get(f"/v1/batches/{leader.batch_id}/shard?rank={rank}&world=2")
        answer.raise_for_status()
        return msgspec.msgpack.decode(answer.content, type=Batch)

    shards = [shard(0), shard(1)]
    assert sorted(len(part.groups) for part in shards) == [2, 3]
    assert sorted(group.group_id for part in shards for group in part.groups) == [f"g{number}" for number in range(5)]
    assert all(episode.complete and episode.calls for part in shards for group in part.groups for episode in group.episodes)
    assert shard(1) == shards[1]
    assert store.status("GET", f"/v1/batches/{leader.batch_id}/shard?rank=2&world=2")[0] == 400
    store.call("POST", f"/v1/batches/{leader.batch_id}/nack", {})
    assert store.status("GET", f"/v1/batches/{leader.batch_id}/shard?rank=0&world=2")[0] == 409
    assert store.status("GET", "/v1/batches/nobody/shard?rank=0&world=2")[0] == 404


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_shards_are_a_partition_and_balanced(sizes: list[int], world: int) -> None:
    parts = [shard_of(sizes, world, rank) for rank in range(world)]
    assert sorted(position for part in parts for position in part) == list(range(len(sizes)))
    loads = [sum(max(sizes[position], 1) for position in part) for part in parts]
    assert max(loads) - min(loads) <= max([max(size, 1) for size in sizes], default=0)
