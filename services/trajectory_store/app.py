"""Owns the trajectory store as an application: its routes, its background loops, its readiness. Refuses to hold state."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import app as common
from services.common.background import Background
from services.common.config import ExperimentConfig
from services.trajectory_store.routes import batches, ledger, rollouts, sessions, trajectories
from services.trajectory_store.store import build_store


def create_app(config: ExperimentConfig) -> FastAPI:
    """The service. It starts without Redis and says so in ``/readyz`` until Redis answers."""
    store = build_store(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        gauge = app.state.metrics.gauge("episodes", "Counts of the ledger", ("kind", "count"))
        async with Background() as background:
            background.start("sweeper", store.keep_sweeping)
            background.start("gauges", lambda: store.keep_gauges(gauge))
            yield
        await store.database.close()

    async def readiness() -> dict[str, str]:
        return {"redis": await store.database.health()}

    # Sessions come first: routes are matched in order, and two session routes run for every call of the policy.
    routers = [sessions.router(), rollouts.router(), trajectories.router(), batches.router(), ledger.router()]
    app = common.create_app("trajectory_store", lifespan=lifespan, readiness=readiness, routers=routers)
    app.state.store = store
    return app
