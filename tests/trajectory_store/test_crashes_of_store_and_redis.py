"""kill -9 of Redis and of the store, a Redis that is away, full, or would lose data."""

import itertools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from store_helpers import (
    EXPERIMENT,
    TRIAL,
    RedisServer,
    StoreClient,
    StoreProcess,
    StoreThread,
    make_call,
    make_config,
    make_group,
    make_trajectory,
    wait_until,
)

from services.common.frames import framed
from services.common.wire.call_log import LogEntry, encode_log
from services.trajectory_store.keys import Keys

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


def test_kill_of_redis_loses_nothing_acknowledged(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue([*make_group("g1", 2), *make_group("g2", 2)])
    leases = store.lease(limit=3)
    for lease in leases[:2]:
        store.play_session(lease["request"]["episode_id"] + ".a1")
        trajectory = make_trajectory(lease["request"], session_id=lease["request"]["episode_id"] + ".a1")
        store.put(trajectory, lease["lease_id"])
    batch = store.lease_batch()
    before = store.stats()

    redis_server.kill()
    status, problem = store.status("GET", "/v1/stats")
    assert (status, problem["code"]) == (503, "redis_unreachable")
    assert store.status("GET", "/readyz")[0] == 503
    assert store.status("GET", "/healthz")[0] == 200
    redis_server.start()
    wait_until(lambda: store.status("GET", "/readyz")[0] == 200)

    assert store.stats() == before
    assert store.heartbeat("w1", *(lease["lease_id"] for lease in leases)) == [lease["lease_id"] for lease in leases[:2]]
    again = store.lease_batch()
    assert again.redelivered
    assert again.groups == batch.groups
    assert all(episode.complete for episode in again.groups[0].episodes)
    store.ack(again)
    store.assert_balanced()


@pytest.fixture
def synced_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


def test_calls_acknowledged_while_redis_is_killed_are_there_afterwards(synced_redis: RedisServer) -> None:
    with StoreThread(make_config(synced_redis.url)) as server:
        store = StoreClient(server.url)
        write_and_kill(store, synced_redis)
        store.close()


def write_and_kill(store: StoreClient, redis_server: RedisServer) -> None:
    acknowledged: list[str] = []
    stop = threading.Event()

    def write(session_id: str) -> None:
        client = StoreClient(str(store.http.base_url))
        client.open(session_id)
        for ordinal in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            try:
                client.record(make_call(session_id, ordinal))
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == 503
            else:
                acknowledged.append(f"{session_id}-call{ordinal}")
        client.close()

    writers = [threading.Thread(target=write, args=(f"s{number}",)) for number in range(3)]
    for writer in writers:
        writer.start()
    for _ in range(2):
        seen = len(acknowledged)
        wait_until(lambda seen=seen: len(acknowledged) > seen + 20, what="more calls")
        redis_server.restart()
    stop.set()
    for writer in writers:
        writer.join()
    with redis.Redis.from_url(redis_server.url) as raw:
        stored = {name.decode() for number in range(3) for name in raw.hkeys(KEYS.session(f"s{number}"))}
    assert {f"c:{call_id}" for call_id in acknowledged} <= stored
    assert len(acknowledged) > 40


def test_kill_of_the_store_loses_nothing(store_process: StoreProcess) -> None:
    store_process.start()
    store = StoreClient(store_process.url)
    store.enqueue([*make_group("g1", 1), *make_group("g2", 1)])
    first, second = store.lease(limit=2)
    store.open("s1")
    store.begin("s1", "c1")
    store.put(make_trajectory(first["request"]), first["lease_id"])
    store.call("POST", "/v1/policy_versions", {"version": 3, "path": "weights/v3"})
    batch = store.lease_batch()

    store_process.kill()
    with pytest.raises(Exception, match=r"refused|disconnected|reset"):
        store.stats()
    store_process.start()

    assert store.put(make_trajectory(first["request"]), first["lease_id"]) == "duplicate"
    assert store.view("s1")["open_intents"] == ["c1"]
    assert store.heartbeat("w1", second["lease_id"]) == []
    assert store.put(make_trajectory(second["request"]), second["lease_id"]) == "stored"
    again = store.lease_batch()
    assert again.redelivered
    assert (again.batch_id, again.groups) == (batch.batch_id, batch.groups)
    store.ack(again)
    assert store.call("GET", "/v1/stats")["policy_version"] == 3
    store.assert_balanced()
    store.close()


def test_a_store_without_redis_starts_and_says_so(redis_server: RedisServer) -> None:
    redis_server.kill()
    with StoreThread(make_config(redis_server.url)) as server:
        store = StoreClient(server.url)
        status, body = store.status("GET", "/readyz")
        assert status == 503
        assert str(redis_server.port) in body["checks"]["redis"]
        answer = store.http.post("/v1/call_log", content=framed(encode_log([LogEntry("s1", "c1", "d")])))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        redis_server.start()
        wait_until(lambda: store.status("GET", "/readyz")[0] == 200)
        store.enqueue(make_group("g1", 1))
        store.close()


def test_a_full_redis_is_503_with_its_own_words_and_recovers(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    body = make_trajectory(lease["request"]).model_dump(mode="json")
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.config_set("maxmemory", "1")
        try:
            status, problem = store.status("PUT", "/v1/trajectories/g1.0", body)
            assert (status, problem["code"]) == (503, "redis_oom")
            assert store.stats()["running"] == 1, "a refused write leaves nothing half done"
        finally:
            raw.config_set("maxmemory", "0")
    assert store.put(make_trajectory(lease["request"]), lease["lease_id"]) == "stored"
    store.assert_balanced()


def test_a_redis_without_aof_is_ready_but_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(tmp_path, "--appendonly", "no") as server, StoreThread(make_config(server.url)) as thread:
        store = StoreClient(thread.url)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                ready = store.call("GET", "/readyz")
                assert ready["ready"]
                assert ready["checks"]["redis"].startswith("ok, but acknowledged data can be lost: appendonly is off")
        store.close()
    assert len([record for record in caplog.records if "appendonly is off" in record.message]) == 1
