"""The audit sees data that is missing or counted wrongly. Redis is damaged by hand, because the store itself never does it."""

from collections.abc import Callable, Iterator

import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_group, make_trajectory

from services.trajectory_store.keys import Keys

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)
Damage = Callable[["redis.Redis[bytes]"], object]


@pytest.fixture
def raw(redis_server: RedisServer) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda raw: raw.zrem(KEYS.queue("train"), "g3.0"), "g3.0 is queued by its record and found in no structure"),
        (lambda raw: raw.delete(KEYS.episode("g3.0")), "g3.0 is lost by its record"),
        (lambda raw: raw.zadd(KEYS.queue("train"), {"ghost": 1}), "ghost is found in ['queued'] and was never enqueued"),
        (lambda raw: raw.zadd(KEYS.completed, {"ghost": 1}), "ghost is listed as completed"),
        (lambda raw: raw.zrem(KEYS.ready("train"), "g2"), "group g2 is ready and is not in the ready queue"),
        (lambda raw: raw.hset(KEYS.group("g2"), "finals", 1), "group g2 counts 1 final members of 2"),
        (lambda raw: raw.hincrby(KEYS.counts("train"), "trained", 1), "the counter trained says 2, the records say 1"),
        (lambda raw: raw.hincrby(KEYS.counts("train"), "duplicated", 1), "the counter duplicated says 1"),
        (lambda raw: raw.hset(KEYS.drops("train"), "stale", 7), "the drop ledger says {'stale': 7}"),
        (lambda raw: raw.hdel(KEYS.episode("g1.0"), "consumed"), "group g1 is done with 1 members neither trained nor dropped"),
        (lambda raw: raw.hset(KEYS.episode("g3.1"), "consumed", "trained"), "g3.1 was trained without being final"),
    ],
)
def test_damage_is_named(store: StoreClient, raw: "redis.Redis[bytes]", damage: Damage, text: str) -> None:
    store.enqueue([*make_group("g1", 2), *make_group("g2", 2), *make_group("g3", 2)])
    for lease in store.lease(limit=4):
        store.put(make_trajectory(lease["request"]), lease["lease_id"])
    store.ack(store.lease_batch(1), {"g1.1": "stale"})
    store.assert_balanced()
    damage(raw)
    verdict = store.call("GET", "/v1/audit")
    assert not verdict["balanced"]
    assert any(text in problem for problem in verdict["problems"]), verdict["problems"]


def test_a_missing_episode_counts_as_lost(store: StoreClient, raw: "redis.Redis[bytes]") -> None:
    store.enqueue(make_group("g1", 2))
    raw.zrem(KEYS.queue("train"), "g1.0")
    assert store.stats()["lost"] == 1
