"""Owns the routes of sessions: opening, rewards, sealing. What the proxy writes for every call is `call_log`'s."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

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
from services.trajectory_store.routes.deps import LEAN, PathId, StoreDep, guarded_router, msgpack
from services.trajectory_store.token_join import encode_calls


def router() -> APIRouter:
    """``/v1/sessions``, ``/v1/session_keys``, ``/v1/grants``."""
    routes = guarded_router("sessions")
    LEAN.add(routes, "/sessions/{session_id}", open_session, "PUT")
    routes.add_api_route("/sessions/{session_id}", view_session, methods=["GET"])
    LEAN.add(routes, "/sessions/{session_id}/seal", seal_session, "POST")
    routes.add_api_route("/sessions/{session_id}/calls", list_calls, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/intents", list_intents, methods=["GET"])
    routes.add_api_route("/sessions/{session_id}/rewards", put_reward, methods=["PUT"], status_code=204)
    routes.add_api_route("/sessions/{session_id}/rewards", list_rewards, methods=["GET"])
    routes.add_api_route("/session_keys/{digest}", session_of_key, methods=["GET"])
    routes.add_api_route("/grants", grant, methods=["POST"])
    return routes


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
