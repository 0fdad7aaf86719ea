"""The pool: servers that die, stall or answer nonsense; affinity; the state machine."""

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_helpers import MakeProxy, ProxyUnderTest, user
from proxy_servers import wait_until
from test_weight_updates import LONG, mid_generation, start_call

from services.common.errors import RemoteError
from services.common.transitions import IllegalTransition
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.outputs import read_answer, read_segment, read_versions
from services.policy_proxy.servers.pool import TRANSITIONS, ServerEvent, ServerPool, ServerState
from services.policy_proxy.servers.versions import Weights

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_call_moves_to_another_server_when_its_own_dies(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(servers=2)
    proxy.says(LONG)
    for engine in proxy.engines:
        engine.token_delay_s = 0.02
    session = proxy.open()
    thread, replies = start_call(session)
    wait_until(lambda: any(len(item.output_ids) > 2 for engine in proxy.engines for item in engine.exchanges))
    victim = next(index for index, engine in enumerate(proxy.engines) if engine.exchanges)
    proxy.engine_threads[victim].kill()
    thread.join()
    assert replies[0].status_code == 200
    (exchange,) = proxy.engines[1 - victim].exchanges
    (record,) = session.records
    assert record.prompt_ids().tolist() == exchange.input_ids
    assert record.output_ids().tolist() == exchange.output_ids
    assert proxy.state()["servers"][victim]["state"] == "down"


def test_a_call_waits_until_the_only_server_is_back(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    proxy.engine.token_delay_s = 0.02
    proxy.says(LONG)
    session = proxy.open()
    thread, replies = start_call(session)
    mid_generation(proxy)
    proxy.engine_threads[0].kill()
    wait_until(lambda: proxy.state()["servers"][0]["state"] == "down")
    assert proxy.http.get("/readyz").status_code == 503
    proxy.engine_threads[0].start()
    thread.join()
    assert replies[0].status_code == 200
    assert session.records[0].output_ids().tolist() == proxy.engine.exchanges[-1].output_ids


@pytest.mark.parametrize("fault", ["garbage", "status"])
def test_a_server_that_answers_nonsense_is_502(proxy: ProxyUnderTest, fault: str) -> None:
    if fault == "garbage":
        proxy.engine.garbage = True
    else:
        proxy.engine.answer_status = 500
    session = proxy.open()
    reply = session.post([user("hi")], call_id="c1")
    assert reply.status_code == 502
    assert session.records == []
    assert list(proxy.store.sessions[session.session_id].intents) == ["c1"]


def test_a_session_stays_with_its_server(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(servers=2)
    for _ in range(3):
        session = proxy.open()
        messages = [user("hi")]
        for _ in range(3):
            messages += [session.say(messages), user("more")]
        sids = [{item.rid.split(".")[0] for item in engine.exchanges} for engine in proxy.engines]
        mine = {record.call_id for record in session.records}
        assert sum(bool(mine & used) for used in sids) == 1


def test_an_operator_adds_drains_and_removes_servers(proxy: ProxyUnderTest) -> None:
    servers = "/v1/admin/servers"
    (url,) = [item["url"] for item in proxy.http.get(servers).json()["items"]]
    assert proxy.http.post(f"{servers}/drain", json={"url": url}).json()["cordoned"] is True
    assert proxy.http.post(servers, json={"url": url}).json()["cordoned"] is False
    added = proxy.http.post(servers, json={"url": "http://127.0.0.1:9"}).json()
    assert (added["url"], added["state"]) == ("http://127.0.0.1:9", "down")
    assert proxy.open().post([user("hi")]).status_code == 200
    assert proxy.http.delete(servers, params={"url": "http://127.0.0.1:9"}).status_code == 200
    assert [item["url"] for item in proxy.http.get(servers).json()["items"]] == [url]
    for wrong in ("nowhere", "ftp://x", "http://x:99999"):
        refused = proxy.http.post(servers, json={"url": wrong})
        assert (refused.status_code, refused.json()["param"]) == (422, "body.url")
    assert proxy.http.delete(servers, params={"url": "http://127.0.0.1:9"}).status_code == 404


def test_a_broadcast_needs_a_group_and_buckets_that_make_sense(proxy: ProxyUnderTest) -> None:
    bucket = {"names": ["a"], "dtypes": ["float32"], "shapes": [[1]]}
    distributed = {"method": "distributed", "buckets": [bucket]}
    assert proxy.post_weights(9, "/weights/v9", **distributed).json()["code"] == "no_weight_group"
    assert proxy.post_weights(9, "/weights/v9", method="distributed").status_code == 422
    assert proxy.post_weights(9, "/weights/v9", buckets=[bucket]).status_code == 422
    assert proxy.post_weights(9, "/weights/v9", method="distributed", buckets=[bucket | {"shapes": []}]).status_code == 422
    plan = proxy.http.get("/v1/admin/weight_group").json()
    assert (plan["state"], plan["world_size"], len(plan["members"])) == ("absent", 2, 1)
    asked = {"master_address": "127.0.0.1", "master_port": 1, "world_size": 5}
    assert proxy.http.post("/v1/admin/weight_group", json=asked).json()["code"] == "world_size"


@UNHURRIED
@given(st.lists(st.sampled_from(list(ServerEvent)), max_size=30))
def test_only_listed_transitions_happen(events: list[ServerEvent]) -> None:
    pool = ServerPool(["http://127.0.0.1:1"])
    (server,) = pool.servers
    for event in events:
        before = server.state
        if (before, event) in TRANSITIONS:
            pool.apply(server, event)
            assert server.state is TRANSITIONS[before, event]
        else:
            with pytest.raises(IllegalTransition):
                pool.apply(server, event)
            assert server.state is before
        chosen = pool.choose("", np.asarray([1], "<i4"))
        assert (chosen is server) == (server.state is ServerState.UP)
        if chosen is not None:
            pool.release(chosen)


def test_a_server_is_up_only_by_way_of_an_update() -> None:
    assert {source for (source, _), to in TRANSITIONS.items() if to is ServerState.UP} == {ServerState.UPDATING}


def test_the_label_decides_what_verified_means() -> None:
    pool = ServerPool(["http://127.0.0.1:1"])
    (server,) = pool.servers
    pool.commit(PolicyVersion(version=2, path="/w"))
    pool.apply(server, ServerEvent.UPDATE)
    pool.verified(server, Weights("1", "/w"))
    assert server.state is ServerState.QUARANTINED
    pool.apply(server, ServerEvent.UPDATE)
    pool.verified(server, Weights("2", "/w"))
    assert (server.state, server.version) == (ServerState.UP, 2)


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=6))
def test_spans_become_runs(runs: list[tuple[int, int]]) -> None:
    spans, at = [], 0
    for version, count in runs:
        spans.append({"version": str(version), "start": at, "end": at + count})
        at += count
    read = read_versions({"weight_versions": spans}, at, pinned=0, aborted=False)
    assert [v for v, n in read for _ in range(n)] == [v for v, n in runs for _ in range(n)]


@pytest.mark.parametrize(
    ("meta", "aborted", "expected"),
    [
        ({}, False, [(3, 5)]),
        ({"weight_version": "4"}, False, [(4, 5)]),
        ({"weight_version": "4"}, True, [(3, 5)]),
    ],
)
def test_without_spans_the_label_or_the_pinned_version_counts(meta: dict[str, str], aborted: bool, expected: list[tuple[int, int]]) -> None:
    assert read_versions(meta, 5, pinned=3, aborted=aborted) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"output_ids": [1]},
        {"meta_info": {}},
        {"meta_info": {"finish_reason": {"type": "odd"}, "output_token_logprobs": [[-1.0, 1, None], [-1.0, 2, None]]}},
        {"meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[None, 1, None], [-1.0, 2, None]]}},
        {"meta_info": {"finish_reason": {"type": "stop"}}},
        {
            "meta_info": {
                "finish_reason": {"type": "stop"},
                "output_token_logprobs": [[-1.0, 1, None], [-1.0, 2, None]],
                "weight_versions": [{"version": "1", "start": 0, "end": 1}],
            }
        },
    ],
)
def test_answers_that_cannot_be_trained_on_are_refused(change: dict[str, object]) -> None:
    good = {
        "output_ids": [1, 2],
        "meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-1.0, 1, None], [-1.0, 2, None]]},
    }
    assert read_segment(read_answer(orjson.dumps(good)), 0).ids == [1, 2]
    with pytest.raises(RemoteError):
        read_segment(read_answer(orjson.dumps(good | change)), 0)
