"""Owns the routes of batches: what the trainer takes and what it says became of it."""

import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Body, Query, Request, Response
from starlette.responses import StreamingResponse

from services.common.errors import BadRequest
from services.common.http import MSGPACK
from services.common.ids import is_valid_id
from services.common.wire.rollouts import Kind
from services.common.wire.store import AckBatchBody, Batch, ExtendBody, Group, LeaseBatchBody
from services.trajectory_store.redis_store.batches import Leased
from services.trajectory_store.routes.deps import LEAN, PathId, StoreDep, gone, guarded_router, msgpack
from services.trajectory_store.store import Store
from services.trajectory_store.token_join import batch_head, encode_batch, encode_group

log = logging.getLogger(__name__)

ONE_PIECE = 4 * 2**20
"""Bytes of a batch from which on it is streamed, so that it is never in memory as a whole."""


def router() -> APIRouter:
    """``/v1/batches`` and ``/v1/groups``."""
    routes = guarded_router("batches")
    LEAN.add(routes, "/batches/lease", lease, "POST")
    routes.add_api_route("/batches/{batch_id}/shard", shard, methods=["GET"])
    LEAN.add(routes, "/batches/{batch_id}/ack", ack, "POST", 204)
    routes.add_api_route("/batches/{batch_id}/nack", nack, methods=["POST"], status_code=204)
    routes.add_api_route("/batches/{batch_id}/extend", extend, methods=["POST"], status_code=204)
    routes.add_api_route("/groups", groups, methods=["GET"])
    return routes


async def lease(body: LeaseBatchBody, request: Request, store: StoreDep) -> Response:
    """Leases ready groups with their tokens, as a msgpack `Batch` that is sent group by group."""

    async def look() -> Leased | None:
        return await store.batches.lease(body, partial=False)

    leased = await store.ready.until(look, body.wait_s, gone(request))
    if leased is None and body.allow_partial:
        leased = await store.batches.lease(body, partial=True)
    if leased is None:
        return msgpack(encode_batch(Batch(batch_id="", kind=body.kind, groups=[])))
    if not body.content:
        groups = [Group(group_id=group_id, episodes=[]) for group_id, *_ in leased.rows]
        return msgpack(encode_batch(msgspec.structs.replace(leased.batch, groups=groups)))
    return await _content(store, leased)


async def shard(
    batch_id: PathId,
    store: StoreDep,
    rank: Annotated[int, Query(ge=0)],
    world: Annotated[int, Query(ge=1, le=65_536)],
) -> Response:
    """What one of ``world`` data-parallel ranks trains on of a leased batch. Shards are disjoint, complete, the same when asked again."""
    if rank >= world:
        raise BadRequest(f"rank: {rank} is not one of the {world} ranks", param="rank")
    return await _content(store, await store.batches.shard(batch_id, rank, world))


async def _content(store: Store, leased: Leased) -> Response:
    """The batch in one piece where it is small, else streamed."""
    parts, size = [batch_head(leased.batch, len(leased.rows))], 0
    groups = store.batches.groups(leased)
    async for group in groups:
        parts.append(encode_group(group))
        size += len(parts[-1])
        if size > ONE_PIECE:
            return StreamingResponse(_rest(b"".join(parts), groups), media_type=MSGPACK)
    return msgpack(b"".join(parts))


async def _rest(begun: bytes, groups: AsyncIterator[Group]) -> AsyncIterator[bytes]:
    yield begun
    async for group in groups:
        yield encode_group(group)


async def ack(batch_id: PathId, body: AckBatchBody, store: StoreDep) -> Response:
    """Says of every episode of the batch whether it was trained on or dropped, and why. Idempotent."""
    named = Counter([*body.trained, *body.dropped])
    if twice := [episode_id for episode_id, times in named.items() if times > 1]:
        raise BadRequest(f"trained, dropped: {twice[0]} is named twice", code="not_a_partition", param="trained")
    for episode_id, reason in body.dropped.items():
        if not is_valid_id(reason):
            raise BadRequest(f"dropped.{episode_id}: {reason!r} is not a reason; use a short word such as stale", param="dropped")
    if await store.batches.ack(batch_id, body):
        log.error("%s: the dynamic filter rejects every group; no more train episodes are taken until the alarm is cleared", store.trial)
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
