"""Owns the routes of AReaL's proxy under their own names, bodies and statuses, so that its agents and its client run unchanged.

``base_url`` of such an agent is the proxy's root. What the routes mean is `areal`; docs/proxy_sessions.md says where that differs from
AReaL. Refuses logic.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.common.app import admin_key, require_admin
from services.policy_proxy.dialects.base import CHAT
from services.policy_proxy.dialects.responses_stream import RESPONSES
from services.policy_proxy.routes import api, openapi
from services.policy_proxy.routes.access import proxy_of, session_of
from services.policy_proxy.sessions.export import Style

STATUSES = {
    400: "The reward, the key or X-Session-Id does not fit; the detail names what",
    401: "No key, or one nobody knows",
    403: "Another key than the admin key",
    404: "No such session",
    409: "The key names a session that has not ended, or the session is incomplete",
    410: "The session was exported or forgotten",
    429: "No capacity is left",
    503: "The trajectory store cannot be reached, or calls are in flight",
    504: "The session has not ended in time",
}


class ArealBody(BaseModel):
    """AReaL ignores what it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StartSessionBody(ArealBody):
    """POST /rl/start_session."""

    task_id: str = Field(min_length=1, max_length=1000)
    api_key: str | None = Field(default=None, max_length=1000)


class StartSessionReply(BaseModel):
    session_id: str
    api_key: str


class SetRewardBody(ArealBody):
    """POST /rl/set_reward."""

    interaction_id: str | None = None
    """None: the last one, and everything before it."""
    reward: float = Field(allow_inf_nan=False)


class ExportBody(ArealBody):
    """POST /export_trajectories."""

    session_id: str
    discount: float = Field(default=1.0, ge=0, le=1)
    style: Style = "individual"
    drop_retry_orphans: bool = False


class EndSessionReply(BaseModel):
    message: str = "success"
    interaction_count: int


class Success(BaseModel):
    message: str = "success"


class Capacity(BaseModel):
    capacity: int


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["areal"])
    admin = [Depends(require_admin)]
    routes.add_api_route("/grant_capacity", grant_capacity, methods=["POST"], dependencies=admin, responses=_errors(401, 403, 503))
    start_errors = _errors(400, 401, 403, 409, 429, 503)
    routes.add_api_route("/rl/start_session", start_session, methods=["POST"], dependencies=admin, responses=start_errors)
    routes.add_api_route("/rl/set_reward", set_reward, methods=["POST"], responses=_errors(400, 401, 410, 503))
    routes.add_api_route("/rl/end_session", end_session, methods=["POST"], responses=_errors(400, 401, 410, 503))
    export_errors = _errors(400, 401, 403, 404, 409, 503, 504)
    routes.add_api_route("/export_trajectories", export_trajectories, methods=["POST"], dependencies=admin, responses=export_errors)
    for path, endpoint, body in (
        ("/chat/completions", chat_completions, openapi.CHAT_BODY),
        ("/responses", responses, openapi.RESPONSES_BODY),
    ):
        content = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
        routes.add_api_route(path, endpoint, methods=["POST"], responses=openapi.CALL_ERRORS, openapi_extra=content)
    return routes


async def grant_capacity(request: Request) -> Capacity:
    """Lets one more session begin."""
    return Capacity(capacity=await proxy_of(request).areal.grant())


async def start_session(request: Request, body: StartSessionBody) -> StartSessionReply:
    """Begins a session; 429 where no capacity is left, 409 where the key names a session that has not ended."""
    started = await proxy_of(request).areal.start(body.task_id, body.api_key, admin_key())
    return StartSessionReply(session_id=started.session_id, api_key=started.api_key)


async def set_reward(request: Request, body: SetRewardBody) -> Success:
    """Rewards a call of the key's session; 410 once it was exported."""
    await proxy_of(request).areal.set_reward(await session_of(request), body.interaction_id, body.reward)
    return Success()


async def end_session(request: Request) -> EndSessionReply:
    """Ends the key's session; 410 once it was exported. Waits for calls in flight, and is 503 while there are any."""
    return EndSessionReply(interaction_count=await proxy_of(request).areal.end(await session_of(request)))


async def export_trajectories(request: Request, body: ExportBody) -> Response:
    """Hands out a session as tensors, once it has ended."""
    exported = await proxy_of(request).areal.export(
        body.session_id, discount=body.discount, style=body.style, drop_retry_orphans=body.drop_retry_orphans
    )
    return Response(exported, media_type="application/json")


async def chat_completions(request: Request) -> Response:
    """An OpenAI chat completion in the key's session."""
    return await api.answer(request, "", CHAT)


async def responses(request: Request) -> Response:
    """An OpenAI response in the key's session."""
    return await api.answer(request, "", RESPONSES)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    problem = {"application/problem+json": {"schema": {"type": "object", "required": ["detail", "code", "status"]}}}
    return {status: {"description": STATUSES[status], "content": problem} for status in statuses}
