"""Owns the routes of the accounts (stats, audit, drops) and of the experiment's shared facts."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from services.common.wire.store import MetricsRecord, PolicyVersion, Stats
from services.trajectory_store.accounts import EXAMPLES_PER_REASON, audit
from services.trajectory_store.routes.deps import PathId, StoreDep, guarded_router


def router() -> APIRouter:
    """``/v1/stats``, ``/v1/audit``, ``/v1/drops``, ``/v1/policy_versions``, ``/v1/metrics``, ``/v1/documents``."""
    routes = guarded_router("ledger")
    routes.add_api_route("/stats", stats, methods=["GET"])
    routes.add_api_route("/audit", audit_now, methods=["GET"])
    routes.add_api_route("/drops", drops, methods=["GET"])
    routes.add_api_route("/policy_versions", publish, methods=["POST"])
    routes.add_api_route("/policy_versions/latest", latest_version, methods=["GET"])
    routes.add_api_route("/metrics", append_metrics, methods=["POST"], status_code=204)
    routes.add_api_route("/metrics", list_metrics, methods=["GET"])
    routes.add_api_route("/documents/{name}", put_document, methods=["PUT"], status_code=204)
    routes.add_api_route("/documents/{name}", get_document, methods=["GET"])
    return routes


async def stats(store: StoreDep) -> Stats:
    """Counts per kind and in total."""
    return await store.ledger.stats()


async def audit_now(store: StoreDep) -> dict[str, Any]:
    """Recounts everything from the records and names what does not add up."""
    # In a thread: recounting 100,000 records takes longer than other requests should wait.
    verdict = await asyncio.to_thread(audit, await store.audits.snapshot())
    return {"balanced": verdict.balanced, "problems": verdict.problems}


async def drops(store: StoreDep, limit: Annotated[int, Query(ge=1, le=EXAMPLES_PER_REASON)] = EXAMPLES_PER_REASON) -> dict[str, Any]:
    """Why trajectories were not trained on: counts by reason, with examples."""
    return await store.ledger.drops(limit)


async def publish(body: PolicyVersion, store: StoreDep) -> PolicyVersion:
    """Logs a published version. Idempotent; a version never changes its path."""
    return await store.experiment.publish(body)


async def latest_version(store: StoreDep) -> PolicyVersion:
    """The newest published version."""
    return await store.experiment.latest()


async def append_metrics(body: MetricsRecord, store: StoreDep) -> Response:
    """Appends one line of metrics."""
    await store.experiment.append_metrics(body)
    return Response(status_code=204)


async def list_metrics(
    store: StoreDep,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> dict[str, Any]:
    """Lines of metrics, oldest first. ``next`` is the cursor to go on from, at the end too."""
    items, cursor = await store.experiment.metrics(after, limit)
    return {"items": items, "next": cursor}


async def put_document(name: PathId, body: dict[str, Any], store: StoreDep) -> Response:
    """Replaces a shared document."""
    await store.experiment.put_document(name, body)
    return Response(status_code=204)


async def get_document(name: PathId, store: StoreDep) -> dict[str, Any]:
    """A shared document."""
    return await store.experiment.document(name)
