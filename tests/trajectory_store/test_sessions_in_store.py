"""Sessions: intents, call records, sealing, and what makes a session incomplete."""

import msgspec
import redis
from store_helpers import RedisServer, StoreClient, make_call, make_request, make_trajectory

from services.common.frames import framed
from services.common.wire.call_log import LogEntry, encode_log
from services.common.wire.calls import CallRecord, decode_call, encode_call


def test_calls_come_back_byte_for_byte_in_ordinal_order(store: StoreClient) -> None:
    store.open("s1")
    records = [make_call("s1", ordinal) for ordinal in range(12)]
    for record in reversed(records):
        store.begin("s1", record.call_id)
        store.record(record)
    answer = store.http.get("/v1/sessions/s1/calls")
    encoded = msgspec.msgpack.decode(answer.content, type=list[bytes])
    assert encoded == [encode_call(record) for record in records]
    assert [decode_call(data).ordinal for data in encoded] == list(range(12))


def test_an_intent_is_open_until_its_call_is_recorded(store: StoreClient) -> None:
    store.open("s1")
    store.begin("s1", "s1-call0")
    store.begin("s1", "s1-call0")
    assert store.view("s1")["open_intents"] == ["s1-call0"]
    record = make_call("s1")
    store.record(record)
    store.record(msgspec.structs.replace(record, finish_reason="other"))
    store.begin("s1", "s1-call0")
    view = store.view("s1")
    assert (view["open_intents"], view["n_calls"], view["sealed"]) == ([], 1, False)
    [kept] = msgspec.msgpack.decode(store.http.get("/v1/sessions/s1/calls").content, type=list[bytes])
    assert decode_call(kept).finish_reason == "stop", "the first record of a call id stays"


def test_a_call_id_belongs_to_one_request(store: StoreClient) -> None:
    store.open("s1")
    store.begin("s1", "c1", digest="a")
    [outcome] = store.log(("s1", "c1", "b"))
    assert (outcome.status, outcome.code) == (409, "digest_mismatch")


def test_a_sealed_session_takes_nothing_new(store: StoreClient) -> None:
    [record] = store.play_session("s1", 1)
    assert store.seal("s1")["sealed"] is True
    assert store.status("PUT", "/v1/sessions/s1", {})[0] == 409
    outcomes = store.log(("s1", "c9", "d"), ("s1", "c9", encode_call(make_call("s1", 1, "c9"))))
    assert [(outcome.status, outcome.code) for outcome in outcomes] == [(409, "session_sealed")] * 2
    store.record(record)
    assert store.view("s1")["n_calls"] == 1


def test_opening_is_idempotent_and_unknown_sessions_are_404(store: StoreClient) -> None:
    first = store.open("s1")
    assert store.open("s1") == first
    assert first["created_at"] > 0
    for method, path in (("GET", ""), ("POST", "/seal"), ("GET", "/calls")):
        assert store.status(method, f"/v1/sessions/nobody{path}", {})[0] == 404
    outcomes = store.log(("nobody", "c1", "d"), ("nobody", "c1", encode_call(make_call("nobody", 0, "c1"))))
    assert [(outcome.status, outcome.code) for outcome in outcomes] == [(404, "session_unknown")] * 2


def test_bad_call_records_are_refused_with_the_reason(store: StoreClient) -> None:
    store.open("s1")
    record = make_call("s1", 0, "c1")
    newer = msgspec.msgpack.encode(msgspec.structs.replace(record, schema_version=2))
    for body, reason in (
        (b"\x00nonsense", "not a call record"),
        (newer, "schema_version: 2 is newer"),
        (encode_call(make_call("s1", 0, "other")), "call other of session s1"),
        (encode_call(make_call("s2", 0, "c1")), "call c1 of session s2"),
    ):
        [outcome] = store.log(("s1", "c1", body))
        assert outcome.status == 400
        assert reason in outcome.detail
    assert [outcome.status for outcome in store.log(("s1", "bad id", encode_call(record)), ("s 1", "c1", "d"))] == [400, 400]
    assert [outcome.status for outcome in store.log(("s1", "c1", "d" * 257), ("s1", "c1", "d" * 256))] == [400, 200]
    whole = framed(encode_log([LogEntry("s1", "c9", "d")]))
    for body in (b"", b"[]", framed(b"\x91\x93\xa1s\xa1c\x05"), framed(b"{}"), b"\xff\xff\xff\xff", whole[:-1]):
        assert store.http.post("/v1/call_log", content=body).json()["code"] == "bad_call_log"
    assert store.log() == []
    assert store.view("s1")["n_calls"] == 0


def test_lines_of_many_sessions_are_written_in_order_and_each_has_its_own_outcome(store: StoreClient) -> None:
    for name in ("s1", "s2"):
        store.open(name)
    calls = {name: encode_call(make_call(name, 0, "c1")) for name in ("s1", "s2", "s3")}
    lines = [
        ("s1", "c1", "d"),
        ("s3", "c1", "d"),
        ("s1", "c1", calls["s1"]),
        ("s1", "c2", "e"),
        ("s2", "c1", b"?"),
        ("s2", "c1", calls["s2"]),
    ]
    for _ in range(2):
        outcomes = store.log(*lines)
        assert [outcome.status for outcome in outcomes] == [200, 404, 200, 200, 400, 200]
        assert outcomes[3].n_calls == 1
    assert store.view("s1")["open_intents"] == ["c2"]
    assert [store.view(name)["n_calls"] for name in ("s1", "s2")] == [1, 1]


def test_a_redis_that_has_forgotten_the_scripts_is_told_them(store: StoreClient, redis_server: RedisServer) -> None:
    store.open("s1")
    with redis.Redis.from_url(redis_server.url) as client:
        client.script_flush()
    lines = [("s1", "c1", "d"), ("s1", "c1", encode_call(make_call("s1", 0, "c1")))]
    assert [outcome.status for outcome in store.log(*lines, *lines)] == [200] * 4
    assert store.view("s1")["n_calls"] == 1


def test_only_whole_sealed_sessions_are_complete_in_a_batch(store: StoreClient) -> None:
    def prepare(session_id: str, *, seal: bool, leave_open: bool) -> None:
        store.open(session_id)
        for ordinal in range(2):
            store.begin(session_id, f"{session_id}-call{ordinal}")
            store.record(make_call(session_id, ordinal))
        if leave_open:
            store.begin(session_id, "lost")
        if seal:
            store.seal(session_id)

    prepare("whole", seal=True, leave_open=False)
    prepare("unsealed", seal=False, leave_open=False)
    prepare("holed", seal=True, leave_open=True)
    names = ["whole", "unsealed", "holed", "missing", "none"]
    store.enqueue([make_request(name, "g1", index, len(names)) for index, name in enumerate(names)])
    for lease in store.lease(limit=9):
        name = lease["request"]["episode_id"]
        store.put(make_trajectory(lease["request"], session_id=None if name == "none" else name), lease["lease_id"])
    [group] = store.lease_batch().groups
    assert [episode.trajectory["episode_id"] for episode in group.episodes] == names, "members are in sample order"
    found = [(episode.complete, len(episode.calls)) for episode in group.episodes]
    assert found == [(True, 2), (False, 0), (False, 0), (False, 0), (False, 0)]
    assert isinstance(decode_call(group.episodes[0].calls[1]), CallRecord)
