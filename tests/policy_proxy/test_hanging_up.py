"""Clients that hang up: the call of the last one is aborted at the policy server; nobody else loses an answer."""

import asyncio

import httpx
from proxy_helpers import MakeProxy, ProxyUnderTest, SessionClient, user
from proxy_servers import wait_until


def begin(session: SessionClient, call_id: str) -> "asyncio.Task[httpx.Response]":
    """One request over a connection of its own, so that cancelling it closes the connection."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(base_url=session.base_url, timeout=20) as client:
            headers = {"Authorization": f"Bearer {session.api_key}", "Idempotency-Key": call_id}
            return await client.post("/chat/completions", json={"model": "policy", "messages": [user("hi")]}, headers=headers)

    return asyncio.create_task(post())


async def until(check: object) -> None:
    await asyncio.to_thread(wait_until, check)


async def test_a_call_whose_client_hangs_up_is_aborted_upstream_and_the_session_can_be_sealed(proxy: ProxyUnderTest) -> None:
    proxy.engine.stall_generate = True
    session = await asyncio.to_thread(proxy.open)
    call = begin(session, "c1")
    await until(lambda: proxy.engine.running)
    call.cancel()
    await until(lambda: proxy.engine.aborted)
    assert proxy.engine.aborted == ["c1.0"]
    await until(lambda: not proxy.engine.running and proxy.state()["inflight"] == 0)
    assert proxy.metric("calls_total", outcome="cancelled") == 1
    view = (await asyncio.to_thread(session.seal)).json()
    assert (view["sealed"], view["n_calls"], view["open_intents"]) == (True, 0, ["c1"])


async def test_a_call_that_another_client_waits_for_goes_on(proxy: ProxyUnderTest) -> None:
    proxy.engine.token_delay_s = 0.2
    session = await asyncio.to_thread(proxy.open)
    first = begin(session, "c1")
    await until(lambda: proxy.engine.running)
    second = begin(session, "c1")
    await until(lambda: proxy.metric("calls_total", outcome="replayed") == 1)
    first.cancel()
    assert (await second).status_code == 200
    assert proxy.engine.aborted == []
    assert len(proxy.engine.exchanges) == len(session.records) == 1


async def test_an_aborted_call_can_be_sent_again_under_its_id(proxy: ProxyUnderTest) -> None:
    proxy.engine.stall_generate = True
    session = await asyncio.to_thread(proxy.open)
    call = begin(session, "c1")
    await until(lambda: proxy.engine.running)
    call.cancel()
    await until(lambda: proxy.state()["inflight"] == 0)
    proxy.engine.stall_generate = False
    assert (await begin(session, "c1")).status_code == 200
    assert not proxy.store.sessions[session.session_id].intents


def test_a_call_over_its_deadline_is_aborted_upstream(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(call_timeout_s=0.3)
    proxy.engine.stall_generate = True
    session = proxy.open()
    assert session.post([user("hi")], call_id="c1").status_code == 504
    assert proxy.engine.aborted == ["c1.0"]
