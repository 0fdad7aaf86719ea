"""The call log as one request that is kept: message after message, and how it ends when a message is bad, Redis goes or the store stops."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
from store_helpers import RedisServer, StoreClient, StoreProcess, make_call

from services.common.channel import Channel
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log
from services.common.wire.calls import encode_call


@pytest.fixture
async def channel(store: StoreClient) -> AsyncIterator[Channel]:
    store.open("s1")
    async with ServiceClient("trajectory_store", str(store.http.base_url)) as client:
        channel = Channel(client, "/v1/call_log")
        yield channel
        channel.close()


async def write(channel: Channel, *entries: LogEntry) -> list[LogOutcome]:
    return decode_outcomes(await channel.ask(encode_log(list(entries)), retry_s=0))


def requests_of(store: StoreClient) -> str:
    """What the metrics say of requests to the log that have ended."""
    return "\n".join(line for line in store.http.get("/metrics").text.splitlines() if 'route="/v1/call_log",status' in line)


async def test_many_messages_share_one_request(channel: Channel, store: StoreClient) -> None:
    before = requests_of(store)
    for ordinal in range(30):
        record = make_call("s1", ordinal, f"c{ordinal}")
        intent, refused = await write(channel, LogEntry("s1", f"c{ordinal}", "d"), LogEntry("nobody", "c", "d"))
        assert (intent, refused.status) == (LogOutcome(200, ordinal), 404)
        assert await write(channel, LogEntry("s1", f"c{ordinal}", record=encode_call(record))) == [LogOutcome(200)]
    assert requests_of(store) == before, "it has not ended yet"
    assert store.view("s1")["n_calls"] == 30


async def test_a_bad_message_ends_the_request_and_says_why_in_the_next(channel: Channel) -> None:
    assert await write(channel, LogEntry("s1", "c1", "d")) == [LogOutcome(200, 0)]
    told: asyncio.Queue[bytes | RemoteError] = asyncio.Queue()
    channel.send(b"no log", told.put_nowait)
    ended = await told.get()
    assert isinstance(ended, RemoteError)
    assert (ended.status, ended.code) == (None, "unreachable")
    with pytest.raises(RemoteError, match="bad_call_log"):
        await channel.ask(b"no log", retry_s=0)
    assert await write(channel, LogEntry("s1", "c2", "d")) == [LogOutcome(200, 0)]


async def test_redis_that_goes_is_an_error_and_comes_back(channel: Channel, store: StoreClient, redis_server: RedisServer) -> None:
    assert await write(channel, LogEntry("s1", "c1", "d")) == [LogOutcome(200, 0)]
    redis_server.kill()
    with pytest.raises(RemoteError) as failed:
        await write(channel, LogEntry("s1", "c2", "d"))
    assert (failed.value.status, failed.value.code) in ((503, "redis_unreachable"), (None, "unreachable"))
    redis_server.start()
    answer = await channel.ask(encode_log([LogEntry("s1", "c2", "d")]), retry_s=10)
    assert decode_outcomes(answer)[0].status in (200, 404), "404 where Redis had not written the session to its file"


async def hear_all(client: ServiceClient) -> bytes:
    """The event stream until it ends."""
    return await client.request("GET", "/v1/events")


async def test_a_store_that_is_told_to_stop_does_not_wait_for_kept_requests(store_process: StoreProcess) -> None:
    store_process.start()
    async with ServiceClient("trajectory_store", store_process.url) as client:
        await client.put("/v1/sessions/s1")
        channel = Channel(client, "/v1/call_log")
        assert await write(channel, LogEntry("s1", "c1", "d")) == [LogOutcome(200, 0)]
        listening = asyncio.create_task(hear_all(client))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        assert await asyncio.to_thread(store_process.stop) == -signal.SIGTERM, "uvicorn raises it again once it has stopped"
        assert time.monotonic() - started < 5, "uvicorn waits ten seconds for requests that do not end"
        assert b"retry:" in await listening
        await asyncio.to_thread(store_process.start)
        assert await write(channel, LogEntry("s1", "c2", "d")) == [LogOutcome(200, 0)]
        channel.close()
