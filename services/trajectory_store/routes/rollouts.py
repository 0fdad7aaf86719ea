"""Owns the routes of the rollout queue as trainers and workers see it."""

from fastapi import APIRouter, Request, Response

from services.common.errors import BadRequest
from services.common.ids import new_id
from services.common.wire.store import (
    CancelBody,
    CancelReply,
    EnqueueBody,
    EnqueueReply,
    HeartbeatBody,
    HeartbeatReply,
    LeaseRolloutsBody,
    LeaseRolloutsReply,
    ReleaseBody,
    RolloutLease,
)
from services.trajectory_store.fairness import Demand, shares
from services.trajectory_store.routes.deps import LEAN, StoreDep, gone, guarded_router, tenants_of
from services.trajectory_store.store import Store
from services.trajectory_store.tenants import Tenants

MAX_REQUESTS = 10_000
"""Rollout requests in one body: all are queued in one step, during which Redis does nothing else."""


def router() -> APIRouter:
    """``/v1/rollouts``."""
    routes = guarded_router("rollouts")
    LEAN.add(routes, "/rollouts", enqueue, "POST")
    LEAN.add(routes, "/rollouts/lease", lease, "POST")
    LEAN.add(routes, "/rollouts/heartbeat", heartbeat, "POST")
    routes.add_api_route("/rollouts/release", release, methods=["POST"], status_code=204)
    routes.add_api_route("/rollouts/cancel", cancel, methods=["POST"])
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
    tenants = tenants_of(request)

    async def look() -> LeaseRolloutsReply | None:
        leases = await _fair_lease(tenants, token, body) if body.trials else await _lease(store, token, body, body.limit)
        return LeaseRolloutsReply(leases=leases) if leases else None

    return await store.work.until(look, body.wait_s, gone(request)) or LeaseRolloutsReply(leases=[])


async def _lease(store: Store, token: str, body: LeaseRolloutsBody, limit: int) -> list[RolloutLease]:
    return await store.rollouts.lease(token, body.worker_id, limit, body.ttl_s)


async def _fair_lease(tenants: Tenants, token: str, body: LeaseRolloutsBody) -> list[RolloutLease]:
    """Leases from several trials: each free place goes to the trial with the fewest running episodes."""
    stores = {store.trial: store for store in await tenants.all(body.trials)}
    demands = [Demand(trial, *(await store.rollouts.demand())) for trial, store in stores.items()]
    leases: list[RolloutLease] = []
    for trial, count in shares(demands, body.limit).items():
        found = await _lease(stores[trial], token, body, count)
        leases += [lease.model_copy(update={"trial": trial}) for lease in found]
    return leases


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


async def cancel(body: CancelBody, store: StoreDep) -> CancelReply:
    """Ends episodes that nobody wants any more, running ones included: their workers learn it from the next heartbeat. Never retried."""
    if not body.episode_ids and not body.group_ids:
        raise BadRequest("episode_ids, group_ids: name what to cancel", param="episode_ids")
    reply = await store.rollouts.cancel(body.episode_ids, body.group_ids, body.reason)
    store.ready.ring()
    return reply
