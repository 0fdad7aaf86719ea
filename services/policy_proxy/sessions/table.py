"""Owns the sessions in memory: the captured calls of an episode and the calls in flight.

Memory is a cache. Everything here can be rebuilt from the store, so idle sessions are forgotten freely, sealed ones at once, and a
session goes on at another proxy after a crash. Refuses to decide what a prompt extends (`alignment`) or to run a call (`calls`).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from services.common.errors import Conflict
from services.common.wire.calls import CallRecord, Ids
from services.common.wire.store import SessionView
from services.policy_proxy.calls.feed import Feed
from services.policy_proxy.prompts.alignment import Captured, captured
from services.policy_proxy.sessions.call_log import Written
from services.policy_proxy.sessions.store import Store
from services.policy_proxy.sessions.tips import Tips

SESSIONS_KEPT = 4096
"""Sessions in memory; a session of 60 calls takes about 300 kB."""
DEFAULT_TTL_S = 3600.0
SWEEP_EVERY_S = 30.0


class Done(msgspec.Struct, frozen=True):
    """A recorded call; ``waited_s`` of its time went to policy servers and to waiting for one."""

    record: CallRecord
    waited_s: float = 0.0


@dataclass(slots=True, eq=False)
class InFlight:
    """A call that runs, and how many requests wait for its answer."""

    task: asyncio.Task[Done]
    digest: str
    """Of the request body."""
    feed: Feed
    wanted_by: int = 0


@dataclass(slots=True)
class Session:
    """One session in memory."""

    session_id: str
    ttl_s: float = DEFAULT_TTL_S
    calls: dict[str, Captured] = field(default_factory=dict[str, Captured])
    """By call id, in ordinal order."""
    parents: set[str | None] = field(default_factory=set[str | None])
    """Calls that have been extended, and None once there is a root."""
    in_flight: dict[str, InFlight] = field(default_factory=dict[str, InFlight])
    """By call id."""
    call_of_digest: dict[str, str] = field(default_factory=dict[str, str])
    """Body digest -> the call it was last sent as, for SDK retries that carry no call id."""
    recording: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a record is on its way to the store, so that ordinals have no gaps."""
    in_doubt: bool = False
    """A record was sent and no answer came: the store may know a call that memory does not."""
    server: str = ""
    """Where the last call ran and its prefix is cached."""
    touched_at: float = 0.0

    def add(self, record: CallRecord) -> None:
        """Takes in a call that the store has."""
        self.calls[record.call_id] = captured(record)
        self.parents.add(record.parent)
        self.call_of_digest[record.digest] = record.call_id

    def sequence(self, call_id: str | None) -> Ids:
        """int32 [n]: the whole sequence of a call, from the root to its last generated token."""
        parts: list[Ids] = []
        while call_id is not None:
            record = self.calls[call_id].record
            parts += [record.output_ids(), record.prompt_ids()]
            call_id = record.parent
        return np.concatenate(parts[::-1]) if parts else np.empty(0, "<i4")

    def is_branch(self, parent: str | None) -> bool:
        """Whether a call with this parent leaves a path that was there already."""
        return parent in self.parents


class SessionTable:
    """The sessions this process knows, least recently used first."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic, limit: int = SESSIONS_KEPT) -> None:
        self._store = store
        self._clock = clock
        self._limit = limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._loading: dict[str, asyncio.Lock] = {}
        self.tips = Tips()

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self, session_id: str, ttl_s: float | None) -> None:
        """Creates a session, or finds it. Raises `Conflict` once sealed."""
        view = await self._store.open_session(session_id)
        session = await self._known(session_id, view)
        session.ttl_s = ttl_s or session.ttl_s

    async def get(self, session_id: str) -> Session:
        """The session, from memory or the store. Raises `NotFound`, `Conflict` once sealed."""
        session = self._sessions.get(session_id)
        if session is None:
            session = await self._known(session_id, await self._store.session(session_id))
        self._touch(session)
        return session

    def begin(self, session: Session, call_id: str, digest: str) -> Written:
        """Notes that a call leaves for a policy server; nothing of it may leave for the agent before `begun`."""
        return self._store.intend(session.session_id, call_id, digest)

    @property
    def log_flows(self) -> bool:
        """Whether what is noted is durable at once, as far as is known."""
        return self._store.log_flows

    async def begun(self, session: Session, intent: Written) -> bool:
        """Returns once the note is durable.

        False where the store had calls of another proxy that memory did not know: they are taken in, and the prompt is to be made anew.
        """
        recorded = await self._store.durable(intent)
        if recorded <= len(session.calls):
            return True
        async with session.recording:
            # One of our own may have been on its way to memory.
            if recorded > len(session.calls):
                await self._read(session)
                return False
        return True

    async def capture(self, session: Session, make: Callable[[int], CallRecord]) -> CallRecord:
        """Makes a call durable under the next ordinal and takes it in. A call that the store has already stands as it is."""
        async with session.recording:
            await self._settle(session)
            record = make(len(session.calls))
            if record.call_id in session.calls:
                return session.calls[record.call_id].record
            session.in_doubt = True
            await self._store.record(record)
            session.in_doubt = False
            session.add(record)
            return record

    async def settle(self, session: Session) -> None:
        """Finds out whether a record whose answer was lost is in the store."""
        if session.in_doubt:
            async with session.recording:
                await self._settle(session)

    async def _settle(self, session: Session) -> None:
        if session.in_doubt:
            await self._read(session)
            session.in_doubt = False

    async def _read(self, session: Session) -> None:
        for record in await self._store.calls(session.session_id):
            if record.call_id not in session.calls:
                session.add(record)

    def last_call(self, session_id: str) -> str | None:
        """The call that was recorded last, where memory has the session and a call of it."""
        session = self._sessions.get(session_id)
        return None if session is None else next(reversed(session.calls), None)

    async def drain(self, session_id: str, timeout_s: float) -> None:
        """Waits until no call of the session is in flight here, at most ``timeout_s``."""
        session = self._sessions.get(session_id)
        if session is not None and session.in_flight:
            await asyncio.wait([flight.task for flight in session.in_flight.values()], timeout=timeout_s)

    async def seal(self, session_id: str) -> SessionView:
        """Seals in the store and forgets. Raises `Conflict` while a call is in flight."""
        session = self._sessions.get(session_id)
        if session is not None and session.in_flight:
            raise Conflict(f"session {session_id} has {len(session.in_flight)} calls in flight; wait for them", code="calls_in_flight")
        self.forget(session_id)
        return await self._store.seal(session_id)

    def forget(self, session_id: str) -> None:
        """Drops what memory knows of a session; the next call reads it from the store again."""
        self._sessions.pop(session_id, None)
        self.tips.drop(session_id)

    async def run(self) -> None:
        """Sweeps for as long as the service runs."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.sweep()

    def sweep(self) -> int:
        """Forgets sessions idle for longer than their TTL; how many."""
        now = self._clock()
        idle = [key for key, session in self._sessions.items() if not session.in_flight and now - session.touched_at > session.ttl_s]
        for session_id in idle:
            self.forget(session_id)
        return len(idle)

    async def _known(self, session_id: str, view: SessionView) -> Session:
        if view.sealed:
            raise Conflict(f"session {session_id} is sealed; late calls are not taken", code="session_sealed")
        lock = self._loading.setdefault(session_id, asyncio.Lock())
        try:
            async with lock:
                session = self._sessions.get(session_id)
                if session is None:
                    session = Session(session_id)
                    for record in await self._store.calls(session_id) if view.n_calls else []:
                        session.add(record)
                    self._sessions[session_id] = session
        finally:
            self._loading.pop(session_id, None)
        self._touch(session)
        self._evict()
        return session

    def _touch(self, session: Session) -> None:
        session.touched_at = self._clock()
        if session.session_id in self._sessions:
            self._sessions.move_to_end(session.session_id)

    def _evict(self) -> None:
        surplus = len(self._sessions) - self._limit
        if surplus > 0:
            idle = [key for key, session in self._sessions.items() if not session.in_flight]
            for session_id in idle[:surplus]:
                self.forget(session_id)
