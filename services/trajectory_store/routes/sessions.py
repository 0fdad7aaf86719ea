"""Owns the routes of sessions: what the proxy writes for every call, and sealing."""

import orjson
from fastapi import APIRouter, Request, Response

from services.common.errors import BadRequest
from services.common.wire.calls import CallRecord, decode_call
from services.common.wire.store import SealBody, SessionView
from services.trajectory_store.routes.deps import PathId, StoreDep, add_raw_route, body_of, guarded_router, msgpack, path_id, store_of
from services.trajectory_store.token_join import encode_calls

MAX_DIGEST = 256


def router() -> APIRouter:
    """``/v1/sessions``."""
    routes = guarded_router("sessions")
    add_raw_route(routes, "/sessions/{session_id}/intents/{call_id}", begin_call, "POST")
    add_raw_route(routes, "/sessions/{session_id}/calls/{call_id}", record_call, "PUT")
    routes.add_api_route("/sessions/{session_id}", open_session, methods=["PUT"])
    routes.add_api_route("/sessions/{session_id}", view_session, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/seal", seal_session, methods=["POST"])
    routes.add_api_route("/sessions/{session_id}/calls", list_calls, methods=["GET"])
    return routes


async def begin_call(request: Request) -> Response:
    """Body ``{"digest": …}``: the call leaves for a policy server now."""
    session_id, call_id = path_id(request, "session_id"), path_id(request, "call_id")
    async with body_of(request) as body:
        digest = _digest(body)
    await (await store_of(request)).sessions.begin(session_id, call_id, digest)
    return Response(status_code=204)


async def record_call(request: Request) -> Response:
    """Body: a msgpack `CallRecord`, durable once this answers. The same call again is ignored."""
    session_id, call_id = path_id(request, "session_id"), path_id(request, "call_id")
    async with body_of(request) as body:
        record = _record(body)
        if (record.session_id, record.call_id) != (session_id, call_id):
            raise BadRequest(
                f"session_id, call_id: the record is call {record.call_id} of session {record.session_id}, "
                f"the path says {call_id} of {session_id}",
                param="call_id",
            )
        await (await store_of(request)).sessions.record(session_id, call_id, body)
    return Response(status_code=204)


async def open_session(session_id: PathId, store: StoreDep) -> SessionView:
    """Creates a session. Idempotent; 409 once it is sealed."""
    return await store.sessions.open(session_id)


async def view_session(session_id: PathId, store: StoreDep) -> SessionView:
    """What a session holds, without the tokens."""
    return await store.sessions.view(session_id)


async def seal_session(session_id: PathId, store: StoreDep, body: SealBody | None = None) -> SessionView:
    """Freezes a session. Idempotent."""
    return await store.sessions.seal(session_id)


async def list_calls(session_id: PathId, store: StoreDep) -> Response:
    """The encoded call records as a msgpack array, in ordinal order."""
    return msgpack(encode_calls(await store.sessions.calls(session_id)))


def _digest(body: bytes) -> str:
    try:
        digest = orjson.loads(body or b"{}").get("digest", "")
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise BadRequest('body: expected JSON such as {"digest": "…"}', param="digest") from error
    if not isinstance(digest, str) or len(digest) > MAX_DIGEST:
        raise BadRequest(f"digest: expected a string of at most {MAX_DIGEST} characters", param="digest")
    return digest


def _record(body: bytes) -> CallRecord:
    try:
        return decode_call(body)
    except ValueError as error:
        raise BadRequest(str(error), code="bad_call_record") from error
