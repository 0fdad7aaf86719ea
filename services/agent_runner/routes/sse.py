"""Owns server-sent events: an episode's log as an event stream that ends with the episode.

Each event carries its number as ``id:``, so that a client that reconnects says with ``Last-Event-ID`` where it was. Comments keep idle
connections open. Refuses to buffer: what a slow client has not read stays in the log, and is a gap once the log has moved on.
"""

import asyncio
from collections.abc import AsyncGenerator

import orjson

from services.agent_runner.episodes.events import FINISHED, STOPPED, EpisodeLog, Event
from services.common.errors import Busy

HEARTBEAT_S = 15.0
MAX_READERS = 256
"""Streams open at once in this process."""


class Streams:
    """The event streams that are open."""

    def __init__(self, *, limit: int = MAX_READERS, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._limit = limit
        self._heartbeat_s = heartbeat_s
        self._open = 0

    def open(self, log: EpisodeLog, seen: int) -> AsyncGenerator[bytes]:
        """The events after number ``seen`` and those to come. Raises `Busy`."""
        if self._open >= self._limit:
            raise Busy(f"{self._limit} event streams are open already; close one", retry_after_s=5)
        return self._stream(log, seen)

    async def _stream(self, log: EpisodeLog, seen: int) -> AsyncGenerator[bytes]:
        self._open += 1
        try:
            while True:
                events = log.after(seen)
                for event in events:
                    seen = event.number
                    yield encode(event)
                if events and events[-1].kind in (FINISHED, STOPPED):
                    return
                if not events:
                    yield await self._next(log)
        finally:
            self._open -= 1

    async def _next(self, log: EpisodeLog) -> bytes:
        """Waits for an event; a comment to send where none came in time, else nothing."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await log.grown()
        except TimeoutError:
            return b": nothing new\n\n"
        return b""


def encode(event: Event) -> bytes:
    """One event in the format of the HTML standard."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), orjson.dumps(event.data))
