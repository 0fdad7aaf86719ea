"""Commands of many requests over few connections: each gets its own answer, whatever happens to the others or to the connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from store_helpers import Front, RedisServer

from services.trajectory_store.redis_store import connection
from services.trajectory_store.redis_store.connection import close, connect
from services.trajectory_store.redis_store.link import Link, open_link

SLOW = "local n = 0 for i = 1, 2e6 do n = n + i end return ARGV[1]"


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    client = connect(redis_server.url)
    link = open_link(client)
    yield link
    await link.close()
    await close(client)


async def echo(link: Link, text: str) -> bytes:
    [answer] = await link.send("", [("ECHO", text)])
    return answer


async def test_everybody_gets_the_own_answers_in_order(link: Link) -> None:
    async def ask(number: int) -> None:
        sent = [f"{number}.{part}" for part in range(number % 4)]
        assert await link.send("", [("ECHO", text) for text in sent]) == [text.encode() for text in sent]

    await asyncio.gather(*(ask(number) for number in range(200)))


async def test_an_error_stays_with_its_command(link: Link) -> None:
    wrong = link.send("", [("ECHO", "a"), ("HGET", "only-a-key"), ("ECHO", "b")])
    answers, other = await asyncio.gather(wrong, echo(link, "c"))
    assert (answers[0], answers[2], other) == (b"a", b"b", b"c")
    assert isinstance(answers[1], ResponseError)


async def test_who_gives_up_takes_nothing_from_the_others(link: Link) -> None:
    slow = [asyncio.ensure_future(link.send("", [("EVAL", SLOW, 0, str(number))])) for number in range(2)]
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(echo(link, str(number))) for number in range(20)]
    await asyncio.sleep(0.01)
    for task in waiting[::2]:
        task.cancel()
    assert await asyncio.gather(*slow) == [[b"0"], [b"1"]]
    assert await asyncio.gather(*waiting[1::2]) == [str(number).encode() for number in range(1, 20, 2)]
    assert await echo(link, "after") == b"after"


async def test_a_sender_that_is_stopped_takes_nobody_with_it(link: Link) -> None:
    leaders = [asyncio.ensure_future(link.send("", [("EVAL", SLOW, 0, str(number))])) for number in range(2)]
    await asyncio.sleep(0.005)
    waiting = asyncio.ensure_future(echo(link, "waiting"))
    await asyncio.sleep(0)
    for leader in leaders:
        leader.cancel()
    assert await waiting == b"waiting"
    assert await echo(link, "after") == b"after"


async def test_a_broken_connection_is_made_good(link: Link, redis_server: RedisServer) -> None:
    assert await echo(link, "before") == b"before"
    await asyncio.to_thread(redis_server.restart)
    assert await asyncio.gather(*(echo(link, str(number)) for number in range(50))) == [str(number).encode() for number in range(50)]


async def test_a_stuck_redis_is_a_timeout_for_all_who_wait(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 0.3)
    with Front(redis_server.port) as front:
        client = connect(f"redis://127.0.0.1:{front.port}/0")
        link = open_link(client)
        front.delay_s = 60
        outcomes = await asyncio.gather(*(echo(link, str(number)) for number in range(10)), return_exceptions=True)
        assert all(isinstance(outcome, RedisTimeoutError) for outcome in outcomes)
        front.delay_s = 0
        assert await echo(link, "again") == b"again"
        await link.close()
        await close(client)
