"""Owns how commands travel to Redis: those of all requests over one connection (`wire`), again where that broke.

A pool that lends a connection to every command costs several times the CPU of the command itself.
A Redis Cluster has a client of its own that knows where each key is; there every command is sent by itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from services.trajectory_store.redis_store import connection
from services.trajectory_store.redis_store.connection import Client
from services.trajectory_store.redis_store.wire import Wire

Argument = str | bytes | int | float
Command = Sequence[Argument]

FIRST_PAUSE_S = 0.05
"""Before commands go out again after their connection broke; doubled with each further time."""
GENERIC = "return redis.call(unpack(ARGV))"
"""Any command as a script, so that the client of a cluster neither looks for its keys nor reshapes its answer."""
SCRIPTED = ("EVALSHA", "EVAL")

pack: Callable[[Command], bytes] = cast("Any", hiredis).pack_command
"""A command as Redis reads it. Takes a tuple."""


class Link(Protocol):
    """Where commands are sent."""

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """The answers as Redis gives them, in order; an error answer is a `ResponseError` in its place. Raises `RedisError`, `OSError`.

        ``at`` is a key of the node that is meant. Commands may run twice where a connection broke, so all of them must bear it.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


def open_link(client: Client) -> Link:
    """The link that suits a client of `connection.connect`. Connects on first use."""
    return ClusterLink(client) if isinstance(client, RedisCluster) else SharedLink(client.connection_pool)


class SharedLink:
    """One connection for everybody."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """See `Link.send`."""
        if not commands:
            return []
        packed = b"".join([pack(tuple(command)) for command in commands])
        pause = FIRST_PAUSE_S
        for again in range(connection.RETRIES, -1, -1):
            try:
                wire = self._wire
                if wire is None or not wire.alive:
                    wire = await self._opened()
                return await wire.send(packed, len(commands))
            except (RedisConnectionError, OSError):
                if not again:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """See `Link.close`."""
        if self._wire is not None:
            self._wire.close()

    async def _opened(self) -> Wire:
        async with self._opening:
            if self._wire is None or not self._wire.alive:
                self._wire = await Wire.open(self._pool, connection.ANSWER_TIMEOUT_S)
            return self._wire


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
