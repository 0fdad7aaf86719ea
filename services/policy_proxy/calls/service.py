"""Owns which requests become calls: admission, the guard that runs no call twice, and the end of a call that nobody waits for.

The same call id is replayed when it is recorded and joined while it is in flight; so is an SDK's retry of the same body, streamed or
not. A call whose clients have all hung up is cancelled. Refuses calls over the limit (`Busy`) and ids that come back with another body
(`Conflict`). What a call does is `turns`.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from services.common.errors import BadRequest, Busy, Conflict, ServiceError, Unavailable
from services.common.ids import is_valid_id, new_id
from services.common.wire.calls import CallRecord
from services.policy_proxy.calls.feed import Feed
from services.policy_proxy.chat.answer import Part, parts_of
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.prompts.alignment import RESPONSE_KEY
from services.policy_proxy.sessions.table import Done, InFlight, Session, SessionTable

KEEP_ALIVE_S = 15.0
"""A stream says at least this often that it is alive."""


class Answer(msgspec.Struct, frozen=True):
    """What goes back to the agent."""

    response: dict[str, Any]
    """The OpenAI answer."""
    call_id: str
    policy_version: int
    """The newest version in the call; -1 where it has no tokens."""
    overhead_ms: float
    malformed_tool_call: bool = False


class Incoming(msgspec.Struct, frozen=True):
    """A request as it came. ``call_id`` is its Idempotency-Key or ""; ``is_retry``: an SDK says that it sent this body before."""

    session_id: str
    raw: bytes
    call_id: str
    is_retry: bool
    trace_id: str = ""


class CallKey(msgspec.Struct, frozen=True):
    """Which call a request is."""

    call_id: str
    digest: str
    """Of the request body."""
    started_at: float
    """Unix seconds."""
    trace_id: str = ""

    def choice_id(self, index: int) -> str:
        """The call that makes one of several choices; the first is the call itself."""
        return f"{self.call_id}:{index}" if index else self.call_id


Work = Callable[[Session, CallKey, Feed], Coroutine[Any, Any, Done]]
"""Runs a call; what is put into the feed is what a stream of it shows before the call is recorded."""
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
        session = await self._session(incoming)
        key = _key(session, incoming)
        done = self._recorded(session, key)
        if done is None:
            began = time.perf_counter()
            flight, is_ours = self._joined(session, key, work)
            done = await self._wait(flight, gone)
            done = done if is_ours else Done(done.record, time.perf_counter() - began)
        overhead_s = time.perf_counter() - started - done.waited_s
        self._metrics.overhead.observe(overhead_s)
        return answer_of(done.record, overhead_s)

    async def stream(self, incoming: Incoming, work: Work, gone: Gone) -> "Stream":
        """The same, as a stream; its ``events`` must be read to the end or closed."""
        session = await self._session(incoming)
        key = _key(session, incoming)
        recorded = self._recorded(session, key)
        if recorded is not None:
            return Stream(key.call_id, recorded.record, _replay(recorded.record))
        flight, _ = self._joined(session, key, work)
        # From here on the request counts as waiting, also before its events are read for the first time.
        flight.wanted_by += 1
        return Stream(key.call_id, None, self._follow(flight, gone))

    async def _session(self, incoming: Incoming) -> Session:
        session = await self._sessions.get(incoming.session_id)
        await self._sessions.settle(session)
        return session

    def _recorded(self, session: Session, key: CallKey) -> Done | None:
        known = session.calls.get(key.call_id)
        if known is None:
            return None
        _check_digest(key, known.record.digest)
        self._metrics.calls.labels("replayed").inc()
        return Done(known.record)

    def _joined(self, session: Session, key: CallKey, work: Work) -> tuple[InFlight, bool]:
        """The call in flight under this id, or a new one; and whether it is new."""
        flight = session.in_flight.get(key.call_id)
        if flight is None:
            return self._start(session, key, work), True
        _check_digest(key, flight.digest)
        self._metrics.calls.labels("replayed").inc()
        return flight, False

    def _start(self, session: Session, key: CallKey, work: Work) -> InFlight:
        if self.in_flight >= self._max_in_flight:
            raise Busy(f"{self.in_flight} calls are in flight, the limit of this proxy", retry_after_s=1.0)
        feed = Feed()
        flight = InFlight(asyncio.create_task(work(session, key, feed), name=key.call_id), key.digest, feed)
        session.in_flight[key.call_id] = flight
        session.call_of_digest[key.digest] = key.call_id
        self.in_flight += 1
        flight.task.add_done_callback(partial(self._landed, session, key.call_id, feed))
        return flight

    def _landed(self, session: Session, call_id: str, feed: Feed, task: asyncio.Task[Done]) -> None:
        # A callback and no `finally` in the task: one that is cancelled before it begins runs none of its own code.
        self.in_flight -= 1
        del session.in_flight[call_id]
        feed.wake()
        if task.cancelled():
            self._metrics.calls.labels("cancelled").inc()
        elif task.exception() is not None:
            self._metrics.calls.labels("failed").inc()

    async def _wait(self, flight: InFlight, gone: Gone) -> Done:
        flight.wanted_by += 1
        leaving = asyncio.create_task(gone())
        leaving.add_done_callback(partial(_let_go, flight))
        try:
            await flight.task
        except asyncio.CancelledError:
            if (me := asyncio.current_task()) is not None and me.cancelling():
                raise
            # It was the call that was cancelled; its end says why.
        finally:
            leaving.cancel()
        if leaving.done():
            raise ClientGone("the client hung up before its call was answered")
        return _result(flight)

    async def _follow(self, flight: InFlight, gone: Gone) -> AsyncGenerator["Event"]:
        """The parts of a call in flight as they come. The request has been counted as waiting for it."""
        leaving = asyncio.create_task(gone())
        leaving.add_done_callback(lambda _: flight.feed.wake())
        sent = 0
        try:
            while not flight.task.done() and not leaving.done():
                parts = flight.feed.parts[sent:]
                sent += len(parts)
                if parts or not await flight.feed.wait(KEEP_ALIVE_S):
                    yield parts
        finally:
            leaving.cancel()
            _let_go(flight)
        done = _result(flight)
        yield flight.feed.parts[sent:]
        yield done.record


Event = list[Part] | CallRecord
"""What a stream gives: parts (none: a sign of life), and last the record of the call."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A call being streamed. ``record`` is there where it was recorded before."""

    call_id: str
    record: CallRecord | None
    events: AsyncGenerator[Event]


async def _replay(record: CallRecord) -> AsyncGenerator[Event]:
    yield parts_of(record.response)
    yield record


def _let_go(flight: InFlight, _gone: object = None) -> None:
    """One request less waits; the last one takes the call with it."""
    flight.wanted_by -= 1
    if not flight.wanted_by and not flight.task.done():
        flight.task.cancel()


def _result(flight: InFlight) -> Done:
    if not flight.task.done():
        raise ClientGone("the client hung up before its call was answered")
    if flight.task.cancelled():
        raise Unavailable("the call that this one repeats did not finish; send it again", code="call_failed", retry_after_s=1.0)
    return flight.task.result()


def _check_digest(key: CallKey, digest: str) -> None:
    if digest != key.digest:
        raise Conflict(f"Idempotency-Key: {key.call_id} was used for another body before", code="idempotency_mismatch")


def _key(session: Session, incoming: Incoming) -> CallKey:
    call_id = incoming.call_id
    if call_id and not is_valid_id(call_id):
        raise BadRequest("Idempotency-Key: letters, digits and . _ : - only, at most 160", code="invalid_value", param="Idempotency-Key")
    digest = hashlib.blake2b(incoming.raw, digest_size=16).hexdigest()
    if not call_id and incoming.is_retry:
        call_id = session.call_of_digest.get(digest, "")
    return CallKey(call_id or new_id("call"), digest, time.time(), incoming.trace_id)


def answer_of(record: CallRecord, overhead_s: float) -> Answer:
    """A recorded call as it goes back to the agent."""
    response = {name: value for name, value in record.response.items() if name != RESPONSE_KEY}
    malformed = any("malformed_tool_call" in choice for choice in response["choices"])
    return Answer(response, record.call_id, record.newest_version(), overhead_s * 1000, malformed or record.malformed_tool_call)
