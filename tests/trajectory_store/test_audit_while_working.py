"""The audit reads record by record and still says what holds at one moment, while everything goes on."""

import asyncio
import threading
import time

import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_config, make_group, make_trajectory

from services.common.errors import Busy
from services.trajectory_store.accounts import audit
from services.trajectory_store.keys import Keys
from services.trajectory_store.redis_store import audits
from services.trajectory_store.store import build_store

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


def test_an_audit_balances_while_episodes_go_through(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "AT_ONCE", 2)
    store.enqueue([request for number in range(60) for request in make_group(f"old{number}", 2)])
    stop = threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        client = StoreClient(str(store.http.base_url))
        number = 0
        while not stop.is_set():
            number += 1
            client.enqueue(make_group(f"{name}-{number}", 2))
            for lease in client.lease(name, limit=3):
                client.put(make_trajectory(lease["request"], who="env" if number % 5 == 0 else ""), lease["lease_id"])
            batch = client.lease_batch(1, consumer=name)
            if batch.batch_id:
                client.ack(batch)
                done.append(batch.batch_id)
        client.close()

    workers = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(2)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 60
    verdicts = []
    while (len(verdicts) < 4 or len(done) < 5) and time.monotonic() < end:
        verdicts.append(store.call("GET", "/v1/audit"))
    stop.set()
    for worker in workers:
        worker.join()
    assert len(done) >= 5
    assert verdicts == [{"balanced": True, "problems": []}] * len(verdicts)
    store.assert_balanced()


def test_changes_between_two_steps_are_read_again(redis_server: RedisServer, store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of edge after the records were read: what is reported is the end, not a mixture."""
    monkeypatch.setattr(audits, "AT_ONCE", 1)
    store.enqueue([request for number in range(4) for request in make_group(f"g{number}", 2)])
    leases = store.lease(limit=6)
    for lease in leases[:4]:
        store.put(make_trajectory(lease["request"]), lease["lease_id"])
    held = store.lease_batch(1)

    def change() -> None:
        store.ack(held, {"g0.1": "stale"})
        store.put(make_trajectory(leases[4]["request"], who="env"), leases[4]["lease_id"])
        store.call("POST", "/v1/rollouts/cancel", {"group_ids": ["g3"]})
        store.enqueue(make_group("new", 1))
        store.put(make_trajectory(make_group("adhoc", 1)[0]))
        store.lease_batch(1)

    async def snapshot() -> list[str]:
        own = build_store(make_config(redis_server.url))
        original = own.audits._step

        async def step(audit_id: str, what: str, kind: str, cursor: str) -> list[object]:
            if what == "adhoc":
                await asyncio.to_thread(change)
            return await original(audit_id, what, kind, cursor)

        monkeypatch.setattr(own.audits, "_step", step)
        found = await own.audits.snapshot()
        await own.database.server.close()
        train = next(kind for kind in found.kinds if kind.kind == "train")
        assert {facts.episode_id for facts in train.episodes} >= {"new.0"}
        assert {facts.episode_id: facts.consumed for facts in train.episodes}["g0.1"] == "dropped"
        assert found.adhoc == {"adhoc.0"}
        return audit(found).problems

    assert asyncio.run(snapshot()) == []


def test_an_audit_waits_for_another_and_for_one_that_was_killed_not_long(
    store: StoreClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.set(KEYS.audit, "killed", px=300)
        assert store.call("GET", "/v1/audit")["balanced"]
        assert not raw.exists(KEYS.audit)
        assert not raw.exists(KEYS.touched)
        raw.set(KEYS.audit, "another")
        monkeypatch.setattr(audits, "WAIT_S", 0.2)
        status, problem = store.status("GET", "/v1/audit")
        assert (status, problem["code"]) == (Busy.status, "audit_runs")
        assert raw.get(KEYS.audit) == b"another", "the audit of somebody else goes on"
