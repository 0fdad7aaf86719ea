"""Owns sessions in Redis: intents, call records, sealing, packing.

`begin` and `record` run once for every call of the policy, so each is one round trip and nothing is decoded.
"""

from collections.abc import Mapping
from typing import Any

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.wire.store import SessionView
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.spill import MARK, Bodies
from services.trajectory_store.token_join import CALL, INTENT, TREE, calls_in_order
from services.trajectory_store.tree_codec import pack_tree

PACKED_AT_ONCE = 16


class Sessions:
    """One hash a session; a sealed session takes nothing new. A session that no trajectory names goes after ``ttl_s``."""

    def __init__(self, database: Database, bodies: Bodies, ttl_s: int) -> None:
        self._database = database
        self._bodies = bodies
        self._ttl_s = ttl_s

    async def open(self, session_id: str) -> SessionView:
        """Creates the session, or finds it. Raises `Conflict` where it is sealed."""
        view = _view(session_id, await self._database.run_on_session("session_open", session_id, self._ttl_s))
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
        [fields] = await self.fields([session_id])
        if not fields:
            raise _unknown(session_id)
        return calls_in_order(fields)

    async def fields(self, session_ids: list[str]) -> list[Mapping[bytes, bytes]]:
        """The hashes of some sessions, spilled trees loaded; empty where there is none."""
        pipeline = self._database.pipeline()
        for session_id in session_ids:
            pipeline.hgetall(self._database.keys.session(session_id))
        found: list[dict[bytes, bytes]] = await self._database.execute(pipeline)
        for fields in found:
            if fields.get(TREE, b"").startswith(MARK):
                fields[TREE] = await self._bodies.load(fields[TREE])
        return list(found)

    async def pack(self) -> int:
        """Packs the call records of some final trajectories into one blob each; returns how many sessions were looked at.

        A kill in between leaves the entry on the list, and packing twice does nothing.
        """
        entries = await self._database.command("LRANGE", self._database.keys.unpacked, 0, PACKED_AT_ONCE - 1)
        for entry in entries:
            session_id, _, episode_id = entry.decode().partition("\n")
            await self._pack_one(session_id, episode_id, entry)
        return len(entries)

    async def _pack_one(self, session_id: str, episode_id: str, entry: bytes) -> None:
        fields: dict[bytes, bytes] = await self._database.command("HGETALL", self._database.keys.session(session_id))
        n_calls = sum(name.startswith(CALL) for name in fields)
        if b"sealed" not in fields or TREE in fields or not n_calls:
            await self._database.run("pack_session", session_id, entry, episode_id, "", "", 0, "")
            return
        blob = pack_tree(calls_in_order(fields))
        held = await self._bodies.keep(f"{session_id}.tree", blob)
        spilled = held.decode() if held is not blob else ""
        await self._database.run("pack_session", session_id, entry, episode_id, n_calls, held, len(blob), spilled)


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
    created, sealed, names, n_calls = reply
    return SessionView(
        session_id=session_id,
        sealed=sealed is not None,
        n_calls=int(n_calls or sum(name.startswith(CALL) for name in names)),
        open_intents=sorted(name[len(INTENT) :].decode() for name in names if name.startswith(INTENT)),
        created_at=float(created),
    )
