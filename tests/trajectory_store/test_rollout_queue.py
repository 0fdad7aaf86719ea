"""The rollout queue: order, idempotence, leases, heartbeats, attempts."""

import threading
import time
from collections.abc import Callable

import pytest
from store_helpers import RedisServer, StoreClient, make_group, make_request, make_trajectory, wait_until


def test_life_of_an_episode(store: StoreClient) -> None:
    assert store.enqueue([make_request("e1")]) == {"enqueued": 1, "known": 0}
    assert store.stats()["queued"] == 1

    [lease] = store.lease("w1", limit=5)
    assert lease["request"]["episode_id"] == "e1"
    assert lease["request"]["attempt"] == 1
    assert lease["expires_at"] == pytest.approx(time.time() + 30, abs=5)
    assert store.stats()["running"] == 1

    records = store.play_session("e1.a1")
    trajectory = make_trajectory(lease["request"], session_id="e1.a1")
    assert store.put(trajectory, lease["lease_id"]) == "stored"
    assert store.get("e1") == trajectory
    assert store.stats()["waiting"] == 1

    batch = store.lease_batch()
    [episode] = batch.groups[0].episodes
    assert episode.complete
    assert episode.trajectory == trajectory.model_dump(mode="json")
    assert len(episode.calls) == len(records)
    assert store.stats()["leased"] == 1

    store.ack(batch)
    counts = store.stats()
    assert (counts["trained"], counts["waiting"], counts["leased"]) == (1, 0, 0)
    store.assert_balanced()


def test_enqueue_is_idempotent_and_checks_groups(store: StoreClient) -> None:
    group = make_group("g1", 2)
    store.enqueue(group)
    assert store.enqueue([*group, make_request("e9", "g9"), make_request("e9", "g9")]) == {"enqueued": 1, "known": 3}

    status, problem = store.status("POST", "/v1/rollouts", {"requests": [make_request("x", "g1", 0, 2).model_dump(mode="json")]})
    assert (status, problem["code"]) == (409, "group_conflict")
    other_size = [make_request("y", "g9", 0, 3), make_request("z", "g10")]
    with pytest.raises(Exception, match="409"):
        store.enqueue(other_size)
    assert store.stats()["queued"] == 3, "a refused body leaves nothing behind"
    store.assert_balanced()


def test_eval_before_demo_before_train_then_first_in_first_out(store: StoreClient) -> None:
    for name, kind in (("t1", "train"), ("d1", "demo"), ("t2", "train"), ("e1", "eval"), ("e2", "eval")):
        store.enqueue([make_request(name, name, kind=kind)])
    leases = store.lease(limit=4) + store.lease(limit=4)
    assert [lease["request"]["episode_id"] for lease in leases] == ["e1", "e2", "d1", "t1", "t2"]


def test_a_waiting_lease_wakes_when_work_arrives(store: StoreClient) -> None:
    threading.Timer(0.3, store.enqueue, [[make_request("e1")]]).start()
    started = time.monotonic()
    assert len(store.lease(wait_s=10)) == 1
    assert 0.2 < time.monotonic() - started < 2
    started = time.monotonic()
    assert store.lease(wait_s=0.3) == []
    assert time.monotonic() - started == pytest.approx(0.3, abs=0.25)


def test_a_waiting_worker_that_died_gets_no_work(store: StoreClient) -> None:
    impatient = StoreClient(str(store.http.base_url))
    with pytest.raises(Exception, match="timed out"):
        impatient.http.post("/v1/rollouts/lease", json={"worker_id": "dead", "wait_s": 20}, timeout=0.2)
    impatient.close()
    time.sleep(0.6)
    store.enqueue([make_request("e1")])
    time.sleep(0.3)
    assert store.stats()["queued"] == 1


def test_two_workers_never_hold_the_same_episode(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 40))
    held: list[str] = []

    def work(name: str) -> None:
        client = StoreClient(str(store.http.base_url))
        while leases := client.lease(name, limit=3):
            held.extend(lease["request"]["episode_id"] for lease in leases)
        client.close()

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == len(set(held)) == 40


def test_heartbeat_renews_and_names_lost_leases(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 2))
    kept, lost = (lease["lease_id"] for lease in store.lease("w1", limit=2, ttl_s=0.6))
    time.sleep(0.4)
    assert store.heartbeat("w1", kept) == []
    time.sleep(0.6)
    assert store.heartbeat("w1", kept, lost) == [lost]
    assert store.heartbeat("w2", kept) == [kept], "a lease belongs to one worker"


def test_expired_leases_come_back_with_the_next_attempt_until_none_is_left(store: StoreClient) -> None:
    store.enqueue([make_request("e1")])
    for attempt in (1, 2, 3):
        [lease] = store.lease(ttl_s=0.05, wait_s=5)
        assert lease["request"]["attempt"] == attempt
    wait_until(lambda: store.stats()["waiting"] == 1)
    failed = store.get("e1")
    assert failed.status == "failed"
    assert failed.failure is not None
    assert (failed.failure.who, failed.failure.why, failed.attempt) == ("infra", "lease expired 3 times", 3)
    assert store.stats()["retries"] == 2
    store.assert_balanced()


def test_retries_wait_longer_each_time(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(retry_delay_s=0.3)
    store.enqueue([make_request("e1")])
    for attempt in (1, 2):
        [lease] = store.lease(wait_s=5)
        assert store.put(make_trajectory(lease["request"], who="env"), lease["lease_id"]) == "retry"
        started = time.monotonic()
        assert store.lease() == []
        assert store.stats()["queued"] == 1, "an episode that waits for its next attempt counts as queued"
        wait_until(lambda: store.call("GET", "/v1/stats") and _queued_now(store), what="the retry")
        assert time.monotonic() - started >= 0.3 * attempt - 0.05


def _queued_now(store: StoreClient) -> bool:
    leases = store.lease()
    for lease in leases:
        store.release(lease["lease_id"], count_attempt=False)
    return bool(leases)


def test_release_for_shutdown_costs_no_attempt_but_makes_a_new_one(store: StoreClient) -> None:
    store.enqueue([make_request("e1", "g1"), make_request("e2", "g2")])
    for number in range(1, 6):
        [lease] = store.lease()
        assert lease["request"]["episode_id"] == "e1", "it keeps its place"
        assert lease["request"]["attempt"] == number, "a new attempt never writes into an old session"
        store.release(lease["lease_id"], count_attempt=False)
    store.release(lease["lease_id"])
    assert store.stats()["queued"] == 2
    assert store.stats()["retries"] == 0


def test_release_with_a_counted_attempt_ends_in_failure(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_attempts=2)
    store.enqueue([make_request("e1")])
    for _ in range(2):
        [lease] = store.lease(wait_s=5)
        store.release(lease["lease_id"])
    failure = store.get("e1").failure
    assert failure is not None
    assert (failure.who, failure.why) == ("infra", "gave up")
    assert store.lease_batch().groups[0].episodes[0].trajectory["status"] == "failed"


def test_bad_requests_name_the_field(store: StoreClient) -> None:
    status, problem = store.status("POST", "/v1/rollouts/lease", {"worker_id": "bad id"})
    assert (status, problem["param"]) == (422, "body.worker_id")
    demo_without_script = make_request("e1").model_dump(mode="json") | {"kind": "demo"}
    status, problem = store.status("POST", "/v1/rollouts", {"requests": [demo_without_script]})
    assert status == 422
    assert "demonstration" in problem["detail"]


def test_sweeping_needs_no_worker(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue([make_request("e1")])
    store.lease(ttl_s=0.05)
    wait_until(lambda: store.stats()["running"] == 0 and store.stats()["queued"] == 1, what="the background sweep")
