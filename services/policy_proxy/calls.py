"""Owns which requests become calls: admission, the guard that runs no call twice, and the end of a call that nobody waits for.

The same call id is replayed when it is recorded and joined while it is in flight; so is an SDK's retry of the same body. A call whose
clients have all hung up is cancelled. Refuses calls over the limit (`Busy`) and ids that come back with another body (`Conflict`). What
a call does is `turns`.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from services.common.errors import BadRequest, Busy, Conflict, ServiceError, Unavailable
from services.common.ids import is_valid_id, new_id
from services.common.wire.calls import CallRecord
from services.policy_proxy.alignment import RESPONSE_KEY
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.sessions import Done, InFlight, Session, SessionTable


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the agent."""

    body: bytes
    call_id: str
    policy_version: int
    """The newest version in the call; -1 where it has no tokens."""
    overhead_ms: float
    malformed_tool_call: bool = False


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it came. ``call_id`` is its Idempotency-Key or ""; ``is_retry``: an SDK says that it sent this body before."""

    session_id: str
    raw: bytes
    call_id: str
    is_retry: bool


@dataclass(frozen=True, slots=True)
class CallKey:
    """Which call a request is."""

    call_id: str
    digest: str
    """Of the request body."""
    started_at: float
    """Unix seconds."""


Work = Callable[[Session, CallKey], Coroutine[Any, Any, Done]]
Gone = Callable[[], Coroutine[Any, Any, None]]
"""Returns once the client of the request has hung up."""


class ClientGone(ServiceError):
    """Nobody is there to be answered; for the log and the metrics."""

    status, code, title = 499, "client_closed_request", "Client closed the request"


async def _stays() -> None:
    await asyncio.Event().wait()


class CallService:
    """Admits calls of all sessions."""

    def __init__(self, sessions: SessionTable, metrics: ProxyMetrics, *, max_in_flight: int) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self.in_flight = 0

    async def answer(self, incoming: Incoming, work: Work, gone: Gone = _stays) -> Answer:
        """Runs ``work``, which has a deadline of its own, or answers as the call did that this one repeats.

        Raises `ClientGone` once ``gone`` returns.
        """
        started = time.perf_counter()
        session = await self._sessions.get(incoming.session_id)
        await self._sessions.settle(session)
        key = _key(session, incoming)
        done = self._recorded(session, key) or await self._finished(session, key, work, gone)
        if done.record.digest != key.digest:
            raise Conflict(f"Idempotency-Key: {key.call_id} was used for another body before", code="idempotency_mismatch")
        overhead_s = time.perf_counter() - started - done.waited_s
        self._metrics.overhead.observe(overhead_s)
        return _answer(done.record, overhead_s)

    def _recorded(self, session: Session, key: CallKey) -> Done | None:
        known = session.calls.get(key.call_id)
        if known is None:
            return None
        self._metrics.calls.labels("replayed").inc()
        return Done(known.record)

    async def _finished(self, session: Session, key: CallKey, work: Work, gone: Gone) -> Done:
        flight = session.in_flight.get(key.call_id)
        if flight is None:
            return await self._wait(self._start(session, key, work), gone)
        self._metrics.calls.labels("replayed").inc()
        started = time.perf_counter()
        done = await self._wait(flight, gone)
        return Done(done.record, time.perf_counter() - started)

    def _start(self, session: Session, key: CallKey, work: Work) -> InFlight:
        if self.in_flight >= self._max_in_flight:
            raise Busy(f"{self.in_flight} calls are in flight, the limit of this proxy", retry_after_s=1.0)
        flight = InFlight(asyncio.create_task(work(session, key), name=key.call_id))
        session.in_flight[key.call_id] = flight
        session.call_of_digest[key.digest] = key.call_id
        self.in_flight += 1
        flight.task.add_done_callback(partial(self._landed, session, key.call_id))
        return flight

    def _landed(self, session: Session, call_id: str, task: asyncio.Task[Done]) -> None:
        # A callback and no `finally` in the task: one that is cancelled before it begins runs none of its own code.
        self.in_flight -= 1
        del session.in_flight[call_id]
        if task.cancelled():
            self._metrics.calls.labels("cancelled").inc()
        elif task.exception() is not None:
            self._metrics.calls.labels("failed").inc()

    async def _wait(self, flight: InFlight, gone: Gone) -> Done:
        flight.wanted_by += 1
        leaving = asyncio.create_task(gone())
        try:
            await asyncio.wait({flight.task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            flight.wanted_by -= 1
            if not flight.wanted_by and not flight.task.done():
                flight.task.cancel()
        if not flight.task.done():
            raise ClientGone("the client hung up before its call was answered")
        if flight.task.cancelled():
            raise Unavailable("the call that this one repeats did not finish; send it again", code="call_failed", retry_after_s=1.0)
        return flight.task.result()


def _key(session: Session, incoming: Incoming) -> CallKey:
    call_id = incoming.call_id
    if call_id and not is_valid_id(call_id):
        raise BadRequest("Idempotency-Key: letters, digits and . _ : - only, at most 160", code="invalid_value", param="Idempotency-Key")
    digest = hashlib.blake2b(incoming.raw, digest_size=16).hexdigest()
    if not call_id and incoming.is_retry:
        call_id = session.call_of_digest.get(digest, "")
    return CallKey(call_id or new_id("call"), digest, time.time())


def _answer(record: CallRecord, overhead_s: float) -> Answer:
    body = {name: value for name, value in record.response.items() if name != RESPONSE_KEY}
    newest = max((version for version, _ in record.versions), default=-1)
    return Answer(orjson.dumps(body), record.call_id, newest, overhead_s * 1000, record.malformed_tool_call)
