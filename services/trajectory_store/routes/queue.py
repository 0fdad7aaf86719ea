"""Owns the routes by which people steer the queue: pause, resume, drain, alarms, and the trials of this store."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from services.common.errors import NotFound
from services.common.wire.rollouts import Kind
from services.common.wire.store import PauseBody, QueueState
from services.trajectory_store.routes.deps import PathId, StoreDep, gone, guarded_router, tenants_of
from services.trajectory_store.store import Store

LOOK_AGAIN_S = 0.1


def router() -> APIRouter:
    """``/v1/queue``, ``/v1/alarms`` and ``/v1/trials``."""
    routes = guarded_router("queue")
    routes.add_api_route("/queue", state, methods=["GET"])
    routes.add_api_route("/queue/pause", pause, methods=["POST"])
    routes.add_api_route("/queue/resume", resume, methods=["POST"])
    routes.add_api_route("/queue/drain", drain, methods=["POST"])
    routes.add_api_route("/alarms/{name}/clear", clear_alarm, methods=["POST"], status_code=204)
    routes.add_api_route("/trials", trials, methods=["GET"])
    return routes


async def state(store: StoreDep) -> QueueState:
    """What runs and what is paused."""
    stats = await store.ledger.stats()
    return QueueState(running=stats.total.running, paused={Kind(kind): reason for kind, reason in stats.paused.items()})


async def pause(body: PauseBody, store: StoreDep) -> QueueState:
    """From now on no episode of these kinds is leased; those that run go on."""
    return await _set_paused(store, body, body.reason)


async def resume(body: PauseBody, store: StoreDep) -> QueueState:
    """Ends a pause."""
    reply = await _set_paused(store, body, None)
    store.work.ring()
    return reply


async def drain(body: PauseBody, request: Request, store: StoreDep) -> QueueState:
    """Pauses and waits up to ``wait_s`` until none of these kinds runs; ``running`` says how many still do."""
    end = time.monotonic() + body.wait_s
    is_gone = gone(request)
    while True:
        reply = await _set_paused(store, body, body.reason)
        if not reply.running or time.monotonic() >= end or await is_gone():
            return reply
        await asyncio.sleep(LOOK_AGAIN_S)


async def _set_paused(store: Store, body: PauseBody, reason: str | None) -> QueueState:
    running, paused = await store.rollouts.set_paused(body.kinds, reason)
    return QueueState(running=running, paused={Kind(kind): why for kind, why in paused.items()})


async def clear_alarm(name: PathId, store: StoreDep) -> Response:
    """Takes an alarm back, after its cause was removed."""
    if not await store.ledger.clear_alarm(name):
        raise NotFound(f"alarm {name} is not raised", code="no_alarm")
    return Response(status_code=204)


async def trials(request: Request) -> dict[str, Any]:
    """Every trial that was ever written to."""
    return {"trials": await tenants_of(request).server.trials()}
