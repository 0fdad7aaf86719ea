"""Owns the trajectory store as an application: its routes, its background loops, its readiness. Refuses to hold state."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import app as common
from services.common.background import Background
from services.common.config import ExperimentConfig
from services.trajectory_store.admission import BodyBudget
from services.trajectory_store.dumper import Dumper
from services.trajectory_store.routes import batches, call_log, events, ledger, queue, rollouts, sessions, trajectories
from services.trajectory_store.tenants import Tenants, TrialPath, check_own_name
from services.trajectory_store.upkeep import Upkeep


def create_app(config: ExperimentConfig) -> FastAPI:
    """The service. It starts without Redis and says so in ``/readyz`` until Redis answers."""
    check_own_name(config)
    settings = config.services.trajectory_store
    tenants = Tenants(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        upkeep = Upkeep(tenants, app.state.metrics)
        async with Background() as background:
            background.start("sweeper", upkeep.keep_sweeping)
            background.start("packer", upkeep.keep_packing)
            background.start("tidier", upkeep.keep_tidy)
            if settings.dump_to_file:
                background.start("dumper", Dumper(config, tenants).keep_dumping)
            yield
        await tenants.server.close()

    async def readiness() -> dict[str, str]:
        return {"redis": await tenants.server.health()}

    routers = [each.router() for each in (call_log, sessions, rollouts, trajectories, batches, queue, events, ledger)]
    app = common.create_app("trajectory_store", lifespan=lifespan, readiness=readiness, routers=routers)
    app.front = TrialPath(app.front)
    app.state.tenants = tenants
    app.state.listeners = set()
    app.state.log_metrics = call_log.LogMetrics(app.state.metrics)
    app.state.bodies = BodyBudget(settings.max_body_mb * 2**20, settings.max_inflight_body_mb * 2**20)
    return app
