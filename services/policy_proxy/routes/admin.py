"""Owns the routes of the trainer and of operators: weight updates, the process group they may use, and the state of the proxy."""

from typing import Any, Literal, Self

from fastapi import APIRouter, Depends, Request
from pydantic import Field, model_validator

from services.common.app import require_admin
from services.common.wire.rollouts import Wire
from services.common.wire.store import PolicyVersion
from services.policy_proxy.routes import openapi
from services.policy_proxy.routes.access import proxy_of
from services.policy_proxy.servers.sglang import Bucket
from services.policy_proxy.weights.group import GroupSpec
from services.policy_proxy.weights.steps import Broadcast, PauseMode, Plan

MAX_DEADLINE_S = 3600.0


class BucketBody(Wire):
    """Tensors that the trainer broadcasts together, in this order."""

    names: list[str] = Field(min_length=1)
    dtypes: list[str]
    """Such as ``bfloat16``."""
    shapes: list[list[int]]

    @model_validator(mode="after")
    def _of_equal_length(self) -> Self:
        if not len(self.names) == len(self.dtypes) == len(self.shapes):
            raise ValueError(f"{len(self.names)} names, {len(self.dtypes)} dtypes and {len(self.shapes)} shapes: give one of each a tensor")
        return self


class WeightsBody(Wire):
    """POST /v1/admin/weights."""

    version: int = Field(ge=0)
    path: str = Field(min_length=1)
    """A folder that every policy server can read; with ``distributed`` the servers that are not in the group read it."""
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_S)
    mode: PauseMode | None = None
    """What becomes of running calls; default services.policy_proxy.pause_mode."""
    method: Literal["disk", "distributed"] = "disk"
    group_name: str = "weight_update_group"
    buckets: list[BucketBody] = []
    """What the trainer broadcasts while this request runs, with method ``distributed``."""

    @model_validator(mode="after")
    def _buckets_belong_to_broadcasts(self) -> Self:
        if (self.method == "distributed") != bool(self.buckets):
            raise ValueError("buckets: needed with method distributed, and only with it")
        return self


class ServerOutcome(Wire):
    url: str
    ok: bool
    detail: str


class WeightsReply(Wire):
    version: int
    servers: list[ServerOutcome]


class GroupBody(Wire):
    """POST /v1/admin/weight_group: where the trainer's rank 0 listens."""

    master_address: str = Field(min_length=1)
    master_port: int = Field(ge=1, le=65535)
    world_size: int = Field(ge=2)
    """As GET /v1/admin/weight_group says."""
    group_name: str = "weight_update_group"
    backend: str = "nccl"
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_S)


class GroupMember(Wire):
    url: str
    rank_offset: int
    ranks: int


class GroupView(Wire):
    """``state``: absent, joining, ready or broken. Where it is not ready, the rest is how it would be formed now."""

    state: str
    group_name: str
    world_size: int
    members: list[GroupMember]


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)], responses=openapi.ADMIN_ERRORS)
    routes.add_api_route("/v1/admin/weights", update_weights, methods=["POST"])
    routes.add_api_route("/v1/admin/weight_group", form_group, methods=["POST"])
    routes.add_api_route("/v1/admin/weight_group", group)
    routes.add_api_route("/v1/admin/state", state)
    return routes


async def update_weights(request: Request, body: WeightsBody) -> WeightsReply:
    """Pauses, updates, verifies, commits and resumes; 503 where no server took the version, 409 where it is older than the current.

    With method ``distributed`` the trainer broadcasts the buckets in order while this request runs. A version that is there already is
    answered at once: an answer before the last broadcast has ended, whatever its status, means that nobody receives the rest.
    """
    proxy = proxy_of(request)
    section = proxy.config.services.policy_proxy
    broadcast = None
    if body.method == "distributed":
        broadcast = Broadcast(body.group_name, [Bucket(item.names, item.dtypes, item.shapes) for item in body.buckets])
    wanted = PolicyVersion(version=body.version, path=body.path)
    plan = Plan(wanted, body.deadline_s or section.pause_deadline_s, body.mode or section.pause_mode, broadcast)
    results = await proxy.updates.update(plan)
    outcomes = [ServerOutcome(url=result.url, ok=result.ok, detail=result.detail) for result in results]
    return WeightsReply(version=body.version, servers=outcomes)


async def group(request: Request) -> GroupView:
    """The process group for broadcasts as it is, or as it would be formed with the servers that are up now."""
    return GroupView.model_validate(await proxy_of(request).group.plan())


async def form_group(request: Request, body: GroupBody) -> GroupView:
    """Makes the servers join the trainer's process group; the trainer joins as rank 0 meanwhile. 409 where ``world_size`` is another."""
    proxy = proxy_of(request)
    spec = GroupSpec(body.master_address, body.master_port, body.world_size, body.group_name, body.backend)
    deadline_s = body.deadline_s or proxy.config.services.policy_proxy.pause_deadline_s
    return GroupView.model_validate(await proxy.group.form(spec, deadline_s))


async def state(request: Request) -> dict[str, Any]:
    """What the proxy knows now."""
    proxy = proxy_of(request)
    return {
        "policy_version": proxy.pool.policy_version,
        "paused": proxy.gate.closed,
        "update_phase": proxy.updates.phase.value,
        "weight_group": proxy.group.state.value,
        "servers": [server.view() for server in proxy.pool.servers],
        "waiting": len(proxy.pool.room),
        "sessions": len(proxy.sessions),
        "inflight": proxy.calls.in_flight,
    }
