"""Owns which requests become calls: admission, and the guard that runs no call twice.

The same call id is replayed when it is recorded and joined while it is in flight; so is an SDK's retry of the same body. Refuses calls
over the limit (`Busy`) and ids that come back with another body (`Conflict`). What a call does is `turns`.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from services.common.errors import BadRequest, Busy, Conflict, Unavailable
from services.common.ids import is_valid_id, new_id
from services.common.wire.calls import CallRecord
from services.policy_proxy.alignment import RESPONSE_KEY
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.sessions import Session, SessionTable


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the agent."""

    body: bytes
    call_id: str
    policy_version: int
    """The newest version in the call; -1 where it has no tokens."""
    overhead_ms: float


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


@dataclass(frozen=True, slots=True)
class Done:
    """A recorded call; ``waited_s`` of its time went to policy servers and to waiting for one."""

    record: CallRecord
    waited_s: float = 0.0


Work = Callable[[Session, CallKey], Awaitable[Done]]


class CallService:
    """Admits calls of all sessions."""

    def __init__(self, sessions: SessionTable, metrics: ProxyMetrics, *, max_in_flight: int, join_timeout_s: float) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._join_timeout_s = join_timeout_s
        self.in_flight = 0

    async def answer(self, incoming: Incoming, work: Work) -> Answer:
        """Runs ``work`` for a new call, else the recorded answer of the call this one repeats."""
        started = time.perf_counter()
        session = await self._sessions.get(incoming.session_id)
        await self._sessions.settle(session)
        key = _key(session, incoming)
        done = await self._replay(session, key) or await self._run(session, key, work)
        if done.record.digest != key.digest:
            raise Conflict(f"Idempotency-Key: {key.call_id} was used for another body before", code="idempotency_mismatch")
        overhead_s = time.perf_counter() - started - done.waited_s
        self._metrics.overhead.observe(overhead_s)
        return _answer(done.record, overhead_s)

    async def _replay(self, session: Session, key: CallKey) -> Done | None:
        known = session.calls.get(key.call_id)
        in_flight = session.in_flight.get(key.call_id)
        if known is None and in_flight is None:
            return None
        self._metrics.calls.labels("replayed").inc()
        if known is not None:
            return Done(known.record)
        assert in_flight is not None
        started = time.perf_counter()
        await asyncio.wait({in_flight}, timeout=self._join_timeout_s)
        if not in_flight.done() or in_flight.cancelled():
            raise Unavailable("the call that this one repeats did not finish; send it again", code="call_failed", retry_after_s=1.0)
        return Done(in_flight.result(), time.perf_counter() - started)

    async def _run(self, session: Session, key: CallKey, work: Work) -> Done:
        if self.in_flight >= self._max_in_flight:
            raise Busy(f"{self.in_flight} calls are in flight, the limit of this proxy", retry_after_s=1.0)
        outcome: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        session.in_flight[key.call_id] = outcome
        session.call_of_digest[key.digest] = key.call_id
        self.in_flight += 1
        try:
            done = await work(session, key)
            outcome.set_result(done.record)
            return done
        finally:
            self.in_flight -= 1
            del session.in_flight[key.call_id]
            if not outcome.done():
                outcome.cancel()
                self._metrics.calls.labels("failed").inc()


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
    return Answer(orjson.dumps(body), record.call_id, newest, overhead_s * 1000)
