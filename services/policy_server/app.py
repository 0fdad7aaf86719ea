"""Owns the assembly of the policy server: a torch stand-in for SGLang on laptops and in tests, behind SGLang's HTTP surface."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import app as common
from services.common.background import Background
from services.common.config import ExperimentConfig
from services.common.config.paths import initial_model_dir
from services.policy_server.loading import EngineLoader
from services.policy_server.metrics import EngineCollector
from services.policy_server.routes import admin, router
from services.policy_server.settings import EngineSettings


def create_app(config: ExperimentConfig) -> FastAPI:
    """The app; the policy is loaded in the background, `/readyz` says when."""
    loader = EngineLoader(initial_model_dir(config), EngineSettings.from_config(config.services.policy_server))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with Background() as background:
            background.start("load", loader.load)
            yield
        await loader.stop()

    app = common.create_app("policy_server", lifespan=lifespan, readiness=loader.readiness, routers=[router, admin])
    app.state.loader = loader
    app.state.metrics.registry.register(EngineCollector(loader))
    return app
