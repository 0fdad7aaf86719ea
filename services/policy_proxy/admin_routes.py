"""Owns the routes of the trainer and of operators: weight updates and the state of the proxy."""

from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from services.common.app import require_admin
from services.common.wire.rollouts import Wire
from services.common.wire.store import PolicyVersion

if TYPE_CHECKING:
    from services.policy_proxy.app import Proxy


class WeightsBody(Wire):
    """POST /v1/admin/weights."""

    version: int = Field(ge=0)
    path: str = Field(min_length=1)
    """A folder that every policy server can read."""
    deadline_s: float | None = Field(default=None, gt=0, le=3600)


class ServerOutcome(Wire):
    url: str
    ok: bool
    detail: str


class WeightsReply(Wire):
    version: int
    servers: list[ServerOutcome]


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)])
    routes.add_api_route("/v1/admin/weights", update_weights, methods=["POST"])
    routes.add_api_route("/v1/admin/state", state)
    return routes


async def update_weights(request: Request, body: WeightsBody) -> WeightsReply:
    """Pauses, updates, verifies, commits and resumes; 503 where no server took the version, 409 where it is older than the current."""
    proxy = cast("Proxy", request.app.state.proxy)
    deadline_s = body.deadline_s or proxy.config.services.policy_proxy.pause_deadline_s
    results = await proxy.updates.update(PolicyVersion(version=body.version, path=body.path), deadline_s)
    outcomes = [ServerOutcome(url=result.url, ok=result.ok, detail=result.detail) for result in results]
    return WeightsReply(version=body.version, servers=outcomes)


async def state(request: Request) -> dict[str, Any]:
    """What the proxy knows now."""
    proxy = cast("Proxy", request.app.state.proxy)
    return {
        "policy_version": proxy.pool.policy_version,
        "paused": proxy.gate.closed,
        "update_phase": proxy.updates.phase.value,
        "servers": [server.view() for server in proxy.pool.servers],
        "sessions": len(proxy.sessions),
        "inflight": proxy.calls.in_flight,
    }
