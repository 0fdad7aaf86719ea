"""The update transaction: all servers, partial failures, deadlines, crashes; what calls in flight see of it."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fake_sglang import logprob_of
from proxy_helpers import MakeProxy, ProxyUnderTest, SessionClient, user
from proxy_servers import ProxyProcess, wait_until

LONG = "one two three four five six seven eight nine ten eleven twelve<|im_end|>"


def start_call(session: SessionClient) -> tuple[threading.Thread, list[httpx.Response]]:
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(session.post([user("hi")])))
    thread.start()
    return thread, replies


def mid_generation(proxy: ProxyUnderTest, tokens: int = 3) -> None:
    wait_until(lambda: any(len(item.output_ids) >= tokens for item in proxy.engine.exchanges), what="some tokens")


def test_an_update_reaches_every_server(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(servers=2)
    reply = proxy.post_weights(1)
    assert reply.status_code == 200
    assert reply.json()["version"] == 1
    assert [item["ok"] for item in reply.json()["servers"]] == [True, True]
    for engine in proxy.engines:
        assert engine.version == "1"
        assert engine.control[-3:] == ["pause", "update", "continue"]
        update = {"model_path": "/weights/v1", "weight_version": "1", "abort_all_requests": True, "flush_cache": True}
        assert engine.updates == [update]
        assert not engine.paused
    assert proxy.state()["policy_version"] == 1
    assert proxy.open().post([user("hi")]).headers["X-Policy-Version"] == "1"
    again = proxy.post_weights(1)
    assert again.status_code == 200
    assert [len(engine.updates) for engine in proxy.engines] == [1, 1]
    assert proxy.post_weights(0).status_code == 409
    assert proxy.post_weights(1, "/weights/other").status_code == 409
    assert proxy.metric("policy_version") == 1


@pytest.mark.parametrize("with_spans", [True, False])
def test_a_call_in_flight_goes_on_under_the_new_version(make_proxy: MakeProxy, with_spans: bool) -> None:
    proxy = make_proxy()
    proxy.engine.token_delay_s, proxy.engine.with_spans = 0.02, with_spans
    proxy.says(LONG)
    session = proxy.open()
    thread, replies = start_call(session)
    mid_generation(proxy)
    assert proxy.post_weights(1).status_code == 200
    thread.join()
    assert replies[0].json()["choices"][0]["message"]["content"] == LONG.removesuffix("<|im_end|>")
    assert replies[0].headers["X-Policy-Version"] == "1"
    (record,) = proxy.assert_token_exact(session)
    first, second = proxy.engine.exchanges
    assert (first.finish, second.finish) == ("abort", "stop")
    assert record.versions == [(0, len(first.output_ids)), (1, len(second.output_ids))]
    logprobs = record.output_logprobs()
    assert logprobs is not None
    assert logprobs.tolist() == pytest.approx([logprob_of(token) for token in record.output_ids().tolist()])
    assert second.params["max_new_tokens"] == first.params["max_new_tokens"] - len(first.output_ids)
    assert proxy.metric("resubmissions_total") == 1


def test_calls_wait_while_paused_instead_of_failing(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    proxy.engine.stall_update = True
    update = threading.Thread(target=lambda: proxy.post_weights(1))
    update.start()
    wait_until(lambda: proxy.state()["paused"], what="the pause")
    assert proxy.metric("paused") == 1
    session = proxy.open()
    call, replies = start_call(session)
    time.sleep(0.1)
    assert proxy.engine.exchanges == []
    proxy.engine.stall_update = False
    update.join()
    call.join()
    assert replies[0].headers["X-Policy-Version"] == "1"
    assert session.records[0].versions[0][0] == 1


@pytest.mark.parametrize("fault", ["says no", "lies", "dead"])
def test_a_server_that_fails_is_quarantined_and_the_others_go_on(make_proxy: MakeProxy, fault: str) -> None:
    proxy = make_proxy(servers=2)
    good, bad = proxy.engines
    if fault == "says no":
        bad.fail_update = "no such file"
    elif fault == "lies":
        bad.lie_about_update = True
    else:
        proxy.engine_threads[1].kill()
    reply = proxy.post_weights(1)
    assert reply.status_code == 200
    assert [item["ok"] for item in reply.json()["servers"]] == [True, False]
    assert not good.paused
    assert not bad.paused or fault == "dead"
    assert proxy.state()["servers"][1]["state"] in ("quarantined", "down")
    for number in range(4):
        assert proxy.open().post([user(str(number))]).headers["X-Policy-Version"] == "1"
    assert bad.exchanges == []
    bad.fail_update, bad.lie_about_update = "", False
    if fault == "dead":
        bad.restart(version="0")
        proxy.engine_threads[1].start()
    proxy.wait_up(2, version=1)
    assert bad.version == "1"


def test_where_no_server_takes_it_the_old_version_stays(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    proxy.engine.fail_update = "no such file"
    reply = proxy.post_weights(1)
    assert reply.status_code == 503
    assert "no such file" in reply.json()["detail"]
    assert not proxy.engine.paused
    # What a failed update has left there only a reload can tell.
    wait_until(lambda: proxy.engine.updates[-1]["weight_version"] == "0", what="the old version to be loaded again")
    assert proxy.state()["servers"][0]["state"] != "up"
    proxy.engine.fail_update = ""
    proxy.wait_up(1, version=0)
    assert proxy.open().post([user("hi")]).headers["X-Policy-Version"] == "0"


def test_a_stalled_update_ends_at_its_deadline(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    proxy.engine.stall_update = True
    began = time.monotonic()
    assert proxy.post_weights(1, deadline_s=0.3).status_code == 503
    assert time.monotonic() - began < 5
    assert not proxy.state()["paused"]
    assert not proxy.engine.paused
    proxy.engine.stall_update = False
    proxy.wait_up(1, version=0)
    assert proxy.post_weights(1).status_code == 200


def test_a_crash_in_mid_update_leaves_nobody_paused(make_proxy: MakeProxy, tmp_path: Path) -> None:
    """kill -9 of the proxy between pause and continue; the next proxy finds the version in the store and continues the server."""
    proxy = make_proxy(start=False)
    process = ProxyProcess(proxy.config, tmp_path)
    try:
        process.start()
        proxy.engine.stall_update = True
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(proxy.post_weights, 1)
            wait_until(lambda: proxy.engine.updates, what="the update at the server")
            process.kill()
        assert isinstance(update.exception(), httpx.TransportError)
    finally:
        process.kill()
    assert proxy.engine.paused
    proxy.engine.stall_update = False
    proxy.store.latest = {"version": 1, "path": "/weights/v1"}
    proxy.start()
    assert not proxy.engine.paused
    assert proxy.open().post([user("hi")]).headers["X-Policy-Version"] == "1"


def test_before_the_first_publication_the_initial_model_is_version_0(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    proxy.store.latest = None
    proxy.engine.restart(version="default")
    proxy.start()
    assert proxy.engine.version == "0"
    assert proxy.engine.model_path == proxy.config.actor.path


def test_the_first_publication_of_version_0_replaces_the_initial_model(make_proxy: MakeProxy) -> None:
    """Afterwards version 0 is fixed, and a server restarted with the initial model does not pass for it although its label is 0."""
    proxy = make_proxy(start=False)
    proxy.store.latest = None
    proxy.start()
    assert proxy.post_weights(0, "/weights/v0").status_code == 200
    assert proxy.engine.model_path == "/weights/v0"
    assert proxy.post_weights(0, "/weights/v0").status_code == 200
    assert proxy.post_weights(0, "/weights/other").status_code == 409
    proxy.engine.restart(version="0")
    proxy.engine.model_path = proxy.config.actor.path
    wait_until(lambda: proxy.engine.model_path == "/weights/v0", what="the published weights")
    proxy.wait_up(1, version=0)


def test_the_newest_version_in_the_store_is_followed(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    proxy.store.latest = {"version": 3, "path": "/weights/v3"}
    proxy.start()
    assert proxy.engine.version == "3"
    proxy.store.latest = {"version": 4, "path": "/weights/v4"}
    proxy.wait_up(1, version=4)
    assert proxy.engine.model_path == "/weights/v4"


def test_a_server_that_was_restarted_with_other_weights_is_not_used_before_it_has_the_current_ones(make_proxy: MakeProxy) -> None:
    """The call meets the restarted server before any probe does: its tokens are thrown away, not mislabelled."""
    proxy = make_proxy()
    proxy.post_weights(1)
    proxy.engine.restart(version="0")
    session = proxy.open()
    assert session.post([user("hi")]).headers["X-Policy-Version"] == "1"
    (record,) = session.records
    assert record.versions == [(1, len(record.output) // 4)]
    assert proxy.engine.version == "1"


def test_control_routes_get_the_admin_key(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "a-long-admin-key-0123")
    proxy = make_proxy(start=False)
    proxy.http.headers["Authorization"] = "Bearer a-long-admin-key-0123"
    proxy.start()
    assert proxy.post_weights(1).status_code == 200
    assert set(proxy.engine.control_keys) == {"Bearer a-long-admin-key-0123"}


def test_updates_at_the_same_time_run_one_after_the_other(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()

    async def both() -> list[int]:
        async with httpx.AsyncClient(base_url=proxy.thread.url, timeout=20) as client:
            posts = [client.post("/v1/admin/weights", json={"version": 1, "path": "/weights/v1"}) for _ in range(3)]
            return [reply.status_code for reply in await asyncio.gather(*posts)]

    assert asyncio.run(both()) == [200, 200, 200]
    assert len(proxy.engine.updates) == 1
