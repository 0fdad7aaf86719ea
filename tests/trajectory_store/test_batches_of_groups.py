"""Groups and batches: readiness, leases, redelivery, acks, the drop ledger."""

import threading
import time
from typing import Any

import pytest
from store_helpers import StoreClient, episode_ids, make_group, make_trajectory


def finish(store: StoreClient, *names: str, size: int = 2, kind: str = "train", failed: tuple[str, ...] = ()) -> None:
    """Enqueues groups and reports their episodes in order; the named episodes fail by the policy's fault."""
    for name in names:
        store.enqueue(make_group(name, size, kind))
        for lease in store.lease(limit=size):
            who = "policy" if lease["request"]["episode_id"] in failed else ""
            store.put(make_trajectory(lease["request"], who=who), lease["lease_id"])


def groups(store: StoreClient, kind: str = "train") -> dict[str, int]:
    return store.call("GET", f"/v1/groups?kind={kind}")


def test_a_group_is_ready_when_all_members_are_final_failed_ones_included(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 3))
    leases = store.lease(limit=3)
    for lease, who in zip(leases, ("", "policy", ""), strict=True):
        assert groups(store) == {"ready": 0, "open": 1}
        assert store.lease_batch(allow_partial=True).batch_id == ""
        store.put(make_trajectory(lease["request"], who=who), lease["lease_id"])
    assert groups(store) == {"ready": 1, "open": 0}
    [group] = store.lease_batch().groups
    assert [episode.trajectory["status"] for episode in group.episodes] == ["scored", "failed", "scored"]
    assert group.episodes[1].trajectory["failure"] == {"who": "policy", "why": "it broke", "final": False}


def test_groups_are_delivered_per_kind_in_the_order_in_which_they_became_ready(store: StoreClient) -> None:
    finish(store, "g2", "g1", "g3")
    finish(store, "v1", kind="eval")
    assert store.call("GET", "/v1/groups") == {"ready": 4, "open": 0}
    assert [group.group_id for group in store.lease_batch(2).groups] == ["g2", "g1"]
    assert [group.group_id for group in store.lease_batch(1, kind="eval").groups] == ["v1"]
    assert [group.group_id for group in store.lease_batch(1, consumer="other").groups] == ["g3"]
    store.assert_balanced()


def test_fewer_groups_than_asked_for_only_where_partial_is_allowed(store: StoreClient) -> None:
    finish(store, "g1")
    started = time.monotonic()
    assert store.lease_batch(2, wait_s=0.3).groups == []
    partial = store.lease_batch(2, wait_s=0.3, allow_partial=True)
    assert time.monotonic() - started > 0.5, "it waits before it gives up or settles for less"
    assert len(partial.groups) == 1


def test_a_waiting_consumer_wakes_when_the_last_member_is_final(store: StoreClient) -> None:
    timer = threading.Timer(0.3, finish, [store, "g1"])
    timer.start()
    started = time.monotonic()
    assert len(store.lease_batch(1, wait_s=10).groups) == 1
    assert time.monotonic() - started < 3
    timer.join()


def test_a_consumer_gets_its_unacked_batch_again_before_anything_new(store: StoreClient) -> None:
    finish(store, "g1", "g2", "g3")
    first = store.lease_batch(2)
    assert not first.redelivered
    again = store.lease_batch(1)
    assert again.redelivered
    assert (again.batch_id, again.groups) == (first.batch_id, first.groups)
    store.ack(again)
    assert [group.group_id for group in store.lease_batch(1).groups] == ["g3"]


def test_an_expired_batch_goes_to_whoever_asks_next(store: StoreClient) -> None:
    finish(store, "g1", "g2")
    first = store.lease_batch(1, consumer="dead", ttl_s=0.1)
    time.sleep(0.15)
    second = store.lease_batch(2, consumer="alive")
    assert [group.group_id for group in second.groups] == ["g1", "g2"], "a group that comes back keeps its place"
    assert not second.redelivered
    body = {"trained": episode_ids(first), "dropped": {}, "step": 1, "policy_version": 1}
    status, problem = store.status("POST", f"/v1/batches/{first.batch_id}/ack", body)
    assert (status, problem["code"]) == (409, "batch_expired")
    assert store.status("POST", f"/v1/batches/{first.batch_id}/extend", {"ttl_s": 5})[0] == 409
    assert store.lease_batch(1, consumer="dead").batch_id == ""
    store.ack(second)
    store.assert_balanced()


def test_time_alone_does_not_take_a_batch_away(store: StoreClient) -> None:
    finish(store, "g1")
    batch = store.lease_batch(ttl_s=0.05)
    time.sleep(0.1)
    assert store.lease_batch().redelivered
    store.ack(batch)
    assert store.stats()["trained"] == 2


def test_extend_keeps_a_batch(store: StoreClient) -> None:
    finish(store, "g1")
    batch = store.lease_batch(ttl_s=0.2)
    store.call("POST", f"/v1/batches/{batch.batch_id}/extend", {"ttl_s": 30})
    time.sleep(0.25)
    assert store.lease_batch(consumer="other").batch_id == ""


def test_nack_makes_the_groups_ready_again(store: StoreClient) -> None:
    finish(store, "g1", "g2")
    batch = store.lease_batch(1)
    for _ in range(2):
        store.call("POST", f"/v1/batches/{batch.batch_id}/nack", {})
    assert groups(store)["ready"] == 2
    again = store.lease_batch(1)
    assert again.groups == batch.groups
    assert again.batch_id != batch.batch_id
    store.ack(again)
    assert store.status("POST", f"/v1/batches/{again.batch_id}/nack", {})[0] == 409
    assert store.status("POST", "/v1/batches/nobody/nack", {})[0] == 404
    store.assert_balanced()


@pytest.mark.parametrize(
    ("trained", "dropped", "text"),
    [
        (["g1.0"], {}, "missing 1 (g1.1)"),
        (["g1.0", "g1.1", "g9.0"], {}, "not in the batch 1 (g9.0)"),
        (["g1.0", "g1.1"], {"g1.1": "stale"}, "g1.1 is named twice"),
        (["g1.0", "g1.0", "g1.1"], {}, "g1.0 is named twice"),
        (["g1.0"], {"g1.1": ""}, "dropped.g1.1"),
    ],
)
def test_an_ack_names_every_episode_once(store: StoreClient, trained: list[str], dropped: dict[str, str], text: str) -> None:
    finish(store, "g1")
    batch = store.lease_batch()
    body: dict[str, Any] = {"trained": trained, "dropped": dropped, "step": 1, "policy_version": 1}
    status, problem = store.status("POST", f"/v1/batches/{batch.batch_id}/ack", body)
    assert status == 400
    assert text in problem["detail"]
    assert (store.stats()["leased"], store.stats()["trained"]) == (2, 0)
    store.assert_balanced()


def test_ack_is_idempotent_and_fills_the_drop_ledger(store: StoreClient) -> None:
    finish(store, "g1", size=9, failed=("g1.8",))
    batch = store.lease_batch()
    dropped = {f"g1.{number}": "stale" for number in range(7)} | {"g1.8": "failed_policy"}
    for _ in range(2):
        store.ack(batch, dropped)
    counts = store.stats()
    assert (counts["trained"], counts["dropped"], counts["leased"]) == (1, 8, 0)
    assert counts["drops"] == {"stale": 7, "failed_policy": 1}
    ledger = store.call("GET", "/v1/drops")
    assert ledger["counts"] == {"stale": 7, "failed_policy": 1}
    assert ledger["examples"]["failed_policy"] == ["g1.8"]
    assert len(ledger["examples"]["stale"]) == 5
    assert set(ledger["examples"]["stale"]) < set(dropped)
    assert len(store.call("GET", "/v1/drops?limit=2")["examples"]["stale"]) == 2
    assert store.lease_batch().batch_id == "", "an acked batch is not delivered again"
    store.assert_balanced()


def test_consumers_never_share_a_group(store: StoreClient) -> None:
    finish(store, *(f"g{number}" for number in range(12)))
    taken: list[str] = []

    def consume(name: str) -> None:
        client = StoreClient(str(store.http.base_url))
        while (batch := client.lease_batch(2, consumer=name, allow_partial=True)).groups:
            taken.extend(group.group_id for group in batch.groups)
            client.ack(batch)
        client.close()

    threads = [threading.Thread(target=consume, args=(f"rank{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"g{number}" for number in range(12))
    store.assert_balanced()
