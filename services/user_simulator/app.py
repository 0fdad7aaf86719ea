"""Owns putting the user simulator together: the configured back end behind the one route."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import app as common
from services.common.config import ConfigError, ExperimentConfig
from services.common.wire.users import UserTurnBody, UserTurnReply
from services.user_simulator import routes
from services.user_simulator.model import ModelUser
from services.user_simulator.scripted import scripted_turn


def create_app(config: ExperimentConfig) -> FastAPI:
    """The user simulator's app. Raises `ConfigError` where the model back end is chosen and no model is named."""
    service = config.services.user_simulator
    model = _model_user(config) if service.backend == "openai" else None

    async def readiness() -> dict[str, str]:
        return {"backend": "ok"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        if model is not None:
            await model.close()

    app = common.create_app("user_simulator", lifespan=lifespan, readiness=readiness, routers=[routes.router])
    app.state.turn = _scripted if model is None else model.turn
    app.state.turns_total = app.state.metrics.counter("turns_total", "User turns by fault label", ("fault",))
    return app


def _model_user(config: ExperimentConfig) -> ModelUser:
    env = config.econfig
    if not env.user_llm_base_url or not env.user_llm:
        raise ConfigError("services.user_simulator.backend=openai needs econfig.user_llm_base_url and econfig.user_llm")
    return ModelUser(
        env.user_llm_base_url, env.user_llm, env.user_llm_args or {}, turn_timeout_s=config.services.user_simulator.turn_timeout_s
    )


async def _scripted(body: UserTurnBody) -> UserTurnReply:
    return scripted_turn(body)
