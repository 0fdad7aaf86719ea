"""A call runs once: replays, joins, SDK retries, faults of the store, sessions that outlive the process."""

import asyncio

import httpx
from proxy_helpers import SYSTEM, MakeProxy, ProxyUnderTest, SessionClient, user
from proxy_servers import wait_until


def test_the_same_call_id_is_replayed(proxy: ProxyUnderTest) -> None:
    proxy.says("first<|im_end|>", "second<|im_end|>")
    session = proxy.open()
    replies = [session.post([user("hi")], call_id="c1") for _ in range(2)]
    assert replies[0].content == replies[1].content
    assert replies[1].headers["X-Policy-Version"] == "0"
    assert len(proxy.engine.exchanges) == len(session.records) == 1
    assert proxy.metric("calls_total", outcome="replayed") == 1


def test_the_same_call_id_with_another_body_is_refused(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    session.say([user("hi")], call_id="c1")
    reply = session.post([user("ho")], call_id="c1")
    assert reply.status_code == 409
    assert reply.json()["error"]["code"] == "idempotency_mismatch"


def test_an_sdk_retry_without_call_id_is_replayed(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    first = session.post([user("hi")])
    again = session.post([user("hi")], headers={"x-stainless-retry-count": "1"})
    assert again.headers["X-Call-Id"] == first.headers["X-Call-Id"]
    fresh = session.post([user("hi")], headers={"x-stainless-retry-count": "0"})
    assert fresh.headers["X-Call-Id"] != first.headers["X-Call-Id"]
    assert len(session.records) == 2


async def gather_posts(session: SessionClient, *headers: dict[str, str]) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=session.base_url, timeout=20) as client:
        body = {"model": "policy", "messages": [user("hi")]}
        key = {"Authorization": f"Bearer {session.api_key}"}
        return await asyncio.gather(*[client.post("/chat/completions", json=body, headers=key | extra) for extra in headers])


async def test_a_repeated_call_joins_the_one_in_flight(proxy: ProxyUnderTest) -> None:
    proxy.engine.token_delay_s = 0.05
    session = await asyncio.to_thread(proxy.open)
    replies = await gather_posts(session, *[{"Idempotency-Key": "c1"}] * 3)
    assert len({reply.content for reply in replies}) == 1
    assert len(proxy.engine.exchanges) == 1


async def test_calls_of_one_session_at_the_same_time_keep_their_order_of_finishing(proxy: ProxyUnderTest) -> None:
    proxy.engine.token_delay_s = 0.01
    proxy.store.record_delay_s = 0.02
    session = await asyncio.to_thread(proxy.open)
    replies = await gather_posts(session, *[{"Idempotency-Key": f"c{number}"} for number in range(5)])
    assert {reply.status_code for reply in replies} == {200}
    assert len(proxy.assert_token_exact(session)) == 5


def test_a_record_whose_answer_was_lost_is_found_again(proxy: ProxyUnderTest) -> None:
    """The store has the call, the proxy was told 500: the agent's retry gets the stored answer, and nothing runs twice."""
    session = proxy.open()
    proxy.store.lose_answers = 2  # what is said in a kept request is said again once by itself
    failed = session.post([user("hi")], call_id="c1")
    assert failed.status_code == 503
    assert "Retry-After" in failed.headers
    assert session.post([user("hi")], call_id="c1").status_code == 200
    assert len(proxy.engine.exchanges) == len(session.records) == 1
    session.say([user("another")], call_id="c2")
    proxy.assert_token_exact(session)


def test_sealing(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    session.say([user("hi")])
    view = session.seal().json()
    assert (view["sealed"], view["n_calls"], view["open_intents"]) == (True, 1, [])
    late = session.post([user("hi")])
    assert late.status_code == 409
    assert late.json()["error"]["code"] == "session_sealed"
    assert session.seal().status_code == 200
    assert proxy.http.post("/v1/sessions", json={"session_id": session.session_id}).status_code == 409


async def test_sealing_waits_for_nobody(proxy: ProxyUnderTest) -> None:
    proxy.engine.token_delay_s = 0.1
    session = await asyncio.to_thread(proxy.open)
    call = asyncio.create_task(gather_posts(session, {}))
    await asyncio.to_thread(wait_until, lambda: proxy.engine.running)
    assert (await asyncio.to_thread(session.seal)).status_code == 409
    assert (await call)[0].status_code == 200
    assert (await asyncio.to_thread(session.seal)).status_code == 200


def test_no_completion_in_time_is_504_and_leaves_the_session_incomplete(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(call_timeout_s=0.3)
    proxy.engine.stall_generate = True
    session = proxy.open()
    assert session.post([user("hi")], call_id="c1").status_code == 504
    assert list(proxy.store.sessions[session.session_id].intents) == ["c1"]
    proxy.engine.stall_generate = False
    assert session.post([user("hi")], call_id="c1").status_code == 200
    assert not proxy.store.sessions[session.session_id].intents


def test_idle_sessions_are_forgotten_and_come_back(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    messages += [session.say(messages, call_id="c1"), user("more")]
    proxy.restart()
    assert proxy.state()["sessions"] == 0
    session.say(messages, call_id="c2")
    assert session.post(messages, call_id="c2").status_code == 200
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None, "c1"]
