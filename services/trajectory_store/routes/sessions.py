"""Owns the routes of sessions: what the proxy writes for every call, rewards, sealing."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from services.common.errors import BadRequest
from services.common.ids import is_valid_id
from services.common.wire.call_log import LogEntry, LogOutcome, decode_entries, encode_log
from services.common.wire.calls import decode_call
from services.common.wire.sessions import (
    GrantBody,
    GrantReply,
    IntentsReply,
    OpenSessionBody,
    Reward,
    RewardsReply,
    SessionKeyReply,
)
from services.common.wire.store import SealBody, SessionView
from services.trajectory_store.routes.deps import PathId, StoreDep, add_raw_route, body_of, guarded_router, msgpack, store_of
from services.trajectory_store.token_join import encode_calls

MAX_DIGEST = 256


def router() -> APIRouter:
    """``/v1/sessions``, ``/v1/call_log``, ``/v1/session_keys``, ``/v1/grants``."""
    routes = guarded_router("sessions")
    add_raw_route(routes, "/call_log", log_calls, "POST")
    routes.add_api_route("/sessions/{session_id}", open_session, methods=["PUT"])
    routes.add_api_route("/sessions/{session_id}", view_session, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/seal", seal_session, methods=["POST"])
    routes.add_api_route("/sessions/{session_id}/calls", list_calls, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/intents", list_intents, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/rewards", put_reward, methods=["PUT"], status_code=204)
    routes.add_api_route("/sessions/{session_id}/rewards", list_rewards, methods=["GET"])
    routes.add_api_route("/session_keys/{digest}", session_of_key, methods=["GET"])
    routes.add_api_route("/grants", grant, methods=["POST"])
    return routes


async def log_calls(request: Request) -> Response:
    """Body: a msgpack call log. Every line is durable, or was refused with the reason, once this answers."""
    async with body_of(request) as body:
        try:
            entries = decode_entries(body)
        except ValueError as error:
            raise BadRequest(str(error), code="bad_call_log") from error
        refused = {place: refusal for place, entry in enumerate(entries) if (refusal := _refusal(entry))}
        good = [entry for place, entry in enumerate(entries) if place not in refused]
        written = iter(await (await store_of(request)).sessions.log(good))
    return msgpack(encode_log([refused.get(place) or next(written) for place in range(len(entries))]))


async def open_session(session_id: PathId, store: StoreDep, body: OpenSessionBody | None = None) -> SessionView:
    """Creates a session. Idempotent; 409 once it is sealed, and where the body asks for a new one and it is not."""
    return await store.sessions.open(session_id, body)


async def view_session(session_id: PathId, store: StoreDep) -> SessionView:
    """What a session holds, without the tokens."""
    return await store.sessions.view(session_id)


async def seal_session(session_id: PathId, store: StoreDep, body: SealBody | None = None) -> SessionView:
    """Freezes a session. Idempotent."""
    return await store.sessions.seal(session_id, exported=body is not None and body.exported)


async def list_calls(session_id: PathId, store: StoreDep) -> Response:
    """The encoded call records as a msgpack array, in ordinal order."""
    return msgpack(encode_calls(await store.sessions.calls(session_id)))


async def list_intents(session_id: PathId, store: StoreDep) -> IntentsReply:
    """Calls begun and not recorded."""
    return IntentsReply(items=await store.sessions.intents(session_id))


async def put_reward(session_id: PathId, body: Reward, store: StoreDep) -> Response:
    """Keeps a reward of a call or of the session, also of a sealed one. 409 once a trajectory names the session."""
    await store.sessions.reward(session_id, body)
    return Response(status_code=204)


async def list_rewards(session_id: PathId, store: StoreDep) -> RewardsReply:
    """The rewards of a session."""
    return RewardsReply(items=await store.sessions.rewards(session_id))


async def session_of_key(digest: Annotated[str, Path(pattern="^[0-9a-f]{64}$")], store: StoreDep) -> SessionKeyReply:
    """The session that a key names which a client chose."""
    return SessionKeyReply(session_id=await store.sessions.of_key(digest))


async def grant(body: GrantBody, store: StoreDep) -> GrantReply:
    """Lets one more session begin, where beginning takes a grant."""
    return GrantReply(capacity=await store.sessions.grant(body.initial))


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
