"""Owns sessions in Redis: intents, call records, sealing.

`begin` and `record` run once for every call of the policy, so each is one round trip and nothing is decoded.
"""

from typing import Any

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.wire.store import SessionView
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.token_join import CALL, INTENT, calls_in_order


class Sessions:
    """One hash a session; a sealed session takes nothing new."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, session_id: str) -> SessionView:
        """Creates the session, or finds it. Raises `Conflict` where it is sealed."""
        view = _view(session_id, await self._database.run_on_session("session_open", session_id))
        if view.sealed:
            raise _sealed(session_id)
        return view

    async def begin(self, session_id: str, call_id: str, digest: str) -> None:
        """Notes that a call leaves for the policy. Raises `NotFound`, or `Conflict` where sealed or begun with another digest."""
        intent, call = _fields(call_id)
        reply = await self._database.run_on_session("session_begin", session_id, intent, call, digest)
        if reply == b"digest":
            raise Conflict(f"call {call_id} was begun with another digest; a new request needs a new call id", code="digest_mismatch")
        _check(session_id, reply)

    async def record(self, session_id: str, call_id: str, record: bytes) -> None:
        """Stores a call and closes its intent. Raises `NotFound`, or `Conflict` where sealed without this call."""
        intent, call = _fields(call_id)
        _check(session_id, await self._database.run_on_session("session_record", session_id, intent, call, record))

    async def seal(self, session_id: str) -> SessionView:
        """Freezes the session. Raises `NotFound`."""
        return _view(session_id, await self._database.run_on_session("session_seal", session_id))

    async def view(self, session_id: str) -> SessionView:
        """What is there. Raises `NotFound`."""
        return _view(session_id, await self._database.run_on_session("session_view", session_id))

    async def calls(self, session_id: str) -> list[bytes]:
        """The encoded call records in ordinal order. Raises `NotFound`."""
        fields: dict[bytes, bytes] = await self._database.command("HGETALL", self._database.keys.session(session_id))
        if not fields:
            raise _unknown(session_id)
        return calls_in_order(fields)


def _fields(call_id: str) -> tuple[bytes, bytes]:
    return INTENT + call_id.encode(), CALL + call_id.encode()


def _check(session_id: str, reply: bytes) -> None:
    if reply == b"unknown":
        raise _unknown(session_id)
    if reply == b"sealed":
        raise _sealed(session_id)
    if reply != b"ok":
        raise BadRequest(reply.decode())


def _unknown(session_id: str) -> NotFound:
    return NotFound(f"session {session_id} is not known; open it with PUT /v1/sessions/{session_id}", code="session_unknown")


def _sealed(session_id: str) -> Conflict:
    return Conflict(f"session {session_id} is sealed; a new attempt needs a new session", code="session_sealed")


def _view(session_id: str, reply: Any) -> SessionView:
    if not reply:
        raise _unknown(session_id)
    created, sealed, names = reply
    return SessionView(
        session_id=session_id,
        sealed=sealed is not None,
        n_calls=sum(name.startswith(CALL) for name in names),
        open_intents=sorted(name[len(INTENT) :].decode() for name in names if name.startswith(INTENT)),
        created_at=float(created),
    )
