"""Owns putting the trainer together: its clients, the engine's thread, the experiment as a supervised loop, the HTTP side."""

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import app as common_app
from services.common.app import Metrics
from services.common.background import Background
from services.common.config import ExperimentConfig
from services.trainer.engine import ComputeThread, open_engine
from services.trainer.experiment import Clients, Experiment
from services.trainer.phases import Phase
from services.trainer.proxy_client import ProxyClient
from services.trainer.routes import router
from services.trainer.runner_client import RunnerClient
from services.trainer.store_client import StoreClient


def create_app(config: ExperimentConfig) -> FastAPI:
    """The trainer. The experiment starts with the app and goes on where it was left; when it is done the app keeps answering."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        urls = config.services
        async with (
            StoreClient(urls.url("trajectory_store")) as store,
            ProxyClient(urls.url("policy_proxy")) as proxy,
            RunnerClient(urls.url("agent_runner")) as runner,
        ):
            with ComputeThread() as compute:
                experiment = Experiment(config, Clients(store, proxy, runner), compute, open_engine)
                app.state.experiment, app.state.store = experiment, store
                _gauges(app.state.metrics, experiment)
                async with Background() as background:
                    background.start("experiment", experiment.run)
                    yield

    async def readiness() -> dict[str, str]:
        view = app.state.experiment.view
        return {"trajectory_store": await app.state.store.ready(), "experiment": view.detail if view.phase is Phase.FAILED else "ok"}

    app = common_app.create_app("trainer", lifespan=lifespan, readiness=readiness, routers=[router()])
    return app


def _gauges(metrics: Metrics, experiment: Experiment) -> None:
    """What a monitor wants to know, read when it asks."""

    def last(name: str) -> float:
        return experiment.recorder.last.values.get(name, math.nan) if experiment.recorder.last else math.nan

    metrics.gauge("ppo_steps", "PPO steps done").set_function(lambda: experiment.state.step)
    metrics.gauge("sft_steps", "SFT steps done").set_function(lambda: experiment.state.sft_step)
    metrics.gauge("rollout_reward_ratio", "Mean reward of the last batch").set_function(lambda: last("rollout/reward"))
    metrics.gauge("failed_state", "1 where the experiment has failed").set_function(lambda: float(experiment.view.phase is Phase.FAILED))
