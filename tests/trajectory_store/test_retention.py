"""Retention by age, number and bytes: what goes, what stays known, and that the sums still balance."""

from collections.abc import Callable
from pathlib import Path

import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_call, make_group, make_request, make_trajectory, wait_until
from test_whole_trajectories import noisy, put_whole

from services.common.wire.calls import encode_call
from services.trajectory_store import upkeep
from services.trajectory_store.keys import Keys

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


def play(store: StoreClient, *groups: str, ack: bool = True) -> None:
    for name in groups:
        store.enqueue(make_group(name, 2))
        for lease in store.lease(limit=2):
            session_id = lease["request"]["episode_id"] + ".a1"
            trajectory = make_trajectory(lease["request"], session_id=session_id)
            calls = [encode_call(make_call(session_id, ordinal, n_output=300)) for ordinal in range(3)]
            assert put_whole(store, trajectory, calls, lease=lease["lease_id"])[1] == {"outcome": "stored"}
        if ack:
            store.ack(store.lease_batch(1), {f"{name}.1": "stale"})


def kept(store: StoreClient) -> list[str]:
    return [item["episode_id"] for item in store.call("GET", "/v1/trajectories")["items"]]


def test_the_oldest_consumed_groups_go_and_stay_known(
    make_store: Callable[..., StoreClient], redis_server: RedisServer, monkeypatch
) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.1)
    store = make_store(retain_trajectories=2)
    play(store, "g1", "g2", "g3")
    wait_until(lambda: kept(store) == ["g3.0", "g3.1"], what="retention")
    assert store.status("GET", "/v1/trajectories/g1.0")[0] == 404
    assert store.status("GET", "/v1/sessions/g1.0.a1")[0] == 404
    counts = store.stats()
    assert (counts["trajectories_in"], counts["trained"], counts["dropped"], counts["drops"]) == (6, 3, 3, {"stale": 3})
    store.assert_balanced()

    assert store.enqueue(make_group("g1", 2)) == {"enqueued": 0, "known": 2}, "a retired episode is never run again"
    assert store.put(make_trajectory(make_group("g1", 2)[0])) == "duplicate"
    with redis.Redis.from_url(redis_server.url) as raw:
        left = [key.decode() for key in raw.scan_iter(f"{KEYS.prefix}*") if b"g1" in key]
    assert left == []
    store.assert_balanced()


def test_what_nobody_consumed_stays(make_store: Callable[..., StoreClient], monkeypatch) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.1)
    store = make_store(retain_trajectories=0)
    play(store, "g1", ack=False)
    store.enqueue(make_group("g2", 2))
    store.put(make_trajectory(make_request("adhoc")))
    wait_until(lambda: kept(store) == ["g1.0", "g1.1"], what="the ad-hoc episode to go")
    store.ack(store.lease_batch(1))
    wait_until(lambda: kept(store) == [], what="retention")
    assert store.put(make_trajectory(make_request("adhoc"))) == "duplicate"
    store.assert_balanced()


def test_bytes_and_age_are_limits_too(make_store: Callable[..., StoreClient], monkeypatch) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.1)
    store = make_store(retain_mb=0)
    play(store, "g1")
    wait_until(lambda: store.call("GET", "/v1/stats")["body_bytes"] == 0, what="retention by bytes")
    aged = make_store(retain_age_s=0.5)
    play(aged, "g2")
    wait_until(lambda: kept(aged) == [], what="retention by age")
    aged.assert_balanced()


def test_spilled_files_go_with_their_trajectory(make_store: Callable[..., StoreClient], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.1)
    store = make_store(retain_trajectories=0, spill_url=str(tmp_path), spill_over_kb=1)
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    trajectory = make_trajectory(lease["request"], session_id="s1").model_copy(update={"messages": [{"content": noisy(3000)}]})
    put_whole(store, trajectory, [encode_call(make_call("s1", 0, n_output=900))], lease=lease["lease_id"])
    files = lambda: [path for path in tmp_path.rglob("*") if path.is_file()]  # noqa: E731
    assert len(files()) == 2
    store.ack(store.lease_batch(1))
    wait_until(lambda: not files(), what="the files to go")


def test_a_full_redis_makes_room_by_retention(make_store: Callable[..., StoreClient], redis_server: RedisServer, monkeypatch) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.1)
    plain = make_store()
    play(plain, "g1", "g2", "g3")
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.config_set("maxmemory", "1")
        try:
            assert plain.status("POST", "/v1/rollouts", {"requests": [make_request("x", "gx").model_dump(mode="json")]})[0] == 503
            store = make_store(retain_trajectories=0)
            wait_until(lambda: kept(store) == [], what="retention on a full Redis")
        finally:
            raw.config_set("maxmemory", "0")
    store.enqueue([make_request("x", "gx")])
    store.assert_balanced()
