"""Owns the routes of the rollout queue."""

from fastapi import APIRouter, Request, Response

from services.common.errors import BadRequest
from services.common.ids import new_id
from services.common.wire.store import (
    EnqueueBody,
    EnqueueReply,
    HeartbeatBody,
    HeartbeatReply,
    LeaseRolloutsBody,
    LeaseRolloutsReply,
    ReleaseBody,
)
from services.trajectory_store.routes.deps import StoreDep, gone, guarded_router

MAX_REQUESTS = 10_000
"""Rollout requests in one body: all are queued in one step, during which Redis does nothing else."""


def router() -> APIRouter:
    """``/v1/rollouts``."""
    routes = guarded_router("rollouts")
    routes.add_api_route("/rollouts", enqueue, methods=["POST"])
    routes.add_api_route("/rollouts/lease", lease, methods=["POST"])
    routes.add_api_route("/rollouts/heartbeat", heartbeat, methods=["POST"])
    routes.add_api_route("/rollouts/release", release, methods=["POST"], status_code=204)
    return routes


async def enqueue(body: EnqueueBody, store: StoreDep) -> EnqueueReply:
    """Queues episodes. Idempotent by episode id; all or none."""
    if len(body.requests) > MAX_REQUESTS:
        raise BadRequest(f"requests: {len(body.requests)} are more than {MAX_REQUESTS}; send them in parts", param="requests")
    reply = await store.rollouts.enqueue(body.requests)
    store.work.ring()
    return reply


async def lease(body: LeaseRolloutsBody, request: Request, store: StoreDep) -> LeaseRolloutsReply:
    """Leases episodes to a worker, waiting up to ``wait_s`` for the first."""
    token = new_id("lease")

    async def look() -> LeaseRolloutsReply | None:
        leases = await store.rollouts.lease(token, body.worker_id, body.limit, body.ttl_s)
        return LeaseRolloutsReply(leases=leases) if leases else None

    return await store.work.until(look, body.wait_s, gone(request)) or LeaseRolloutsReply(leases=[])


async def heartbeat(body: HeartbeatBody, store: StoreDep) -> HeartbeatReply:
    """Renews leases and names those that are lost."""
    return HeartbeatReply(lost=await store.rollouts.heartbeat(body.worker_id, body.ttl_s, body.lease_ids))


async def release(body: ReleaseBody, store: StoreDep) -> Response:
    """Gives a lease back. A lease that ended already is no error."""
    outcome = await store.rollouts.release(body.lease_id, body.reason, body.count_attempt)
    store.work.ring()
    if outcome == "final":
        store.ready.ring()
    return Response(status_code=204)
