"""Owns answering with a server-sent event stream: what is written, when, and how an error that comes too late is told.

An error before the first event is an ordinary HTTP error; after it, it is an event, because the status has left. This is a request
boundary: whatever goes wrong here is told to the client and logged, and nothing else sees it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

from fastapi import Response
from starlette.types import Receive, Scope, Send

from services.common.errors import ServiceError
from services.common.wire.calls import CallRecord
from services.policy_proxy.calls.service import ClientGone, Event
from services.policy_proxy.chat import Json
from services.policy_proxy.chat.answer import Part

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 120.0
"""A client that reads nothing for this long, with the connection's buffers full, is as good as gone."""
KEEP_ALIVE = b": still working\n\n"
"""A comment; clients skip it, and nothing between us and them takes the connection for dead."""


class _Unread(Exception):
    """The client takes nothing more."""


class EventWriter(Protocol):
    """Writes one call in the events of one API."""

    def parts(self, parts: list[Part]) -> bytes:
        """The next parts."""
        ...

    def end(self, response: Json, policy_version: int) -> bytes:
        """What follows the last part of a recorded answer."""
        ...

    def error(self, error: ServiceError) -> bytes:
        """An error in the middle of the stream; nothing follows it."""
        ...


class EventStream(Response):
    """A call as an event stream. ``first`` has been read off ``events`` already, so that its errors could be HTTP errors."""

    media_type = "text/event-stream"

    def __init__(self, first: Event, events: AsyncGenerator[Event], writer: EventWriter, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, *, more: bool = True) -> None:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": data, "more_body": more})
            except TimeoutError as error:
                raise _Unread from error

        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._write_all(write)
                await write(b"", more=False)
            except _Unread:
                log.warning("a stream was not read for %g s and is given up", SEND_TIMEOUT_S)

    async def _write_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        try:
            await write(self._written(self._first))
            async for event in self._events:
                await write(self._written(event))
        except ServiceError as error:
            await write(self._failed(error))
        except _Unread:
            raise
        except Exception:
            log.exception("a stream broke off")
            await write(self._writer.error(ServiceError("internal error, see the log")))

    def _written(self, event: Event) -> bytes:
        if isinstance(event, CallRecord):
            return self._writer.end(event.response, event.newest_version())
        return self._writer.parts(event) if event else KEEP_ALIVE

    def _failed(self, error: ServiceError) -> bytes:
        if isinstance(error, ClientGone):
            return b""
        log.warning("a stream ended with %s: %s", error.code, error.detail)
        return self._writer.error(error)


def data(payload: bytes, event: str = "") -> bytes:
    """One event of JSON ``payload``; OpenAI's chat completions have no event names, the other APIs have."""
    return (b"event: " + event.encode() + b"\n" if event else b"") + b"data: " + payload + b"\n\n"
