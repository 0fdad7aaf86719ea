"""Owns how commands travel to Redis: those of all requests share a few connections, and what comes in while one round is under way
goes out together in the next. A pool that lends a connection to every command costs several times the CPU of the command itself.

No task runs for it: who finds a connection free sends a round for everybody who waits, and hands the connection on (group commit).
A Redis Cluster has a client of its own that knows where each key is; there every command is sent by itself.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.trajectory_store.redis_store import connection
from services.trajectory_store.redis_store.connection import Client

Argument = str | bytes | int | float
Command = Sequence[Argument]

CONNECTIONS = 2
"""While the answers of one round are on their way, the next one is sent."""
ROUND_BYTES = 4 * 2**20
"""A round ends with the command that takes it over this, so that its deadline holds on a slow line."""
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


class _Sending:
    """What one caller wants sent. Its future brings None once the answers are there, or the connection on which it is to lead a round."""

    __slots__ = ("answers", "commands", "future", "packed")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.packed = b"".join(pack(tuple(command)) for command in commands)
        self.commands = len(commands)
        self.answers: list[Any] = []
        self.future: asyncio.Future[Lane | None] = asyncio.get_running_loop().create_future()

    @property
    def answered(self) -> bool:
        return len(self.answers) == self.commands


class SharedLink:
    """A few connections for everybody."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._free: list[Lane] = []
        self._lanes: list[Lane] = []
        self._waiting: deque[_Sending] = deque()

    async def send(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """See `Link.send`."""
        if not commands:
            return []
        mine = _Sending(commands)
        lane = self._take()
        if lane is None:
            self._waiting.append(mine)
            lane = await self._told(mine)
        if lane is not None:
            await self._lead(lane, mine)
        return mine.answers

    async def close(self) -> None:
        """See `Link.close`."""
        for lane in self._lanes:
            await lane.disconnect()

    def _take(self) -> Lane | None:
        if self._free:
            return self._free.pop()
        if len(self._lanes) == CONNECTIONS:
            return None
        lane = self._pool.make_connection()
        # A round has one deadline and its own retries; timers for each read and write would cost more than the reading.
        lane.socket_timeout = None
        lane.retry = Retry(NoBackoff(), 0)
        self._lanes.append(lane)
        return lane

    async def _told(self, mine: _Sending) -> Lane | None:
        try:
            return await mine.future
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.future.cancelled() and mine.future.exception() is None and (lane := mine.future.result()) is not None:
                self._hand_on(lane)
            raise

    def _hand_on(self, lane: Lane) -> None:
        """Gives a connection to the first who waits and is still there."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.future.done():
                following.future.set_result(lane)
                return
        self._free.append(lane)

    async def _lead(self, lane: Lane, mine: _Sending) -> None:
        sendings, n_bytes = [mine], len(mine.packed)
        while self._waiting and n_bytes < ROUND_BYTES:
            sendings.append(self._waiting.popleft())
            n_bytes += len(sendings[-1].packed)
        try:
            await _round(lane, sendings)
        except RedisError as error:
            _fail(sendings[1:], error)
            if not mine.answered:
                raise
        except BaseException as error:
            await lane.disconnect(nowait=True)
            _fail(sendings[1:], RedisConnectionError(f"the round was broken off: {error!r}"))
            raise
        finally:
            self._hand_on(lane)


async def _round(lane: Lane, sendings: Sequence[_Sending]) -> None:
    """Sends and reads everything within one deadline, again where the connection breaks. Raises `RedisError`."""
    pause = FIRST_PAUSE_S
    for again in range(connection.RETRIES, -1, -1):
        left = [sending for sending in sendings if not sending.answered]
        try:
            async with asyncio.timeout(connection.ANSWER_TIMEOUT_S):
                await _exchange(lane, left)
                return
        except TimeoutError:
            await lane.disconnect(nowait=True)
            raise RedisTimeoutError(f"no answer within {connection.ANSWER_TIMEOUT_S:g} s") from None
        except (RedisConnectionError, OSError) as error:
            await lane.disconnect(nowait=True)
            if not again:
                raise RedisConnectionError(str(error)) from error
        await asyncio.sleep(pause)
        pause *= 2


async def _exchange(lane: Lane, sendings: Sequence[_Sending]) -> None:
    if not lane.is_connected:
        await lane.connect()  # a connection by Sentinel asks who is primary here and nowhere else
    await lane.send_packed_command([sending.packed for sending in sendings], check_health=False)
    for sending in sendings:
        sending.answers = []
        while not sending.answered:
            try:
                sending.answers.append(await lane.read_response())
            except ResponseError as error:
                sending.answers.append(error)
        if not sending.future.done():
            sending.future.set_result(None)


def _fail(sendings: Sequence[_Sending], error: RedisError) -> None:
    for sending in sendings:
        if not sending.future.done():
            sending.future.set_exception(error)


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
