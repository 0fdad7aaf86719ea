"""Sessions: intents, call records, sealing, and what makes a session incomplete."""

import msgspec
from store_helpers import StoreClient, make_call, make_request, make_trajectory

from services.common.wire.calls import CallRecord, decode_call, encode_call

MSGPACK = {"Content-Type": "application/msgpack"}


def put_call(store: StoreClient, path: str, body: bytes) -> tuple[int, str]:
    answer = store.http.put(path, content=body, headers=MSGPACK)
    return answer.status_code, answer.text


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
    status, error = store.status("POST", "/v1/sessions/s1/intents/c1", {"digest": "b"})
    assert (status, error["error"]["code"]) == (409, "digest_mismatch")


def test_a_sealed_session_takes_nothing_new(store: StoreClient) -> None:
    [record] = store.play_session("s1", 1)
    assert store.seal("s1")["sealed"] is True
    assert store.status("PUT", "/v1/sessions/s1", {})[0] == 409
    status, error = store.status("POST", "/v1/sessions/s1/intents/c9", {"digest": "d"})
    assert (status, error["error"]["code"]) == (409, "session_sealed")
    assert put_call(store, "/v1/sessions/s1/calls/c9", encode_call(make_call("s1", 1, "c9")))[0] == 409
    store.record(record)
    assert store.view("s1")["n_calls"] == 1


def test_opening_is_idempotent_and_unknown_sessions_are_404(store: StoreClient) -> None:
    first = store.open("s1")
    assert store.open("s1") == first
    assert first["created_at"] > 0
    for method, path in (("GET", ""), ("POST", "/seal"), ("GET", "/calls")):
        assert store.status(method, f"/v1/sessions/nobody{path}", {})[0] == 404
    assert store.status("POST", "/v1/sessions/nobody/intents/c1", {"digest": "d"})[0] == 404
    assert put_call(store, "/v1/sessions/nobody/calls/c1", encode_call(make_call("nobody", 0, "c1")))[0] == 404


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
        status, text = put_call(store, "/v1/sessions/s1/calls/c1", body)
        assert status == 400
        assert reason in text
    assert put_call(store, "/v1/sessions/s1/calls/bad%20id", encode_call(record))[0] == 400
    for body in (b"[]", b"{", b'{"digest": 5}'):
        assert store.http.post("/v1/sessions/s1/intents/c1", content=body).status_code == 400
    assert store.view("s1")["n_calls"] == 0


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
