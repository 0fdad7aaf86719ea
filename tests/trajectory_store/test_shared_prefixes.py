"""What the prompts of a trial begin with is kept once, survives retention and a Redis that forgot it, and never changes what is read."""

from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_call, make_group, make_request, make_trajectory, wait_until

from services.common.wire.calls import CallRecord, encode_call, pack_ids
from services.common.wire.store import WholeTrajectory
from services.trajectory_store import upkeep
from services.trajectory_store.keys import PREFIXES_KEPT, Keys
from services.trajectory_store.tree_codec import ALIKE_BYTES, Prefix, pack_tree, prefix_of, shared_prefix, unpack_tree, without_prefix

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


@pytest.fixture
def raw(redis_server: RedisServer) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def policy(seed: int, n_tokens: int = 8000) -> bytes:
    """A long prompt that zstd alone cannot shorten much."""
    return pack_ids((seed + 1) * (number + 1) * 2654435761 % 150_000 for number in range(n_tokens))


def calls_of(session_id: str, prompt: bytes) -> list[CallRecord]:
    first = msgspec.structs.replace(make_call(session_id, 0), prompt=prompt)
    return [first, *(make_call(session_id, ordinal) for ordinal in range(1, 4))]


def put_whole(store: StoreClient, name: str, prompt: bytes) -> list[bytes]:
    calls = [encode_call(call) for call in calls_of(f"{name}.a1", prompt)]
    trajectory = make_trajectory(make_request(name, f"g-{name}"), session_id=f"{name}.a1").model_dump(mode="json")
    body = msgspec.msgpack.encode(WholeTrajectory(trajectory=trajectory, calls=calls))
    store.http.put(f"/v1/trajectories/{name}", content=body, headers={"Content-Type": "application/msgpack"}).raise_for_status()
    return calls


def read(store: StoreClient, session_id: str) -> list[bytes]:
    answer = store.http.get(f"/v1/sessions/{session_id}/calls")
    answer.raise_for_status()
    return msgspec.msgpack.decode(answer.content, type=list[bytes])


def test_a_prompt_is_kept_once(store: StoreClient, raw: "redis.Redis[bytes]") -> None:
    prompts = {name: policy(1) + pack_ids(range(number * 50)) for number, name in enumerate(("e1", "e2", "e3"))}
    written = {name: put_whole(store, name, prompt) for name, prompt in prompts.items()}
    assert raw.hlen(KEYS.prefixes) == 1
    sizes = [len(raw.hget(KEYS.session(f"{name}.a1"), "tree")) for name in prompts]
    assert max(sizes) < len(prompts["e1"]) / 10
    assert {name: read(store, f"{name}.a1") for name in prompts} == written


def test_retention_leaves_what_sessions_share(
    make_store: Callable[..., StoreClient], raw: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.2)
    store = make_store(retain_trajectories=1)
    store.enqueue([*make_group("g1", 1), *make_group("g2", 1), *make_group("g3", 1)])
    written: dict[str, list[bytes]] = {}
    for lease in store.lease(limit=3):
        session_id = lease["request"]["episode_id"] + ".a1"
        store.open(session_id)
        calls = calls_of(session_id, policy(2))
        for call in calls:
            store.begin(session_id, call.call_id)
            store.record(call)
        store.seal(session_id)
        store.put(make_trajectory(lease["request"], session_id=session_id), lease["lease_id"])
        written[session_id] = [encode_call(call) for call in calls]
    wait_until(lambda: not raw.llen(KEYS.unpacked), what="packing")
    batch = store.lease_batch(3)
    assert [group.episodes[0].calls for group in batch.groups] == list(written.values())
    store.ack(batch)
    wait_until(lambda: raw.zcard(KEYS.completed) == 1, what="retention")
    assert raw.hlen(KEYS.prefixes) == 1
    assert read(store, "g3.0.a1") == written["g3.0.a1"]


def test_a_redis_that_forgot_a_prefix_is_given_it_again(store: StoreClient, raw: "redis.Redis[bytes]") -> None:
    first = put_whole(store, "e1", policy(3))
    raw.delete(KEYS.prefixes, KEYS.prefix_names)
    second = put_whole(store, "e2", policy(3))
    assert (read(store, "e1.a1"), read(store, "e2.a1")) == (first, second)
    assert raw.hlen(KEYS.prefixes) == 1


def test_a_prefix_that_is_gone_is_said(store: StoreClient, make_store: Callable[..., StoreClient], raw: "redis.Redis[bytes]") -> None:
    put_whole(store, "e1", policy(4))
    raw.delete(KEYS.prefixes)
    status, problem = make_store().status("GET", "/v1/sessions/e1.a1/calls")
    assert (status, problem["error"]["code"]) == (500, "prefix_lost")


def test_there_are_only_so_many_prefixes(store: StoreClient, raw: "redis.Redis[bytes]") -> None:
    written = [put_whole(store, f"e{number}", policy(number, ALIKE_BYTES // 4)) for number in range(PREFIXES_KEPT + 2)]
    assert raw.hlen(KEYS.prefixes) == PREFIXES_KEPT
    assert [read(store, f"e{number}.a1") for number in range(PREFIXES_KEPT + 2)] == written


def test_what_is_shared_is_the_first_prompt_where_it_is_long() -> None:
    long, short = policy(5), pack_ids(range(100))
    records = [encode_call(call) for call in calls_of("s", long)]
    assert shared_prefix(records) == long
    assert shared_prefix([encode_call(call) for call in calls_of("s", short)]) == b""
    assert shared_prefix(records[1:]) == b"", "a branch does not begin with the policy"
    assert shared_prefix([]) == b""
    prefix = Prefix(long)
    blob = pack_tree(records, prefix)
    assert prefix_of(blob) == prefix.digest
    assert unpack_tree(without_prefix(blob, prefix)) == records
    assert prefix_of(pack_tree(records)) == b""
    with pytest.raises(ValueError, match="not a zstd frame"):
        without_prefix(blob[:-10], prefix)
