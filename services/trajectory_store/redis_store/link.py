"""Owns how commands travel to Redis: those of all requests share a few connections (`services.common.group_commit`).

A pool that lends a connection to every command costs several times the CPU of the command itself.
A Redis Cluster has a client of its own that knows where each key is; there every command is sent by itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.group_commit import Entry, GroupCommit
from services.trajectory_store.redis_store import connection
from services.trajectory_store.redis_store.connection import Client

Argument = str | bytes | int | float
Command = Sequence[Argument]

CONNECTIONS = 2
"""While the answers of one round are on their way, the next one is sent."""
ROUND_BYTES = 4 * 2**20
"""Of a round, so that its deadline holds on a slow line."""
FIRST_PAUSE_S = 0.05
"""Before a round goes out again after its connection broke; doubled with each further time."""
GENERIC = "return redis.call(unpack(ARGV))"
"""Any command as a script, so that the client of a cluster neither looks for its keys nor reshapes its answer."""
SCRIPTED = ("EVALSHA", "EVAL")

pack: Callable[[Command], bytes] = cast("Any", hiredis).pack_command
"""A command as Redis reads it. Takes a tuple."""

Lane = Any
"""A connection of redis-py; its types say less than its documentation."""


class Link(Protocol):
    """Where commands are sent."""

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """The answers as Redis gives them, in order; an error answer is a `ResponseError` in its place. Raises `RedisError`.

        ``at`` is a key of the node that is meant. Commands may run twice where a connection broke, so all of them must bear it.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


def open_link(client: Client) -> Link:
    """The link that suits a client of `connection.connect`. Connects on first use."""
    return ClusterLink(client) if isinstance(client, RedisCluster) else SharedLink(client.connection_pool)


@dataclass(frozen=True, slots=True)
class _Commands:
    """What one request wants sent, packed, and how many answers it brings."""

    packed: bytes
    n_answers: int


_Entry = Entry[_Commands, list[Any], Lane]


class SharedLink:
    """A few connections for everybody."""

    def __init__(self, pool: Any) -> None:
        self._lanes = [_lane(pool) for _ in range(CONNECTIONS)]
        self._commit = GroupCommit[_Commands, list[Any], Lane](self._lanes, _round, failure=RedisError, most_bytes=ROUND_BYTES)

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """See `Link.send`."""
        if not commands:
            return []
        packed = b"".join(pack(tuple(command)) for command in commands)
        return await self._commit.submit(_Commands(packed, len(commands)), len(packed))

    async def close(self) -> None:
        """See `Link.close`."""
        for lane in self._lanes:
            await lane.disconnect()


def _lane(pool: Any) -> Lane:
    """A connection that is opened on first use."""
    lane = pool.make_connection()
    # A round has one deadline and its own retries; timers for each read and write would cost more than the reading.
    lane.socket_timeout = None
    lane.retry = Retry(NoBackoff(), 0)
    return lane


async def _round(lane: Lane, entries: Sequence[_Entry]) -> None:
    """Sends and reads everything within one deadline, again where the connection breaks. Raises `RedisError`."""
    pause = FIRST_PAUSE_S
    for again in range(connection.RETRIES, -1, -1):
        try:
            async with asyncio.timeout(connection.ANSWER_TIMEOUT_S):
                await _exchange(lane, [entry for entry in entries if not entry.done])
                return
        except TimeoutError:
            raise RedisTimeoutError(f"no answer within {connection.ANSWER_TIMEOUT_S:g} s") from None
        except (RedisConnectionError, OSError) as error:
            if not again:
                raise RedisConnectionError(str(error)) from error
        await asyncio.sleep(pause)
        pause *= 2


async def _exchange(lane: Lane, entries: Sequence[_Entry]) -> None:
    whole = False
    try:
        if not lane.is_connected:
            await lane.connect()  # a connection by Sentinel asks who is primary here and nowhere else
        await lane.send_packed_command([entry.item.packed for entry in entries], check_health=False)
        for entry in entries:
            entry.tell([await _answer(lane) for _ in range(entry.item.n_answers)])
        whole = True
    finally:
        if not whole:
            # What is still to come on it belongs to nobody.
            await lane.disconnect(nowait=True)


async def _answer(lane: Lane) -> Any:
    try:
        return await lane.read_response()
    except ResponseError as error:
        return error


class ClusterLink:
    """Each command by itself, to the node that has its keys."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """See `Link.send`."""
        return [await self._one(command if command[0] in SCRIPTED else ("EVAL", GENERIC, 1, at, *command)) for command in commands]

    async def _one(self, command: Command) -> Any:
        try:
            return await self._client.execute_command(*command)
        except ResponseError as error:
            return error

    async def close(self) -> None:
        """See `Link.close`. The client is closed by whoever made it."""
