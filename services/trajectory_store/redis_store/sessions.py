"""Owns sessions in Redis: intents, call records, rewards, sealing, packing, and forgetting those that nobody finished.

`log` runs twice for every call of the policy, so it is one round trip for all calls that wait and nothing is decoded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.wire.call_log import LogEntry, LogOutcome
from services.common.wire.sessions import OpenSessionBody, Reward
from services.common.wire.store import SessionView
from services.trajectory_store.redis_store.database import Database, pairs
from services.trajectory_store.redis_store.link import Argument
from services.trajectory_store.redis_store.prefixes import Prefixes
from services.trajectory_store.spill import Bodies
from services.trajectory_store.token_join import CALL, INTENT, TREE, calls_in_order

PACKED_AT_ONCE = 16
EXPORTED_TTL_S = 3600.0
"""An exported session can be exported again for this long: AReaL's own session timeout."""
REWARD = b"r:"
"""Prefix of the fields of rewards: ``r:<name> <call id or nothing>``."""
HARMLESS = frozenset({"exported", "retried", "superseded", "unused"})
"""Why a session may go without anybody having missed it."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A session that was forgotten, and why: ``unsealed``, ``incomplete``, ``unclaimed`` (no trajectory names it), or one of `HARMLESS`."""

    session_id: str
    reason: str
    n_calls: int


class Sessions:
    """One hash a session; a sealed session takes nothing new. A session that no trajectory names goes when it was idle for ``ttl_s``."""

    def __init__(self, database: Database, bodies: Bodies, prefixes: Prefixes, ttl_s: int) -> None:
        self._database = database
        self._bodies = bodies
        self._prefixes = prefixes
        self._ttl_s = ttl_s

    async def open(self, session_id: str, body: OpenSessionBody | None = None) -> SessionView:
        """Creates the session, or finds it. Raises `Conflict` where it is sealed, is not new, its key is in use, or no grant is left."""
        wanted = body or OpenSessionBody()
        grants = "" if wanted.grants is None else wanted.grants
        names = (wanted.opener or "", wanted.key_digest or "")
        outcome, *fields = await self._database.run("session_open", session_id, self._ttl_s, *names, grants)
        if outcome != b"ok":
            raise _not_opened(session_id, outcome.decode(), fields)
        view = _view(session_id, fields)
        if view.sealed:
            raise _sealed(session_id)
        return view

    async def of_key(self, digest: str) -> str:
        """The session that a client's own key names. Raises `NotFound`."""
        session_id: bytes | None = await self._database.command("GET", self._database.keys.session_key(digest))
        if session_id is None:
            raise NotFound("no session has this key", code="key_unknown")
        return session_id.decode()

    async def grant(self, initial: int) -> int:
        """Lets one more session begin; how many may now."""
        return int(await self._database.run("grant", initial))

    async def log(self, entries: Sequence[LogEntry]) -> list[LogOutcome]:
        """Writes intents and records in order. What the session says against a line is its outcome: 404, or 409 where it is sealed or
        the call was begun with another digest."""
        answers = await self._database.run_on_sessions([_log_script(entry) for entry in entries])
        return [_log_outcome(entry, answer) for entry, answer in zip(entries, answers, strict=True)]

    async def intents(self, session_id: str) -> dict[str, str]:
        """Calls begun and not recorded, with their digests. Raises `NotFound`."""
        return {name.decode(): digest.decode() for name, digest in (await self._prefixed(session_id, INTENT)).items()}

    async def reward(self, session_id: str, reward: Reward) -> None:
        """Keeps a reward in the place of the one before. Raises `NotFound`, `BadRequest` for an unknown call, `Conflict` once closed."""
        field = REWARD + f"{reward.name} {reward.call_id or ''}".encode()
        call = CALL + reward.call_id.encode() if reward.call_id else b""
        reply = await self._database.run_on_session("session_reward", session_id, field, reward.model_dump_json(), call)
        if reply == b"no_call":
            raise BadRequest(f"call_id: session {session_id} has no call {reward.call_id}", code="call_unknown", param="call_id")
        if reply not in (b"ok", b"unknown"):
            raise Conflict(f"session {session_id} takes no more rewards: {reply.decode()}", code="rewards_closed")
        _check(session_id, reply)

    async def rewards(self, session_id: str) -> list[Reward]:
        """All rewards, by call and name. Raises `NotFound`."""
        found = [Reward.model_validate_json(value) for value in (await self._prefixed(session_id, REWARD)).values()]
        return sorted(found, key=lambda reward: (reward.call_id or "", reward.name))

    async def seal(self, session_id: str, *, exported: bool = False) -> SessionView:
        """Freezes the session. Raises `NotFound`."""
        view = _view(session_id, await self._database.run_on_session("session_seal", session_id))
        if not exported or view.closed:
            return view
        await self._database.run("session_export", session_id, EXPORTED_TTL_S)
        return await self.view(session_id)

    async def sweep(self) -> list[Swept]:
        """Forgets sessions that were idle for too long and that no trajectory names, a bounded number at once."""
        flat: list[Any] = await self._database.run("session_sweep")
        rows = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return [Swept(session_id.decode(), reason.decode(), int(calls)) for session_id, reason, calls in rows]

    async def view(self, session_id: str) -> SessionView:
        """What is there. Raises `NotFound`."""
        return _view(session_id, await self._database.run_on_session("session_view", session_id))

    async def calls(self, session_id: str) -> list[bytes]:
        """The encoded call records in ordinal order. Raises `NotFound`."""
        fields = await self.loaded(await self._database.command("HGETALL", self._database.keys.session(session_id)))
        if not fields:
            raise _unknown(session_id)
        return calls_in_order(fields)

    async def loaded(self, flat: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """A session hash from its flat list, its tree loaded where it was spilled, and without its prefix."""
        fields = pairs(flat)
        if tree := fields.get(TREE):
            fields[TREE] = await self._prefixes.plain(await self._bodies.load(tree))
        return fields

    async def _prefixed(self, session_id: str, prefix: bytes) -> dict[bytes, bytes]:
        flat: list[bytes] | None = await self._database.run_on_session("session_fields", session_id, prefix)
        if flat is None:
            raise _unknown(session_id)
        return {name.removeprefix(prefix): value for name, value in pairs(flat).items()}

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
        fields = pairs(await self._database.command("HGETALL", self._database.keys.session(session_id)))
        n_calls = sum(name.startswith(CALL) for name in fields)
        if b"sealed" not in fields or TREE in fields or not n_calls:
            await self._database.run("pack_session", session_id, entry, episode_id, "", "", 0, "", "")
            return
        tree = await self._prefixes.pack(calls_in_order(fields))
        held = await self._bodies.keep(f"{session_id}.tree", tree.blob)
        spilled = held.decode() if held is not tree.blob else ""
        arguments = (session_id, entry, episode_id, n_calls, held, len(tree.blob), spilled, tree.digest)
        if await self._database.run("pack_session", *arguments) < 0:
            await self._prefixes.restore(tree.digest)  # the entry is still on the list


def _log_script(entry: LogEntry) -> tuple[str, str, Sequence[Argument]]:
    call_id = entry.call_id.encode()
    name = "session_record" if entry.record else "session_begin"
    return name, entry.session_id, (INTENT + call_id, CALL + call_id, entry.record or entry.digest)


def _log_outcome(entry: LogEntry, reply: Any) -> LogOutcome:
    outcome, n_calls = (reply, 0) if isinstance(reply, bytes) else (reply[0], int(reply[1]) if len(reply) > 1 else 0)
    if outcome == b"ok":
        return LogOutcome(200, n_calls)
    if outcome == b"digest":
        detail = f"call {entry.call_id} was begun with another digest; a new request needs a new call id"
        return LogOutcome(409, 0, "digest_mismatch", detail)
    error = _unknown(entry.session_id) if outcome == b"unknown" else _sealed(entry.session_id)
    return LogOutcome(error.status, 0, error.code, error.detail)


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


def _not_opened(session_id: str, outcome: str, fields: Sequence[bytes]) -> Conflict:
    if outcome == "exists":
        return Conflict(f"session {session_id} exists already; choose another id", code="session_exists")
    if outcome == "bound":
        return Conflict(
            f"the key names session {fields[0].decode()}, which is not sealed; seal that one or give another key", code="key_bound"
        )
    return Conflict("no session may begin now; POST /v1/grants lets one", code="no_grant")


def _view(session_id: str, reply: Any) -> SessionView:
    if not reply:
        raise _unknown(session_id)
    created, sealed, names, n_calls, closed = reply
    return SessionView(
        session_id=session_id,
        sealed=sealed is not None,
        n_calls=int(n_calls or sum(name.startswith(CALL) for name in names)),
        open_intents=sorted(name[len(INTENT) :].decode() for name in names if name.startswith(INTENT)),
        created_at=float(created),
        n_rewards=sum(name.startswith(REWARD) for name in names),
        closed=(closed or b"").decode(),
    )
