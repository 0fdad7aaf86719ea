"""Owns the routes of sessions: opening, demonstrations, rewards, sealing, and handing out what was recorded. Refuses logic."""

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec.structs import replace
from pydantic import Field

from services.common.app import require_admin
from services.common.ids import new_id
from services.common.lean import LeanRoutes
from services.common.wire.rollouts import Id, Wire
from services.common.wire.sessions import Reward, RewardsReply
from services.common.wire.store import SessionView
from services.policy_proxy import chat
from services.policy_proxy.calls.feed import Feed
from services.policy_proxy.calls.service import CallKey
from services.policy_proxy.routes import openapi
from services.policy_proxy.routes.access import proxy_of, session_or_admin
from services.policy_proxy.routes.api import body_of, incoming_of
from services.policy_proxy.sessions.export import Recorded, Style, View, view_json
from services.policy_proxy.sessions.table import Done, Session

ERRORS: dict[int | str, dict[str, Any]] = {status: openapi.CALL_ERRORS[status] for status in (400, 401, 403, 404, 409, 503)}
CALL_ERRORS: dict[int | str, dict[str, Any]] = ERRORS | {status: openapi.CALL_ERRORS[status] for status in (413, 429)}


class OpenSessionBody(Wire):
    """POST /v1/sessions."""

    session_id: Id | None = None
    ttl_s: float | None = Field(default=None, gt=0, le=30 * 86400, allow_inf_nan=False)
    """Idle time after which memory forgets the session; the store keeps it, so it can go on later."""


class OpenSessionReply(Wire):
    session_id: Id
    api_key: str
    base_url: str


class DemonstrationReply(Wire):
    call_id: str


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["sessions"])
    admin = [Depends(require_admin)]
    path = "/v1/sessions/{sid}"
    shown = {"requestBody": {"required": True, "content": {"application/json": {"schema": openapi.DEMONSTRATION_BODY}}}}
    lean = LeanRoutes(require_admin, body_of)
    lean.add(routes, "/v1/sessions", open_session, "POST", dependencies=admin, responses=ERRORS)
    routes.add_api_route(
        f"{path}/demonstrations", demonstrate, methods=["POST"], dependencies=admin, responses=CALL_ERRORS, openapi_extra=shown
    )
    routes.add_api_route(f"{path}/rewards", reward, methods=["POST"], responses=ERRORS)
    routes.add_api_route(f"{path}/rewards", rewards, methods=["GET"], dependencies=admin, responses=ERRORS)
    lean.add(routes, f"{path}/seal", seal, "POST", dependencies=admin, responses=ERRORS)
    routes.add_api_route(f"{path}/calls", calls, methods=["GET"], dependencies=admin, responses=ERRORS)
    return routes


async def open_session(request: Request, body: OpenSessionBody) -> OpenSessionReply:
    """Opens a session, or finds it by id, and hands out its key."""
    proxy = proxy_of(request)
    session_id = body.session_id or new_id("session")
    await proxy.sessions.open(session_id, body.ttl_s)
    base_url = f"{str(request.base_url).rstrip('/')}/v1/sessions/{session_id}/v1"
    return OpenSessionReply(session_id=session_id, api_key=proxy.keys.issue(session_id), base_url=base_url)


async def demonstrate(request: Request, sid: Id) -> DemonstrationReply:
    """Records ``message`` as the tokens a policy would have had to say to ``messages``."""
    proxy = proxy_of(request)
    # The same body is the same demonstration, so one sent again after a lost answer is not recorded twice.
    incoming = replace(await incoming_of(request, sid), is_retry=True)
    shown = chat.read_demonstration(chat.parse_body(incoming.raw))

    async def work(session: Session, key: CallKey, _feed: Feed) -> Done:
        return await proxy.turns.demonstrate(session, key, shown, max(proxy.pool.policy_version, 0))

    answer = await proxy.calls.answer(incoming, work)
    return DemonstrationReply(call_id=answer.call_id)


async def reward(request: Request, sid: Id, body: Reward) -> Reward:
    """Rewards a call or the session, with the session's key or the admin key, until a trajectory names the session.

    The same call and name again takes the place of the one before.
    """
    await session_or_admin(request, sid)
    await proxy_of(request).store.reward(sid, body)
    return body


async def rewards(request: Request, sid: Id) -> RewardsReply:
    """The rewards of a session."""
    return RewardsReply(items=await proxy_of(request).store.rewards(sid))


async def seal(request: Request, sid: Id) -> SessionView:
    """Freezes the session; 409 while a call is in flight."""
    return await proxy_of(request).sessions.seal(sid)


async def calls(
    request: Request,
    sid: Id,
    view: View = "tokens",
    discount: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 1.0,
    style: Style = "individual",
    drop_retry_orphans: bool = False,
) -> Response:
    """What was recorded: the conversation (``messages``), ids, logprobs and versions call by call (``tokens``), or training ``rows``.

    ``discount``, ``style`` and ``drop_retry_orphans`` are those of rows.
    """
    proxy = proxy_of(request)
    session = await proxy.store.session(sid)
    recorded = Recorded(await proxy.store.calls(sid), await proxy.store.rewards(sid))

    def write() -> bytes:
        shown = view_json(recorded, view, proxy.renderer.decode, discount=discount, style=style, drop_orphans=drop_retry_orphans)
        return orjson.dumps({"session_id": sid, "view": view, "sealed": session.sealed, "open_intents": session.open_intents, **shown})

    # A long session takes tens of megabytes as JSON.
    return Response(await asyncio.to_thread(write), media_type="application/json")
