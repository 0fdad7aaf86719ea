"""Stand-ins for the trajectory_store and the trainer: real ASGI apps in their own processes, started as the launcher starts services.

``python standin.py ROLE --config FILE``. The trajectory_store keeps documents, metrics and stats in memory; the trainer "trains" by
reporting steps to it and writing results. STANDIN_STEP_S is the time of a step, STANDIN_FAIL makes the experiment fail.
"""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI

from services.common.app import admin_headers, create_app, require_admin
from services.common.background import Background
from services.common.config import ExperimentConfig, ServiceName, load_config, paths
from services.common.http import ServiceClient

STEPS = 3


async def ready() -> dict[str, str]:
    return {}


@asynccontextmanager
async def nothing(_: FastAPI) -> AsyncIterator[None]:
    yield


def store_routes() -> APIRouter:
    documents: dict[str, dict[str, Any]] = {}
    metrics: list[dict[str, Any]] = []
    counts = {"queued": 1, "running": 2, "ready_groups": 0, "trajectories_in": 24, "trained": 20, "dropped": 4}
    router = APIRouter(dependencies=[Depends(require_admin)])

    async def put(name: str, body: dict[str, Any]) -> None:
        documents[name] = body

    async def get(name: str) -> dict[str, Any]:
        return documents.get(name, {})

    async def append(body: dict[str, Any]) -> None:
        metrics.append(body)

    async def page(after: int = 0, limit: int = 100) -> dict[str, Any]:
        items = metrics[after : after + limit]
        return {"items": items, "next": after + len(items)}

    async def stats() -> dict[str, Any]:
        return {"total": counts, "kinds": {"train": counts}}

    router.add_api_route("/v1/documents/{name}", put, methods=["PUT"])
    router.add_api_route("/v1/documents/{name}", get, methods=["GET"])
    router.add_api_route("/v1/metrics", append, methods=["POST"])
    router.add_api_route("/v1/metrics", page, methods=["GET"])
    router.add_api_route("/v1/stats", stats, methods=["GET"])
    return router


class Experiment:
    """Reports a step now and then; where it was is kept in a file, so that a second start goes on."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self._file = paths.trial_dir(config) / "standin_step"
        self.document: dict[str, Any] = {"phase": "setup"}

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async with Background() as background:
            background.start("experiment", self.run)
            yield

    async def run(self) -> None:
        url = self._config.services.url("trajectory_store")
        async with ServiceClient("store", url, retry_s=20, headers=admin_headers()) as store:
            first = int(self._file.read_text()) if self._file.exists() else 0
            for step in range(first, STEPS):
                await asyncio.sleep(float(os.environ.get("STANDIN_STEP_S", "0.1")))
                await store.post("/v1/metrics", {"step": step, "values": {"rollout/reward": 0.2 * step}})
                self._file.write_text(str(step + 1))
                await self._say(store, "rl", step + 1)
            if os.environ.get("STANDIN_FAIL"):
                await self._say(store, "failed", STEPS, "kl_ctl needs a reference model")
                return
            results = {"reward_before": 0.1, "reward_after": 0.6, "wall_s": 1.0, "lost": 0, "duplicated": 0, "first_step": first}
            paths.results_file(self._config).write_text(json.dumps(results))
            await self._say(store, "done", STEPS)

    async def _say(self, store: ServiceClient, phase: str, step: int, detail: str = "") -> None:
        self.document = {"phase": phase, "step": step, "total_steps": STEPS, "policy_version": step, "detail": detail}
        await store.put("/v1/documents/experiment", self.document)


def build(role: ServiceName, config: ExperimentConfig) -> FastAPI:
    if role == "trainer":
        experiment = Experiment(config)
        router = APIRouter()

        async def state() -> dict[str, Any]:
            return experiment.document

        router.add_api_route("/v1/experiment", state)
        return create_app(role, lifespan=experiment.lifespan, readiness=ready, routers=[router])
    return create_app(role, lifespan=nothing, readiness=ready, routers=[store_routes()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    endpoint = config.services.endpoint(arguments.role)
    uvicorn.run(build(arguments.role, config), host=endpoint.host, port=endpoint.port, log_level="warning")


if __name__ == "__main__":
    main()
