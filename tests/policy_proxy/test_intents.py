"""An intent travels beside the generation, but nothing of a call leaves for the agent before it is durable."""

import time
from concurrent.futures import ThreadPoolExecutor

from proxy_helpers import ProxyUnderTest, user
from proxy_servers import wait_until

SLOW_S = 0.6


def test_the_generation_does_not_wait_for_the_intent_and_the_answer_does(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    session.say([user("so that the log flows")])
    proxy.store.intent_delay_s = SLOW_S
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        answer = pool.submit(session.post, [user("hi")], "c1")
        wait_until(lambda: len(proxy.engine.exchanges) == 2)
        assert time.monotonic() - started < SLOW_S / 2
        assert "c1" not in proxy.store.sessions[session.session_id].intents, "the store has not written it yet"
        assert answer.result().status_code == 200
        assert time.monotonic() - started >= SLOW_S
    assert len(proxy.assert_token_exact(session)) == 2


def test_nothing_is_streamed_before_the_intent_is_durable(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    session.say([user("so that the log flows")])
    proxy.store.intent_delay_s = SLOW_S
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(session.post, [user("hi")], "c1", stream=True)
        time.sleep(SLOW_S / 2)
        assert len(proxy.engine.exchanges) == 1
        assert answer.result().status_code == 200
    assert len(proxy.assert_token_exact(session)) == 2


def test_nothing_is_generated_while_the_log_is_stuck(proxy: ProxyUnderTest) -> None:
    """Where the store may be away, a policy server should not work for answers that cannot leave."""
    session = proxy.open()
    proxy.restart()
    proxy.store.intent_delay_s = SLOW_S
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(session.post, [user("the first line opens the log")], "c1")
        time.sleep(SLOW_S / 2)
        assert proxy.engine.exchanges == []
        assert answer.result().status_code == 200


def test_a_refused_intent_refuses_the_call(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    session.say([user("so that the log flows")])
    proxy.store.sessions[session.session_id].sealed = True
    late = session.post([user("hi")], "c1")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "session_sealed")
    proxy.store.sessions[session.session_id].sealed = False
    assert [record.call_id for record in session.records] != ["c1"]
    assert len(session.records) == 1
