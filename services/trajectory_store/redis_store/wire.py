"""Owns one connection to Redis over which commands are pipelined: each is written at once, and answers come in the order of commands.

redis-py opens it, because address, TLS, password and Sentinel are its trade, and hiredis reads it; what lies between them in redis-py costs
more than Redis itself. Refuses to repeat anything: a connection that breaks fails whatever had no answer yet.
"""

import asyncio
from collections import deque
from typing import Any, cast

import hiredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.deadline import Deadline

_NOTHING = object()


class Wire(asyncio.Protocol):
    """An open connection. ``timeout_s``: how long it may say nothing while something waits for an answer."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        self._by_sentinel = isinstance(connection, SentinelManagedConnection)
        self._waiting: deque[_Sent] = deque()
        self._deadline = Deadline(timeout_s, self._expire)
        self._timeout_s = timeout_s
        self._parser: Any = cast("Any", hiredis).Reader(protocolError=InvalidResponse, replyError=_reply_error, notEnoughData=_NOTHING)
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, pool: Any, timeout_s: float) -> "Wire":
        """Opens a connection as the pool would. Raises `RedisError`, `OSError`."""
        connection = pool.make_connection()
        connection.retry = Retry(NoBackoff(), 0)
        await connection.connect()  # one by Sentinel asks who is primary here and nowhere else
        return cls(connection, timeout_s)

    @property
    def alive(self) -> bool:
        """Whether it can be used."""
        return not self._transport.is_closing()

    def send(self, packed: bytes, n_answers: int) -> asyncio.Future[list[Any]]:
        """Writes commands. The future brings their answers, or a `RedisError` where the connection breaks."""
        sent = _Sent(n_answers)
        if not self._waiting:
            self._deadline.start()
        self._waiting.append(sent)
        self._transport.write(packed)
        return sent.future

    def close(self, reason: RedisError | None = None) -> None:
        """Ends it; whatever waits fails with ``reason``."""
        self._deadline.stop()
        self._transport.abort()
        # redis-py would wait for a stream that this has taken the place of.
        self._connection._writer = self._connection._reader = None
        while self._waiting:
            self._waiting.popleft().fail(reason or RedisConnectionError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            self._parser.feed(data)
            while (answer := self._parser.gets()) is not _NOTHING:
                self._take(answer)
        except RedisConnectionError as error:
            self.close(error)
            return
        except RedisError as error:
            self.close(RedisConnectionError(f"not what Redis says: {error!r}"))
            return
        if self._waiting:
            self._deadline.start()
        else:
            self._deadline.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.close(RedisConnectionError(f"the connection ended: {exc!r}" if exc else "the connection was closed by the server"))

    def _take(self, answer: Any) -> None:
        if self._by_sentinel and isinstance(answer, ResponseError) and str(answer).startswith("READONLY"):
            raise RedisConnectionError(f"there is another primary by now: {answer}")
        if not self._waiting:
            raise RedisConnectionError("an answer that nobody waits for")
        sent = self._waiting[0]
        sent.answers.append(answer)
        if len(sent.answers) == sent.n_answers:
            self._waiting.popleft().finish()

    def _expire(self) -> None:
        self.close(RedisTimeoutError(f"no answer within {self._timeout_s:g} s"))


class _Sent:
    """Commands of one caller that were written."""

    __slots__ = ("answers", "future", "n_answers")

    def __init__(self, n_answers: int) -> None:
        self.n_answers = n_answers
        self.answers: list[Any] = []
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result(self.answers)

    def fail(self, error: RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _reply_error(text: str) -> ResponseError:
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
