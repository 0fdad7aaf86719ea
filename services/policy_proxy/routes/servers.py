"""Owns the routes by which operators add, drain and remove policy servers while the proxy runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from services.common.app import require_admin
from services.common.config.base import HttpUrl
from services.common.wire.rollouts import Wire
from services.policy_proxy.routes import openapi
from services.policy_proxy.routes.access import proxy_of


class ServerBody(Wire):
    """POST /v1/admin/servers."""

    url: HttpUrl


class DrainBody(Wire):
    """POST /v1/admin/servers/drain. ``deadline_s``: how long to wait for the calls that are there."""

    url: str = Field(min_length=1)
    deadline_s: float = Field(default=0.0, ge=0, le=3600)


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)], responses=openapi.ADMIN_ERRORS)
    routes.add_api_route("/v1/admin/servers", list_servers)
    routes.add_api_route("/v1/admin/servers", add_server, methods=["POST"])
    routes.add_api_route("/v1/admin/servers", remove_server, methods=["DELETE"])
    routes.add_api_route("/v1/admin/servers/drain", drain_server, methods=["POST"])
    return routes


async def list_servers(request: Request) -> dict[str, Any]:
    """Every server: state, version, calls, limit and what it reports of itself."""
    return {"items": [server.view() for server in proxy_of(request).pool.servers]}


async def add_server(request: Request, body: ServerBody) -> dict[str, Any]:
    """Takes a server in, or back into rotation after a drain. It gets calls once it has the current weights. Idempotent."""
    return proxy_of(request).fleet.add(body.url).view()


async def drain_server(request: Request, body: DrainBody) -> dict[str, Any]:
    """Gives a server no more calls; answers when it has none left, or at the deadline with the number that it still has."""
    return (await proxy_of(request).fleet.drain(body.url, body.deadline_s)).view()


async def remove_server(
    request: Request, url: Annotated[str, Query(min_length=1)], force: Annotated[bool, Query()] = False
) -> dict[str, Any]:
    """Takes a server out. 409 while it has calls, unless ``force``: then they are ended there and go on at another server."""
    return (await proxy_of(request).fleet.remove(url, force=force)).view()
