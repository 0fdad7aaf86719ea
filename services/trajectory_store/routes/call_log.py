"""Owns ``POST /v1/call_log``: intents and records as a policy proxy sends them, message after message in one request that it keeps.

What goes wrong before the first message is answered is an HTTP error. Later the answer just ends, and whoever sends what had no answer
again, in a new request, gets the error there. Refuses to say of an entry that it was written before it is durable.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from starlette.types import Receive, Scope, Send

from services.common.app import Metrics
from services.common.errors import BadRequest, ServiceError
from services.common.frames import FrameReader, framed
from services.common.http import MSGPACK
from services.common.ids import is_valid_id
from services.common.wire.call_log import LogEntry, LogOutcome, decode_entries, encode_log
from services.common.wire.calls import decode_call
from services.trajectory_store.routes.deps import add_raw_route, budget_of, guarded_router, store_of

log = logging.getLogger(__name__)

IDLE_S = 2.0
"""A request that says nothing for so long is ended; so a store that is told to stop need not wait longer for it."""
MAX_DIGEST = 256


class LogMetrics:
    """What the log costs: its requests last as long as their proxies have something to say."""

    def __init__(self, metrics: Metrics) -> None:
        self._seconds = metrics.histogram("call_log_message_seconds", "Time to write one message of the call log")
        self._lines = metrics.counter("call_log_lines_total", "Lines of the call log by outcome", ("status",))

    def wrote(self, outcomes: Sequence[LogOutcome], seconds: float) -> None:
        """Counts a message."""
        self._seconds.observe(seconds)
        for status, count in Counter(outcome.status for outcome in outcomes).items():
            self._lines.labels(str(status)).inc(count)


def router() -> APIRouter:
    """``/v1/call_log``."""
    routes = guarded_router("sessions")
    add_raw_route(routes, "/call_log", log_calls, "POST")
    return routes


async def log_calls(request: Request) -> "Outcomes":
    """Body: the messages of a call log. Every entry of one is durable, or was refused with the reason, once it is answered."""
    answers = _answers(request)
    async for first in answers:
        return Outcomes(request, first, answers)
    raise _bad("the body has no message")


class Outcomes:
    """The answer, an ASGI application: each message as soon as it is there."""

    def __init__(self, request: Request, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._request = request
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stopping: asyncio.Event = self._request.app.state.stopping
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", MSGPACK.encode())]})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            while not stopping.is_set() and (answer := await anext(self._rest, None)) is not None:
                await send({"type": "http.response.body", "body": answer, "more_body": True})
        except ServiceError as error:
            log.info("a call log ends: %s: %s", error.code, error.detail)
        finally:
            await self._rest.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answers(request: Request) -> AsyncGenerator[bytes]:
    """The answers to the messages of the body, until it ends or says nothing more. Raises `ServiceError`."""
    budget, metrics = budget_of(request), request.app.state.log_metrics
    frames = FrameReader(budget.max_body)
    with budget.hold() as held:
        async for chunk in _chunks(request):
            held.add(len(chunk))
            try:
                messages = frames.feed(chunk)
            except ValueError as error:
                raise _bad(str(error)) from error
            for message in messages:
                started = time.perf_counter()
                outcomes = await _written(request, message)
                metrics.wrote(outcomes, time.perf_counter() - started)
                yield framed(encode_log(outcomes))
            if not frames.in_message:
                held.clear()
    if frames.in_message:
        raise _bad("the body ended within a message")


async def _chunks(request: Request) -> AsyncGenerator[bytes]:
    more = True
    while more:
        try:
            async with asyncio.timeout(IDLE_S):
                part = await request.receive()
        except TimeoutError:
            return
        more = part.get("more_body", False)
        if data := part.get("body"):
            yield data


async def _written(request: Request, message: bytes) -> list[LogOutcome]:
    try:
        entries = decode_entries(message)
    except ValueError as error:
        raise _bad(str(error)) from error
    refused = {place: refusal for place, entry in enumerate(entries) if (refusal := _refusal(entry))}
    good = [entry for place, entry in enumerate(entries) if place not in refused]
    written = iter(await (await store_of(request)).sessions.log(good))
    return [refused.get(place) or next(written) for place in range(len(entries))]


def _refusal(entry: LogEntry) -> LogOutcome | None:
    """Why a line cannot be written, whatever the session says of it."""
    for name, value in (("session_id", entry.session_id), ("call_id", entry.call_id)):
        if not is_valid_id(value):
            return LogOutcome(400, 0, "bad_request", f"{name}: {value!r} is not an id; use letters, digits and . _ : - (at most 160)")
    if len(entry.digest) > MAX_DIGEST:
        return LogOutcome(400, 0, "bad_request", f"digest: at most {MAX_DIGEST} characters")
    if not entry.record:
        return None
    try:
        record = decode_call(entry.record)
    except ValueError as error:
        return LogOutcome(400, 0, "bad_call_record", str(error))
    if (record.session_id, record.call_id) == (entry.session_id, entry.call_id):
        return None
    says = f"the record is call {record.call_id} of session {record.session_id}, the line says {entry.call_id} of {entry.session_id}"
    return LogOutcome(400, 0, "bad_request", f"session_id, call_id: {says}")


def _bad(reason: str) -> BadRequest:
    return BadRequest(reason, code="bad_call_log")
