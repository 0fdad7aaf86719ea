"""Owns the wire under `services.common.http`: HTTP/1.1 over kept connections, one request at a time on each.

httptools (the parser of uvicorn) does the parsing. A connection that has served one request serves the next; the same request through
aiohttp costs three times the CPU (docs/benchmarks.md), and services make several for every turn of every episode.
Refuses what services do not need of each other: redirects, cookies, proxies, content encodings (none is asked for), HEAD, pipelining.
"""

import asyncio
import re
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ssl import SSLContext, create_default_context
from typing import cast
from urllib.parse import quote, unquote, urlsplit

import httptools

from services.common.config.base import http_url

IDLE_S = 15.0
"""A connection that waited longer is not used again: the other side, or something between, may have dropped it without a word."""
UNREAD_BYTES = 1 << 20
"""How much of a streamed answer may wait for its reader before the sender is held up."""

_PLAIN_TARGET = re.compile(r"[!-~]+")
_LINE_BREAK = re.compile(r"[\r\n\0]")


class ConnectionFailed(Exception):
    """No answer, or only a part of one: the connection ended, or what came is not HTTP."""


class Exchange:
    """The answer to one request, as it arrives: ``status``, ``headers`` (lower-case names), then the body."""

    __slots__ = ("_failure", "_waiter", "chunks", "complete", "head_complete", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.head_complete = False
        self.complete = False
        self._failure: ConnectionFailed | None = None
        self._waiter: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Lets whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, reason: str) -> None:
        """Ends an exchange that is not complete."""
        if not self.complete and self._failure is None:
            self._failure = ConnectionFailed(reason)
            self.notify()

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.complete or self._failure is not None

    async def news(self) -> None:
        """Waits for `notify`. Raises `ConnectionFailed` where the exchange has failed."""
        if self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure


class Connection(asyncio.Protocol):
    """One connection. `send` begins an exchange; ``reusable`` says whether another may follow it."""

    def __init__(self) -> None:
        self.reusable = False
        self.n_requests = 0
        self.idle_since = 0.0
        self._exchange: Exchange | None = None
        self._streamed = False
        self._unread = 0
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser

    def send(self, head: bytes, body: bytes, exchange: Exchange, *, streamed: bool) -> None:
        """Writes a request. ``streamed``: whoever reads is told of every part of the answer, else of its end alone."""
        self._exchange, self._streamed, self._unread, self.reusable = exchange, streamed, 0, False
        self._parser = httptools.HttpResponseParser(self)
        self.n_requests += 1
        self._transport.writelines((head, body))

    def close(self) -> None:
        """Ends the connection at once, in the middle of an exchange too: this is how the other side learns that nobody waits."""
        self.reusable = False
        self._transport.abort()

    def send_part(self, part: bytes) -> None:
        """Writes a part of a body that was announced without its length."""
        self._transport.writelines((b"%x\r\n" % len(part), part, b"\r\n"))

    def take(self, exchange: Exchange) -> bytes:
        """What has come of the body of a streamed exchange since; nothing where nothing has."""
        data = b"".join(exchange.chunks)
        exchange.chunks.clear()
        if self._unread > UNREAD_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()
        self._unread = 0
        return data

    async def parts(self, exchange: Exchange, silence_s: float) -> AsyncIterator[bytes]:
        """The body of a streamed exchange as it comes. Raises `ConnectionFailed`, and `TimeoutError` after ``silence_s`` without news."""
        while True:
            if exchange.chunks:
                yield self.take(exchange)
            elif exchange.complete:
                return
            else:
                async with asyncio.timeout(silence_s):
                    await exchange.news()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._exchange is None or self._exchange.complete:
            # Nobody has asked for anything: whatever this is, the connection is of no use any more.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._exchange.fail(f"the answer is not HTTP/1.1: {error!r}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.reusable = False
        if (exchange := self._exchange) is None:
            return
        # A body without a length ends with its connection.
        if exc is None and exchange.head_complete and exchange.headers.keys().isdisjoint(("content-length", "transfer-encoding")):
            exchange.complete = True
            exchange.notify()
        exchange.fail(f"the connection ended: {exc!r}" if exc else "the connection was closed before the answer ended")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._current().headers[name.lower().decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        exchange = self._current()
        exchange.status = self._parser.get_status_code()
        if exchange.status < 200:
            # Another answer follows, the real one.
            exchange.headers.clear()
            return
        exchange.head_complete = True
        if self._streamed:
            exchange.notify()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        exchange = self._current()
        exchange.chunks.append(body)
        if self._streamed:
            held = self._unread > UNREAD_BYTES
            self._unread += len(body)
            if not held and self._unread > UNREAD_BYTES:
                self._transport.pause_reading()
            exchange.notify()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        exchange = self._current()
        if exchange.head_complete:
            exchange.complete = True
            self.reusable = self._parser.should_keep_alive()
            exchange.notify()

    def _current(self) -> Exchange:
        if self._exchange is None or self._exchange.complete:
            raise ConnectionFailed("more than one answer")
        return self._exchange


class Dialogue(Exchange):
    """A request whose body and answer go on beside each other, on a connection of its own.

    ``heard`` is called whenever there is something new: a part of the answer, its end, a failure.
    """

    __slots__ = ("_connection", "_heard")

    def __init__(self, connection: Connection, heard: Callable[[], None]) -> None:
        super().__init__()
        self._connection = connection
        self._heard = heard

    def notify(self) -> None:
        """Called where the exchange goes on."""
        self._heard()

    def send(self, part: bytes) -> None:
        """Writes a part of the body, which may not be empty."""
        self._connection.send_part(part)

    def take(self) -> bytes:
        """What has come of the body of the answer since; nothing where nothing has."""
        return self._connection.take(self)

    def close(self) -> None:
        """Ends both sides."""
        self._connection.close()


class Pool:
    """Connections to one origin: as many as there are requests at once; those that rest are used again, the last one first."""

    def __init__(self, base_url: str) -> None:
        """Raises `ValueError` where ``base_url`` is no http or https URL."""
        url = urlsplit(http_url(base_url))
        self._host, self._tls = url.hostname or "", url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        self._prefix = url.path.rstrip("/")
        host = url.netloc.rpartition("@")[2]
        self._fixed = f"host: {host}\r\nuser-agent: frontdesk\r\naccept: */*\r\n" + _basic_auth(url.username, url.password)
        self._context: SSLContext | None = None
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()

    async def close(self) -> None:
        """Ends all connections; requests under way fail."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        # The loop tells transports of their end in its next round.
        await asyncio.sleep(0)

    async def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (lower-case names) and body of the answer. Raises `ConnectionFailed` and `OSError`."""
        connection, exchange = await self._begin(self._head(method, path, len(body), headers), body, streamed=False)
        self._rest(connection)
        chunks = exchange.chunks
        return exchange.status, exchange.headers, chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], silence_s: float
    ) -> AsyncGenerator[tuple[int, AsyncIterator[bytes]]]:
        """Status and body, as it comes; the connection is closed where the reader leaves early. Raises as `request`, and `TimeoutError`."""
        head = self._head(method, path, len(body), headers)
        async with asyncio.timeout(silence_s):
            connection, exchange = await self._begin(head, body, streamed=True)
        try:
            yield exchange.status, connection.parts(exchange, silence_s)
        finally:
            self._rest(connection)

    async def dialogue(self, method: str, path: str, headers: Mapping[str, str], heard: Callable[[], None]) -> Dialogue:
        """Begins a request whose body has no announced length. Raises `OSError`."""
        head, connection = self._head(method, path, None, headers), await self._connect()
        dialogue = Dialogue(connection, heard)
        connection.send(head, b"", dialogue, streamed=True)
        return dialogue

    async def _begin(self, head: bytes, body: bytes, *, streamed: bool) -> tuple[Connection, Exchange]:
        """Sends a request; returns when the answer is complete, a streamed one when its head is."""
        while True:
            connection = await self._connection()
            self._busy.add(connection)
            exchange, ready = Exchange(), False
            connection.send(head, body, exchange, streamed=streamed)
            try:
                while not ready:
                    await exchange.news()
                    ready = exchange.complete or (streamed and exchange.head_complete)
                return connection, exchange
            except ConnectionFailed:
                # The other side may close a kept connection at any time, so at this moment too: then it has not seen the request.
                if connection.n_requests == 1 or exchange.status or exchange.headers:
                    raise
            finally:
                if not ready:
                    self._rest(connection)

    async def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        long_ago = loop.time() - IDLE_S
        while self._idle and self._idle[0].idle_since < long_ago:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return await self._connect()

    async def _connect(self) -> Connection:
        if self._tls and self._context is None:
            self._context = create_default_context()
        return (await asyncio.get_running_loop().create_connection(Connection, self._host, self._port, ssl=self._context))[1]

    def _rest(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    def _head(self, method: str, path: str, length: int | None, headers: Mapping[str, str]) -> bytes:
        target = path if _PLAIN_TARGET.fullmatch(path) else quote(path, safe="/%:?#[]@!$&'()*+,;=")
        body = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"{method} {self._prefix}{target} HTTP/1.1\r\n{self._fixed}{body}"]
        for name, value in headers.items():
            if _LINE_BREAK.search(value):
                raise ValueError(f"header {name}: a line break in its value")
            lines.append(f"{name}: {value}")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")


def _basic_auth(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return f"authorization: Basic {b64encode(pair).decode()}\r\n"
