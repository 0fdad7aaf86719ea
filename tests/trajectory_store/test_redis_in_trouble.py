"""Disk full, slow, stuck, evicting, replica, and a Redis that came back without its last writes."""

import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis
from mortal_redis import aof
from store_helpers import (
    Front,
    RedisServer,
    StoreClient,
    StoreThread,
    make_config,
    make_group,
    make_request,
    make_trajectory,
    wait_until,
)

from services.trajectory_store import upkeep
from services.trajectory_store.durability import refusal, risks
from services.trajectory_store.redis_store import connection


class FullDisk(RedisServer):
    """A Redis that may write files of at most ``n_bytes``: what a full disk looks like to it."""

    def limit(self, n_bytes: int) -> None:
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[FullDisk]:
    # Ignored signals stay ignored in a child: the write then fails with "file too large" instead of killing it.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with FullDisk(tmp_path, "--appendonly", "yes", "--appendfsync", "everysec", "--logfile", "/dev/null") as server:
            yield server
    finally:
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_503_with_its_reason_and_recovers(small_disk: FullDisk, tmp_path: Path) -> None:
    with StoreThread(make_config(small_disk.url)) as server:
        store = StoreClient(server.url)
        store.enqueue(make_group("g1", 1))
        [lease] = store.lease()
        size = max(path.stat().st_size for path in tmp_path.rglob("*.aof"))
        small_disk.limit(size + 100)
        refused = wait_for_status(store, 503)
        assert refused["code"] == "redis_misconf"
        assert "AOF" in refused["detail"] or "disk" in refused["detail"]
        assert store.status("GET", "/v1/stats")[0] == 200, "reading goes on"
        small_disk.limit(resource.RLIM_INFINITY)
        wait_until(lambda: store.status("PUT", "/v1/documents/probe", {})[0] == 204, 20, "room on the disk")
        assert store.put(make_trajectory(lease["request"]), lease["lease_id"]) == "stored"
        store.assert_balanced()
        store.close()


@pytest.mark.parametrize(
    ("trouble", "cure", "code"), [("maxmemory 1", "maxmemory 0", "redis_oom"), ("replica", "primary", "redis_readonly")]
)
def test_the_first_write_of_a_trial_is_refused_like_any_other(redis_server: RedisServer, trouble: str, cure: str, code: str) -> None:
    def put(raw: redis.Redis, state: str) -> None:
        if state.startswith("maxmemory"):
            raw.config_set(*state.split())
        else:
            raw.replicaof(*(("127.0.0.1", 1) if state == "replica" else ("NO", "ONE")))

    with StoreThread(make_config(redis_server.url)) as server, redis.Redis.from_url(redis_server.url) as raw:
        store = StoreClient(server.url)
        put(raw, trouble)
        try:
            status, problem = store.status("POST", "/v1/rollouts", {"requests": [make_request("x", "gx").model_dump(mode="json")]})
        finally:
            put(raw, cure)
        assert (status, problem["code"]) == (503, code)
        store.enqueue([make_request("x", "gx")])
        store.close()


def wait_for_status(store: StoreClient, wanted: int) -> dict[str, str]:
    end = time.monotonic() + 20
    while True:
        status, body = store.status("PUT", "/v1/documents/probe", {"at": time.time()})
        if status == wanted:
            return body
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_slow_redis_slows_requests_and_loses_none(redis_server: RedisServer) -> None:
    with Front(redis_server.port) as front, StoreThread(make_config(f"redis://127.0.0.1:{front.port}/0")) as server:
        store = StoreClient(server.url)
        store.enqueue(make_group("g1", 12))
        front.delay_s = 0.2
        outcomes: list[str] = []

        def play() -> None:
            client = StoreClient(server.url)
            for lease in client.lease("w1", limit=3):
                outcomes.append(client.put(make_trajectory(lease["request"]), lease["lease_id"]))
            client.close()

        threads = [threading.Thread(target=play) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == ["stored"] * 12
        front.delay_s = 0.0
        store.assert_balanced()
        store.close()


def test_a_stuck_redis_is_503_within_the_deadline_and_recovers(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 0.5)
    with Front(redis_server.port) as front, StoreThread(make_config(f"redis://127.0.0.1:{front.port}/0")) as server:
        store = StoreClient(server.url)
        store.enqueue(make_group("g1", 1))
        front.delay_s = 60
        started = time.monotonic()
        status, problem = store.status("POST", "/v1/rollouts/lease", {"worker_id": "w1"})
        assert (status, problem["code"]) == (503, "redis_unreachable")
        assert time.monotonic() - started < 5
        assert store.status("GET", "/readyz")[0] == 503
        front.delay_s = 0
        wait_until(lambda: store.status("GET", "/readyz")[0] == 200, what="Redis")
        wait_until(lambda: store.stats()["running"] + store.stats()["queued"] == 1, what="the accounts")
        store.assert_balanced()
        store.close()


def test_too_many_bytes_at_once_are_refused_and_come_through_later(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_body_mb=2, max_inflight_body_mb=1)
    sent, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b'{"a": "' + b"x" * (900 * 1024)
        sent.set()
        go_on.wait(10)
        yield b'"}'

    def hold() -> None:
        with httpx.Client(base_url=store.http.base_url, timeout=20) as client:
            client.put("/v1/trajectories/slow", content=slowly())

    holder = threading.Thread(target=hold)
    holder.start()
    assert sent.wait(10)
    time.sleep(0.3)  # the store reads what was sent
    body = make_trajectory(make_request("e1")).model_copy(update={"messages": [{"content": "y" * 300_000}]}).model_dump(mode="json")
    wait_until(lambda: store.status("PUT", "/v1/trajectories/e1", body)[0] == 429, what="back-pressure")
    go_on.set()
    holder.join()
    assert store.status("PUT", "/v1/trajectories/e1", body)[0] == 200


def test_evicting_redis_is_called_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path, *options) as server, caplog.at_level(logging.WARNING), StoreThread(make_config(server.url)) as thread:
        store = StoreClient(thread.url)
        text = store.call("GET", "/readyz")["checks"]["redis"]
        assert "appendfsync is no" in text
        assert "maxmemory-policy is allkeys-lru" in text
        wait_until(lambda: 'redis_data_at_risk{risk="eviction"} 1.0' in store.http.get("/metrics").text, what="the metric")
        store.close()
    assert any("allkeys-lru" in record.message for record in caplog.records)


def test_what_redis_says_of_itself_is_judged() -> None:
    fine = {"redis_version": "6.2.14", "aof_enabled": 1, "role": "master", "aof_last_write_status": "ok"}
    assert refusal(fine) == ""
    assert risks(fine, {"appendfsync": "everysec", "maxmemory-policy": "noeviction"}) == {}
    assert risks(fine, {}) == {}, "where CONFIG is forbidden nothing is invented"
    assert "6.0.1 is too old" in refusal(fine | {"redis_version": "6.0.1"})
    assert "replica" in refusal(fine | {"role": "slave"})
    assert "loading" in refusal(fine | {"loading": 1})
    assert set(risks(fine | {"aof_enabled": 0, "aof_last_write_status": "err", "maxmemory_policy": "volatile-lru"}, {})) == {
        "appendonly",
        "aof_write",
        "eviction",
    }


def test_a_redis_that_lost_its_last_writes_is_reported(
    redis_server: RedisServer, make_store: Callable[..., StoreClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.2)
    store = make_store()
    store.enqueue(make_group("g1", 2))
    leases = store.lease(limit=2)
    store.put(make_trajectory(leases[0]["request"]), leases[0]["lease_id"])
    time.sleep(0.6)
    size = aof(redis_server.folder).stat().st_size
    store.put(make_trajectory(leases[1]["request"]), leases[1]["lease_id"])
    time.sleep(0.6)
    redis_server.kill()
    os.truncate(aof(redis_server.folder), size)  # a power cut before the next fsync
    redis_server.start()

    def reported(what: str) -> bool:  # every store that notices reports
        return any(what in text for text in store.status("GET", "/v1/stats")[1].get("losses", {}).values())

    wait_until(lambda: reported("Redis lost acknowledged writes") and reported("1 trajectories"), what="the report")
    wait_until(lambda: reported("another Redis process answers"), 20, "the report of the restart")
    store.assert_balanced()
    assert store.put(make_trajectory(leases[1]["request"]), leases[1]["lease_id"]) == "stored", "the worker's repeat makes it good"
    with redis.Redis.from_url(redis_server.url) as raw:
        assert raw.info("persistence")["aof_enabled"] == 1
