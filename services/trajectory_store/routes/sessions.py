"""Owns the routes of sessions: what the proxy writes for every call, rewards, sealing."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Request, Response

from services.common.errors import BadRequest
from services.common.wire.calls import CallRecord, decode_call
from services.common.wire.sessions import (
    GrantBody,
    GrantReply,
    IntentReply,
    IntentsReply,
    OpenSessionBody,
    Reward,
    RewardsReply,
    SessionKeyReply,
)
from services.common.wire.store import SealBody, SessionView
from services.trajectory_store.routes.deps import PathId, StoreDep, add_raw_route, body_of, guarded_router, msgpack, path_id, store_of
from services.trajectory_store.token_join import encode_calls

MAX_DIGEST = 256


def router() -> APIRouter:
    """``/v1/sessions``, ``/v1/session_keys``, ``/v1/grants``."""
    routes = guarded_router("sessions")
    add_raw_route(routes, "/sessions/{session_id}/intents/{call_id}", begin_call, "POST")
    add_raw_route(routes, "/sessions/{session_id}/calls/{call_id}", record_call, "PUT")
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


async def begin_call(request: Request) -> Response:
    """Body ``{"digest": …}``: the call leaves for a policy server now."""
    session_id, call_id = path_id(request, "session_id"), path_id(request, "call_id")
    async with body_of(request) as body:
        digest = _digest(body)
    n_calls = await (await store_of(request)).sessions.begin(session_id, call_id, digest)
    return Response(orjson.dumps(IntentReply(n_calls=n_calls).model_dump()), media_type="application/json")


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
