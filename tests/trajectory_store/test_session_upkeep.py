"""Rewards of sessions, sessions opened under a client's own key, grants, and forgetting sessions that nobody finished."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_call, make_config, make_group, make_request, make_trajectory

from services.common.wire.call_log import LogEntry
from services.common.wire.calls import encode_call
from services.trajectory_store.keys import Keys
from services.trajectory_store.store import Store, build_store

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)
DIGEST = "ab" * 32


def reward(store: StoreClient, session_id: str = "s1", **fields: Any) -> int:
    return store.status("PUT", f"/v1/sessions/{session_id}/rewards", {"value": 1.0, **fields})[0]


def rewards(store: StoreClient, session_id: str = "s1") -> list[tuple[str | None, str, float | None]]:
    items = store.call("GET", f"/v1/sessions/{session_id}/rewards")["items"]
    return [(item["call_id"], item["name"], item["value"]) for item in items]


def open_new(store: StoreClient, session_id: str, opener: str, **fields: Any) -> tuple[int, str]:
    status, answer = store.status("PUT", f"/v1/sessions/{session_id}", {"opener": opener, **fields})
    return status, answer.get("error", {}).get("code", "")


def test_a_reward_is_kept_by_call_and_name_until_a_trajectory_names_the_session(store: StoreClient) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    store.play_session("s1", 2)
    assert reward(store, call_id="s1-call0") == 204
    assert reward(store, call_id="s1-call0", value=0.25) == 204
    assert reward(store, call_id="s1-call0", name="format", value=None) == 204
    assert reward(store, source="judge", value=-1) == 204
    assert rewards(store) == [(None, "reward", -1.0), ("s1-call0", "format", None), ("s1-call0", "reward", 0.25)]
    assert reward(store, call_id="nobody") == 400
    assert reward(store, value="much") == 400
    assert reward(store, "other") == 404
    assert store.view("s1")["n_rewards"] == 3
    store.put(make_trajectory(lease["request"], session_id="s1"), lease["lease_id"])
    assert store.view("s1")["closed"] == "trajectory"
    assert reward(store, source="judge", value=-1) == 204, "a repeat of what is known changes nothing"
    assert reward(store, value=5) == 409
    assert len(rewards(store)) == 3
    [group] = store.lease_batch().groups
    assert (group.episodes[0].complete, len(group.episodes[0].calls)) == (True, 2)


def test_a_session_is_opened_once_under_a_key(store: StoreClient) -> None:
    assert open_new(store, "t-0", "o1", key_digest=DIGEST) == (200, "")
    assert open_new(store, "t-0", "o1", key_digest=DIGEST) == (200, ""), "a repeat after a lost answer"
    assert open_new(store, "t-0", "o2") == (409, "session_exists")
    assert open_new(store, "t-1", "o2", key_digest=DIGEST) == (409, "key_bound")
    assert store.call("GET", f"/v1/session_keys/{DIGEST}") == {"session_id": "t-0"}
    store.seal("t-0")
    assert open_new(store, "t-1", "o2", key_digest=DIGEST) == (200, "")
    assert store.call("GET", f"/v1/session_keys/{DIGEST}") == {"session_id": "t-1"}
    store.put(make_trajectory(make_request("e0"), session_id="t-0"))
    assert store.call("GET", f"/v1/session_keys/{DIGEST}") == {"session_id": "t-1"}
    store.put(make_trajectory(make_request("e1"), session_id="t-1"))
    assert store.status("GET", f"/v1/session_keys/{DIGEST}")[0] == 404


def test_a_grant_lets_one_session_begin(store: StoreClient) -> None:
    assert open_new(store, "t-0", "o1", grants=0) == (409, "no_grant")
    assert store.status("GET", "/v1/sessions/t-0")[0] == 404
    assert store.call("POST", "/v1/grants", {"initial": 0}) == {"capacity": 1}
    assert open_new(store, "t-0", "o1", grants=0) == (200, "")
    assert open_new(store, "t-0", "o1", grants=0) == (200, ""), "a repeat takes no second grant"
    assert open_new(store, "t-1", "o2", grants=0) == (409, "no_grant")
    assert open_new(store, "t-2", "o3") == (200, ""), "where none is needed none is taken"


def test_intents_say_what_was_begun_and_how_much_is_recorded(store: StoreClient) -> None:
    store.open("s1")
    assert store.begin("s1", "s1-call0", "a") == 0
    assert store.call("GET", "/v1/sessions/s1/intents") == {"items": {"s1-call0": "a"}}
    for _ in range(2):
        store.record(make_call("s1"))
    assert store.begin("s1", "c1", "b") == 1
    assert store.call("GET", "/v1/sessions/s1/intents") == {"items": {"c1": "b"}}


@pytest.fixture
async def parts(redis_server: RedisServer) -> AsyncIterator[Store]:
    """The store without HTTP; sessions live for a second."""
    store = build_store(make_config(redis_server.url, session_ttl_s=1), trial="lab/sweeping")
    yield store
    await store.database.server.close()


async def test_idle_sessions_are_forgotten_with_the_reason(parts: Store) -> None:
    sessions = parts.sessions
    for name in ("unused", "unsealed", "incomplete", "unclaimed", "exported", "claimed", "busy"):
        await sessions.open(name)
        if name != "unused":
            await sessions.log([LogEntry(name, "c0", "d"), LogEntry(name, "c0", record=encode_call(make_call(name, 0, "c0")))])
    await sessions.log([LogEntry("incomplete", "c1", "d")])
    for name in ("incomplete", "unclaimed", "claimed"):
        await sessions.seal(name)
    assert (await sessions.seal("exported", exported=True)).closed == "exported"
    await parts.trajectories.put(make_trajectory(make_request("e1"), session_id="claimed"), "")
    assert await sessions.sweep() == []
    await asyncio.sleep(0.7)
    await sessions.log([LogEntry("busy", "c1", "d")])
    await asyncio.sleep(0.5)
    swept = {item.session_id: (item.reason, item.n_calls) for item in await sessions.sweep()}
    assert swept == {
        "unused": ("unused", 0),
        "unsealed": ("unsealed", 1),
        "incomplete": ("incomplete", 1),
        "unclaimed": ("unclaimed", 1),
    }
    assert (await sessions.view("busy")).n_calls == (await sessions.view("claimed")).n_calls == 1
    assert (await sessions.view("exported")).closed == "exported", "it stays a while for whoever exports again"
    ledger = (await parts.ledger.drops(5))["sessions"]
    assert ledger["counts"] == {"unused": 1, "unsealed": 1, "incomplete": 1, "unclaimed": 1}
    assert ledger["examples"]["unsealed"] == ["unsealed"]


def test_a_lost_attempt_says_why_nobody_claims_its_session(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    store.play_session("s1")
    failed = make_trajectory(lease["request"], session_id="s1", who="infra")
    assert store.put(failed, lease["lease_id"]) == "retry"
    assert store.view("s1")["closed"] == "retried"
    with redis.Redis.from_url(redis_server.url) as raw:
        assert raw.zscore(KEYS.unclaimed, "s1") is not None
