"""Trajectories that bring their token tree along, packing, compression, spilling, limits."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import redis
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import (
    EXPERIMENT,
    TRIAL,
    RedisServer,
    StoreClient,
    make_call,
    make_config,
    make_group,
    make_request,
    make_trajectory,
    wait_until,
)

from services.common.wire.call_log import LogEntry
from services.common.wire.calls import CallRecord, encode_call
from services.common.wire.rollouts import Trajectory
from services.common.wire.store import WholeTrajectory
from services.trajectory_store.keys import Keys
from services.trajectory_store.spill import Bodies, BodyLost
from services.trajectory_store.store import build_store
from services.trajectory_store.tree_codec import expand, pack_tree, squeeze, unpack_tree

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


def put_whole(store: StoreClient, trajectory: Trajectory, calls: list[bytes], *, lease: str = "", zstd: bool = False) -> tuple[int, dict]:
    body = msgspec.msgpack.encode(WholeTrajectory(trajectory=trajectory.model_dump(mode="json"), calls=calls))
    headers = {"Content-Type": "application/msgpack"} | ({"X-Lease-Id": lease} if lease else {})
    if zstd:
        body, headers = zstandard.compress(body), headers | {"Content-Encoding": "zstd"}
    answer = store.http.put(f"/v1/trajectories/{trajectory.episode_id}", content=body, headers=headers)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("zstd", [False, True])
def test_one_request_stores_messages_and_tokens(store: StoreClient, zstd: bool) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    records = [make_call("s1", ordinal) for ordinal in range(30)]
    calls = [encode_call(record) for record in records]
    trajectory = make_trajectory(lease["request"], session_id="s1")
    assert put_whole(store, trajectory, calls[::-1], lease=lease["lease_id"], zstd=zstd) == (200, {"outcome": "stored"})
    assert put_whole(store, trajectory, calls, lease=lease["lease_id"]) == (200, {"outcome": "duplicate"})
    view = store.view("s1")
    assert (view["sealed"], view["n_calls"], view["open_intents"]) == (True, 30, [])
    assert store.log(("s1", "c9", "d"))[0].status == 409
    [episode] = store.lease_batch().groups[0].episodes
    assert episode.complete
    assert episode.calls == calls
    assert msgspec.msgpack.decode(store.http.get("/v1/sessions/s1/calls").content, type=list[bytes]) == calls
    store.assert_balanced()


def test_what_does_not_belong_together_is_refused(store: StoreClient) -> None:
    trajectory = make_trajectory(make_request("e1"), session_id="s1")
    call = encode_call(make_call("s1"))
    other = encode_call(make_call("s2"))
    newer = msgspec.msgpack.encode(msgspec.structs.replace(make_call("s1"), schema_version=99))
    nameless = trajectory.model_copy(update={"session_id": None})
    for sent, calls, text in (
        (trajectory, [call, other], "belong to ['s1', 's2']"),
        (nameless, [call], "session_id=None"),
        (trajectory, [newer], "schema_version: 99 is newer"),
        (trajectory, [b"junk"], "not a call record"),
    ):
        status, problem = put_whole(store, sent, calls)
        assert status == 400
        assert text in problem["detail"]
    answer = store.http.put("/v1/trajectories/e1", content=b"\xff", headers={"Content-Type": "application/msgpack"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_trajectory")
    broken = store.http.put("/v1/trajectories/e1", content=b"plain", headers={"Content-Encoding": "zstd"})
    assert broken.status_code == 400
    assert store.status("GET", "/v1/trajectories/e1")[0] == 404


def test_a_small_zstd_body_cannot_unpack_into_a_large_one(make_store: Callable[..., StoreClient]) -> None:
    store = make_store(max_body_mb=1)
    bomb = zstandard.compress(bytes(200 * 2**20))
    answer = store.http.put("/v1/trajectories/e1", content=bomb, headers={"Content-Encoding": "zstd"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_recorded_calls_are_packed_once_their_trajectory_is_final(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    records = store.play_session("s1", 20)
    with redis.Redis.from_url(redis_server.url) as raw:
        before = raw.memory_usage(KEYS.session("s1"), samples=0)
        store.put(make_trajectory(lease["request"], session_id="s1"), lease["lease_id"])
        wait_until(lambda: raw.llen(KEYS.unpacked) == 0 and raw.hexists(KEYS.session("s1"), "tree"), what="packing")
        assert raw.memory_usage(KEYS.session("s1"), samples=0) < before / 2
        assert raw.ttl(KEYS.session("s1")) == -1
    assert store.view("s1")["n_calls"] == 20
    store.record(records[3])
    [episode] = store.lease_batch().groups[0].episodes
    assert episode.calls == [encode_call(record) for record in records]
    assert store.call("GET", "/v1/stats")["body_bytes"] > 0


def noisy(n_bytes: int) -> str:
    return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=n_bytes))


def noisy_call(session_id: str, ordinal: int) -> CallRecord:
    output = random.Random(ordinal).randbytes(4 * 400)
    call = make_call(session_id, ordinal)
    return msgspec.structs.replace(call, output=output, logprobs=output, versions=[(0, 400)])


def test_large_bodies_are_spilled_and_come_back(make_store: Callable[..., StoreClient], redis_server: RedisServer, tmp_path: Path) -> None:
    store = make_store(spill_url=f"file://{tmp_path}", spill_over_kb=1)
    store.enqueue([*make_group("g1", 1), *make_group("g2", 1)])
    whole, recorded = store.lease(limit=2)
    calls = [noisy_call("s1", ordinal) for ordinal in range(3)]
    text = noisy(5000)
    messages = [{"role": "user", "content": text}]
    first = make_trajectory(whole["request"], session_id="s1").model_copy(update={"messages": messages})
    assert put_whole(store, first, [encode_call(call) for call in calls], lease=whole["lease_id"])[1] == {"outcome": "stored"}
    store.open("s2")
    for ordinal in range(4):
        store.record(noisy_call("s2", ordinal))
    store.seal("s2")
    store.put(make_trajectory(recorded["request"], session_id="s2"), recorded["lease_id"])
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) >= 2
    with redis.Redis.from_url(redis_server.url) as raw:
        assert raw.strlen(KEYS.messages("g1.0")) < 200
        wait_until(lambda: raw.llen(KEYS.unpacked) == 0, what="packing")
    assert store.get("g1.0").messages == messages
    batch = store.lease_batch(2)
    assert [len(group.episodes[0].calls) for group in batch.groups] == [3, 4]
    page = store.call("GET", f"/v1/trajectories?text={text[100:120]}")
    assert [item["episode_id"] for item in page["items"]] == ["g1.0"]


async def test_packing_spills_too(redis_server: RedisServer, tmp_path: Path) -> None:
    store = build_store(make_config(redis_server.url, spill_url=str(tmp_path), spill_over_kb=1), trial="lab/packing")
    records = [noisy_call("s1", ordinal) for ordinal in range(3)]
    await store.sessions.open("s1")
    for record in records:
        await store.sessions.log([LogEntry("s1", record.call_id, record=encode_call(record))])
    await store.sessions.seal("s1")
    await store.trajectories.put(make_trajectory(make_request("e1"), session_id="s1"), "")
    assert await store.sessions.pack() == 1
    assert await store.sessions.pack() == 0
    assert len(list((tmp_path / "lab" / "packing").glob("*/s1.tree.*"))) == 1
    assert await store.sessions.calls("s1") == [encode_call(record) for record in records]
    await store.database.server.close()


def test_a_spill_that_cannot_be_written_is_503_and_nothing_is_half_done(make_store: Callable[..., StoreClient], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    store = make_store(spill_url=str(blocked / "below"), spill_over_kb=1)
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    large = make_trajectory(lease["request"]).model_copy(update={"messages": [{"role": "user", "content": noisy(5000)}]})
    status, problem = store.status("PUT", "/v1/trajectories/g1.0", large.model_dump(mode="json"))
    assert (status, problem["code"]) == (503, "spill_failed")
    assert store.heartbeat("w1", lease["lease_id"]) == []
    blocked.unlink()
    assert store.put(large, lease["lease_id"]) == "stored"


async def test_bodies_go_to_any_fsspec_url() -> None:
    bodies = Bodies("memory://spill", 10, "exp/trial")
    assert await bodies.keep("small", b"tiny") == b"tiny"
    held = await bodies.keep("large", b"x" * 11)
    assert held.startswith(b"@exp/trial/")
    assert await bodies.load(held) == b"x" * 11
    await bodies.delete([held.decode(), held.decode()])
    with pytest.raises(BodyLost):
        await bodies.load(held)
    with pytest.raises(ValueError, match="spill_url"):
        Bodies("nosuchscheme://x", 1, "exp/trial")


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_packing_gives_back_every_byte(records: list[bytes]) -> None:
    assert unpack_tree(pack_tree(records)) == records


def test_compression_only_where_it_pays() -> None:
    assert squeeze(b"ab") == b"ab"
    noise = random.Random(2).randbytes(1000)
    assert squeeze(noise) == noise
    assert len(squeeze(b"a" * 1000)) < 100
    assert expand(squeeze(b"a" * 1000)) == b"a" * 1000
    with pytest.raises(ValueError, match="zstd"):
        expand(zstandard.FRAME_HEADER + b"broken")


async def test_a_stuck_object_store_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from services.common.errors import Unavailable
    from services.trajectory_store import spill

    monkeypatch.setattr(spill, "DEADLINE_S", 0.05)
    bodies = Bodies("memory://stuck", 1, "exp/trial")
    monkeypatch.setattr(spill.Folder, "write", lambda *_: time.sleep(0.3))
    with pytest.raises(Unavailable, match="cannot be written"):
        await bodies.keep("name", b"body")
    await asyncio.sleep(0.35)
