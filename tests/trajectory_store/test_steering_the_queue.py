"""Cancel, pause, drain, bounds, and the alarm of a filter that rejects everything."""

import threading
import time
from collections.abc import Callable

import pytest
from store_helpers import StoreClient, episode_ids, make_group, make_request, make_trajectory, wait_until


def cancel(store: StoreClient, *episode_ids: str, **fields: object) -> dict[str, object]:
    return store.call("POST", "/v1/rollouts/cancel", {"episode_ids": episode_ids, **fields})


def test_a_cancelled_episode_is_not_retried_and_its_worker_learns_it(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 3))
    first, second = store.lease(limit=2)
    assert cancel(store, "g1.0", "g1.2", "nobody", reason="not needed") == {"cancelled": 2, "final": 0, "unknown": ["nobody"]}
    assert store.heartbeat("w1", first["lease_id"], second["lease_id"]) == [first["lease_id"]]
    assert store.put(make_trajectory(first["request"]), first["lease_id"]) == "superseded"
    assert store.lease() == []
    failure = store.get("g1.0").failure
    assert failure is not None
    assert (failure.who, failure.why, failure.final) == ("infra", "cancelled: not needed", True)
    assert cancel(store, "g1.0") == {"cancelled": 0, "final": 1, "unknown": []}

    store.put(make_trajectory(second["request"]), second["lease_id"])
    batch = store.lease_batch()
    assert episode_ids(batch) == ["g1.1"], "a cancelled member does not hold its group up and is not delivered"
    store.ack(batch)
    assert store.stats()["drops"] == {"cancelled": 2}
    store.assert_balanced()


def test_a_group_that_is_cancelled_whole_is_done(store: StoreClient) -> None:
    store.enqueue([*make_group("g1", 2), *make_group("g2", 1)])
    assert cancel(store, group_ids=["g1", "g9"]) == {"cancelled": 2, "final": 0, "unknown": ["g9"]}
    assert store.call("GET", "/v1/groups?kind=train") == {"ready": 0, "open": 1}
    assert store.lease_batch(allow_partial=True).batch_id == ""
    assert store.status("POST", "/v1/rollouts/cancel", {})[0] == 400
    status, problem = store.status("POST", "/v1/rollouts", {"requests": [make_request("new", "g1", 0, 2).model_dump(mode="json")]})
    assert (status, problem["code"]) == (409, "group_conflict")
    store.assert_balanced()


def test_a_worker_may_report_that_its_episode_was_cancelled(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    trajectory = make_trajectory(lease["request"], who="infra")
    assert trajectory.failure is not None
    final = trajectory.model_copy(update={"failure": trajectory.failure.model_copy(update={"final": True})})
    assert store.put(final, lease["lease_id"]) == "stored"
    assert store.stats()["drops"] == {"cancelled": 1}
    store.assert_balanced()


def test_a_paused_kind_is_not_leased_until_it_is_resumed(store: StoreClient) -> None:
    store.enqueue([make_request("t1", "t1"), make_request("e1", "e1", kind="eval")])
    state = store.call("POST", "/v1/queue/pause", {"kinds": ["train"], "reason": "weights move"})
    assert state == {"running": 0, "paused": {"train": "weights move"}}
    assert [lease["request"]["episode_id"] for lease in store.lease(limit=5)] == ["e1"]
    assert store.call("GET", "/v1/queue") == {"running": 1, "paused": {"train": "weights move"}}
    threading.Timer(0.3, store.call, ["POST", "/v1/queue/resume", {}]).start()
    started = time.monotonic()
    assert [lease["request"]["episode_id"] for lease in store.lease(wait_s=10)] == ["t1"]
    assert time.monotonic() - started < 5


def test_draining_waits_for_what_runs(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 2))
    [lease] = store.lease()
    assert store.call("POST", "/v1/queue/drain", {"wait_s": 0.2})["running"] == 1
    other = StoreClient(str(store.http.base_url))
    timer = threading.Timer(0.3, other.put, [make_trajectory(lease["request"]), lease["lease_id"]])
    timer.start()
    assert store.call("POST", "/v1/queue/drain", {"wait_s": 10})["running"] == 0
    timer.join()
    other.close()
    assert store.lease() == [], "drained stays paused"


def test_a_full_queue_refuses_loudly(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_queued=3)
    store.enqueue(make_group("g1", 3))
    answer = store.http.post("/v1/rollouts", json={"requests": [make_request("x", "gx").model_dump(mode="json")]})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert store.enqueue(make_group("g1", 3)) == {"enqueued": 0, "known": 3}, "what is known takes no room"
    store.lease()
    store.enqueue([make_request("x", "gx")])


def test_back_off_doubles_up_to_a_limit(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_attempts=6, retry_delay_s=0.1, retry_max_delay_s=0.25)
    store.enqueue([make_request("e1")])
    waits: list[float] = []
    for _ in range(4):
        [lease] = store.lease(wait_s=5)
        store.put(make_trajectory(lease["request"], who="env"), lease["lease_id"])
        started = time.monotonic()
        wait_until(lambda: store.call("POST", "/v1/queue/pause", {"kinds": []}) and _ready_now(store), what="the retry")
        waits.append(time.monotonic() - started)
    assert [wait > at_least - 0.02 for wait, at_least in zip(waits, (0.1, 0.2, 0.25, 0.25), strict=True)] == [True] * 4
    assert waits[3] < 2


def _ready_now(store: StoreClient) -> bool:
    leases = store.lease()
    for lease in leases:
        store.release(lease["lease_id"], count_attempt=False)
    return bool(leases)


@pytest.fixture
def picky(make_store: Callable[..., StoreClient]) -> StoreClient:
    return make_store(alarm_after_barren_groups=3)


def play(store: StoreClient, *groups: str) -> None:
    for name in groups:
        store.enqueue(make_group(name, 2))
    for lease in store.lease(limit=100):
        store.put(make_trajectory(lease["request"]), lease["lease_id"])


def reject(store: StoreClient, n: int, reason: str = "filtered_all_fail") -> None:
    batch = store.lease_batch(n)
    store.ack(batch, dict.fromkeys(episode_ids(batch), reason))


def test_a_filter_that_rejects_everything_stops_the_filling(picky: StoreClient) -> None:
    play(picky, "g1", "g2", "g3", "g4", "g5")
    reject(picky, 2)
    reject(picky, 1, "stale")
    assert picky.call("GET", "/v1/stats")["alarms"] == {}, "stale groups say nothing about the filter"
    reject(picky, 1)
    [text] = picky.call("GET", "/v1/stats")["alarms"].values()
    assert "rejected the last 3 groups" in text
    status, problem = picky.status("POST", "/v1/rollouts", {"requests": [make_request("x", "gx").model_dump(mode="json")]})
    assert (status, problem["code"]) == (409, "filter_rejects_all")
    assert "/v1/alarms/filter_rejects_all/clear" in problem["detail"]
    picky.enqueue([make_request("e1", "e1", kind="eval")])
    picky.call("POST", "/v1/alarms/filter_rejects_all/clear", {})
    picky.enqueue([make_request("x", "gx")])
    assert picky.status("POST", "/v1/alarms/filter_rejects_all/clear", {})[0] == 404
    picky.assert_balanced()


def test_one_group_that_is_trained_on_ends_the_alarm(picky: StoreClient) -> None:
    play(picky, "g1", "g2", "g3", "g4")
    reject(picky, 3)
    assert picky.call("GET", "/v1/stats")["alarms"]
    picky.ack(picky.lease_batch(1))
    assert picky.call("GET", "/v1/stats")["alarms"] == {}
    picky.enqueue([make_request("x", "gx")])
