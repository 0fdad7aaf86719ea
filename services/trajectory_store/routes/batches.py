"""Owns the routes of batches: what the trainer takes and what it says became of it."""

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from services.common.errors import BadRequest
from services.common.ids import is_valid_id
from services.common.wire.rollouts import Kind
from services.common.wire.store import AckBatchBody, Batch, ExtendBody, LeaseBatchBody
from services.trajectory_store.routes.deps import PathId, StoreDep, gone, guarded_router, msgpack
from services.trajectory_store.token_join import encode_batch


def router() -> APIRouter:
    """``/v1/batches`` and ``/v1/groups``."""
    routes = guarded_router("batches")
    routes.add_api_route("/batches/lease", lease, methods=["POST"])
    routes.add_api_route("/batches/{batch_id}/ack", ack, methods=["POST"], status_code=204)
    routes.add_api_route("/batches/{batch_id}/nack", nack, methods=["POST"], status_code=204)
    routes.add_api_route("/batches/{batch_id}/extend", extend, methods=["POST"], status_code=204)
    routes.add_api_route("/groups", groups, methods=["GET"])
    return routes


async def lease(body: LeaseBatchBody, request: Request, store: StoreDep) -> Response:
    """Leases ready groups with their tokens, as a msgpack `Batch`."""

    async def look() -> Batch | None:
        return await store.batches.lease(body, partial=False)

    batch = await store.ready.until(look, body.wait_s, gone(request))
    if batch is None and body.allow_partial:
        batch = await store.batches.lease(body, partial=True)
    return msgpack(encode_batch(batch or Batch(batch_id="", kind=body.kind, groups=[])))


async def ack(batch_id: PathId, body: AckBatchBody, store: StoreDep) -> Response:
    """Says of every episode of the batch whether it was trained on or dropped, and why. Idempotent."""
    named = Counter([*body.trained, *body.dropped])
    if twice := [episode_id for episode_id, times in named.items() if times > 1]:
        raise BadRequest(f"trained, dropped: {twice[0]} is named twice", code="not_a_partition", param="trained")
    for episode_id, reason in body.dropped.items():
        if not is_valid_id(reason):
            raise BadRequest(f"dropped.{episode_id}: {reason!r} is not a reason; use a short word such as stale", param="dropped")
    await store.batches.ack(batch_id, body)
    return Response(status_code=204)


async def nack(batch_id: PathId, store: StoreDep, _body: Annotated[dict[str, str], Body()] | None = None) -> Response:
    """Gives the batch back; its groups are ready again, at their old places."""
    await store.batches.nack(batch_id)
    store.ready.ring()
    return Response(status_code=204)


async def extend(batch_id: PathId, body: ExtendBody, store: StoreDep) -> Response:
    """Keeps the batch longer."""
    await store.batches.extend(batch_id, body.ttl_s)
    return Response(status_code=204)


async def groups(store: StoreDep, kind: Kind | None = None) -> dict[str, int]:
    """How many groups are ready, and how many still wait for members."""
    return await store.ledger.groups([kind] if kind else list(Kind))
