"""Owns ``POST /v1/call_log``: intents and records as a policy proxy sends them, message after message in one request that it keeps.

What goes wrong before the first message is answered is an HTTP error. Later the answer just ends, and whoever sends what had no answer
again, in a new request, gets the error there. Refuses to say of an entry that it was written before it is durable.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.types import Receive, Scope, Send

from services.common.app import Metrics, Stopping
from services.common.errors import BadRequest, ServiceError
from services.common.frames import FrameReader, framed
from services.common.http import MSGPACK
from services.common.ids import is_valid_id
from services.common.wire.call_log import LogEntry, LogOutcome, decode_entries, encode_log
from services.common.wire.calls import decode_call
from services.trajectory_store.routes.deps import add_raw_route, guarded_router
from services.trajectory_store.tenants import Tenants

log = logging.getLogger(__name__)

MAX_DIGEST = 256


class LogMetrics:
    """What the log costs: its requests last as long as their proxies have something to say."""

    def __init__(self, metrics: Metrics) -> None:
        self._seconds = metrics.histogram("call_log_message_seconds", "Time to write one message of the call log")
        self._lines = metrics.counter("call_log_lines_total", "Lines of the call log by outcome", ("status",))

    def wrote(self, outcomes: Sequence[LogOutcome], seconds: float) -> None:
        """Counts a message."""
        self._seconds.observe(seconds)
        for status, count in Counter([outcome.status for outcome in outcomes]).items():
            self._lines.labels(str(status)).inc(count)


def router() -> APIRouter:
    """``/v1/call_log``."""
    routes = guarded_router("sessions")
    add_raw_route(routes, "/call_log", log_calls, "POST")
    return routes


async def log_calls(request: Request) -> "LogStream":
    """Body: the messages of a call log. Every entry of one is durable, or was refused with the reason, once it is answered."""
    stream = LogStream(request)
    await stream.begin()
    return stream


class LogStream:
    """One request, which is its own answer. What it holds of its body counts against the budget until it was answered."""

    def __init__(self, request: Request) -> None:
        state = request.app.state
        self._receive = request.receive
        self._trial: str | None = request.scope["state"].get("trial")
        self._tenants: Tenants = state.tenants
        self._metrics: LogMetrics = state.log_metrics
        self._stopping: Stopping = state.stopping
        self._held = state.bodies.open()
        self._frames = FrameReader(state.bodies.max_body)
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._first = b""

    async def begin(self) -> None:
        """Answers the first message. Raises `ServiceError`."""
        try:
            message = await self._message()
            if message is None:
                raise _bad("the body has no message")
            self._first = await self._answer(message)
        except BaseException:
            self._held.clear()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", MSGPACK.encode())]})
        answer = self._first
        try:
            while True:
                await send({"type": "http.response.body", "body": answer, "more_body": True})
                message = await self._message()
                if message is None:
                    break
                answer = await self._answer(message)
        except ServiceError as error:
            log.info("a call log ends: %s: %s", error.code, error.detail)
        finally:
            self._held.clear()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _message(self) -> bytes | None:
        """The next one; None at the end of the body, and where the service stops. Raises `TooLarge`, `Busy`, `BadRequest`."""
        while not self._messages:
            if not self._frames.in_message:
                self._held.clear()
            part = None if self._ended else await self._stopping.or_next(self._receive)
            if part is None:
                if self._frames.in_message:
                    raise _bad("the body ended within a message")
                return None
            self._ended = not part.get("more_body", False)
            data: bytes = part.get("body", b"")
            self._held.add(len(data))
            try:
                self._messages.extend(self._frames.feed(data))
            except ValueError as error:
                raise _bad(str(error)) from error
        return self._messages.popleft()

    async def _answer(self, message: bytes) -> bytes:
        started = time.perf_counter()
        try:
            entries = decode_entries(message)
        except ValueError as error:
            raise _bad(str(error)) from error
        refused = {place: refusal for place, entry in enumerate(entries) if (refusal := _refusal(entry))}
        good = [entry for place, entry in enumerate(entries) if place not in refused] if refused else entries
        store = await self._tenants.of(self._trial, writes=True)
        written = await store.sessions.log(good)
        if refused:
            rest = iter(written)
            written = [refused.get(place) or next(rest) for place in range(len(entries))]
        self._metrics.wrote(written, time.perf_counter() - started)
        return framed(encode_log(written))


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
