"""Owns the event stream as server-sent events: what happened in a trial, resumable by ``Last-Event-ID``."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import StreamingResponse

from services.common.app import Stopping
from services.common.errors import BadRequest, Busy, Unavailable
from services.trajectory_store.redis_store.events import Event, Events
from services.trajectory_store.routes.deps import StoreDep, guarded_router

LOOK_S = 0.25
"""How late an event may be."""
KEEP_ALIVE_S = 15.0
"""Proxies cut connections that say nothing."""
MAX_LISTENERS = 64


def router() -> APIRouter:
    """``/v1/events``."""
    routes = guarded_router("events")
    routes.add_api_route("/events", listen, methods=["GET"])
    return routes


async def listen(
    request: Request,
    store: StoreDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d+-\d+$")] = None,
    after: Annotated[str | None, Query(pattern=r"^\d+-\d+$")] = None,
) -> StreamingResponse:
    """Events from now on, or from behind ``Last-Event-ID`` (``?after=`` where no header can be set; ``0-0`` is everything that is kept).

    An event ``gap`` comes first where events behind the given id were dropped already.
    """
    if last_event_id is not None and after is not None and last_event_id != after:
        raise BadRequest("after: it differs from the Last-Event-ID header; give one of them", param="after")
    listeners: set[str] = request.app.state.listeners
    if len(listeners) >= MAX_LISTENERS:
        raise Busy(f"{MAX_LISTENERS} clients listen already", code="too_many_listeners", retry_after_s=10)
    oldest, newest = await store.events.ends()
    start = last_event_id or after or newest
    gap = start != "0-0" and _number(start) < _number(oldest)
    me: str = request.scope["state"]["request_id"]
    listeners.add(me)
    stream = _stream(store.events, start, gap, request.app.state.stopping)
    return StreamingResponse(_until_gone(stream, listeners, me), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _until_gone(stream: AsyncIterator[bytes], listeners: set[str], me: str) -> AsyncIterator[bytes]:
    try:
        async for part in stream:
            yield part
    finally:
        listeners.discard(me)


async def _stream(events: Events, start: str, gap: bool, stopping: Stopping) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    if gap:
        yield b'event: gap\ndata: {"detail": "older events are no longer kept"}\n\n'
    said = time.monotonic()
    while not stopping.begun:
        found = await _heard(events, start)
        for event in found:
            start = event.event_id
            yield _frame(event)
        now = time.monotonic()
        if found:
            said = now
        elif now - said > KEEP_ALIVE_S:
            said = now
            yield b": still here\n\n"
        if not found:
            await asyncio.sleep(LOOK_S)


async def _heard(events: Events, start: str) -> list[Event]:
    """What follows an event. While Redis is away nothing does, and the stream stays open."""
    try:
        return await events.after(start)
    except Unavailable:
        return []


def _frame(event: Event) -> bytes:
    return f"id: {event.event_id}\nevent: {event.name}\ndata: ".encode() + orjson.dumps(event.fields) + b"\n\n"


def _number(event_id: str) -> tuple[int, int]:
    time_ms, _, count = event_id.partition("-")
    return int(time_ms), int(count)
