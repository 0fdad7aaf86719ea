"""Owns putting the agent runner together: clients, the episode player, the worker, the routes."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from services.agent_runner import routes
from services.agent_runner.adhoc import AdhocEpisodes
from services.agent_runner.domains import open_backend
from services.agent_runner.episode import EpisodePlayer
from services.agent_runner.proxy import ProxyClient
from services.agent_runner.store import StoreClient
from services.agent_runner.worker import Worker
from services.common import app as common
from services.common.background import Background
from services.common.config import ExperimentConfig, ServiceName
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.ids import new_id

SHORT_CALL_S = 30.0
"""Deadline of every call that does not wait for a model."""
RETRY_S = 60.0
"""How long a service may be away (a restart) before an episode that needs it has failed."""


def worker_id() -> str:
    """A fresh id on every start: leases of a process before this one must expire, not be renewed."""
    host = "".join(char if char.isalnum() else "-" for char in socket.gethostname())
    return f"runner-{host}-{os.getpid()}-{new_id('w')[-8:]}"


def create_app(config: ExperimentConfig) -> FastAPI:
    """The agent runner's app. It begins to lease as soon as the domain's package is loaded."""
    services, runner = config.services, config.services.agent_runner
    store_http = ServiceClient("trajectory_store", services.url("trajectory_store"), timeout_s=SHORT_CALL_S, headers=common.admin_headers())
    proxy_http = ServiceClient("policy_proxy", services.url("policy_proxy"), timeout_s=SHORT_CALL_S, retry_s=RETRY_S)
    users_http = ServiceClient("user_simulator", services.url("user_simulator"), timeout_s=SHORT_CALL_S, retry_s=RETRY_S)
    store = StoreClient(store_http)
    player = EpisodePlayer(config, ProxyClient(proxy_http, call_timeout_s=runner.call_timeout_s), users_http)
    loaded = asyncio.Event()

    async def readiness() -> dict[str, str]:
        needed: dict[ServiceName, ServiceClient] = {"trajectory_store": store_http, "policy_proxy": proxy_http}
        if not config.econfig.solo_mode:
            needed["user_simulator"] = users_http
        checks = await asyncio.gather(*(_answers(client) for client in needed.values()))
        return {"domains": "ok" if loaded.is_set() else "loading", **dict(zip(needed, checks, strict=True))}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for client in (store_http, proxy_http, users_http):
                await stack.enter_async_context(client)
            app.state.config = config
            app.state.loaded = loaded
            app.state.adhoc = AdhocEpisodes(player.play, store, limit=runner.concurrency)
            stack.push_async_callback(app.state.adhoc.close)
            app.state.worker = Worker(worker_id(), store, player.play, concurrency=runner.concurrency, ttl_s=runner.lease_ttl_s)
            background = await stack.enter_async_context(Background())
            background.start("worker", work)
            yield

    async def work() -> None:
        # In a thread, because importing the package takes seconds and the health routes answer meanwhile.
        await asyncio.to_thread(_load, config.econfig.domain)
        loaded.set()
        await app.state.worker.run()

    app = common.create_app("agent_runner", lifespan=lifespan, readiness=readiness, routers=[routes.router])
    return app


def _load(domain: str) -> None:
    """Imports the domain's package and parses its tasks and schemas, so that no episode has to."""
    backend = open_backend(domain)
    backend.tasks(backend.splits()[0])
    backend.tool_schemas(solo=True)


async def _answers(client: ServiceClient) -> str:
    try:
        await client.get("/healthz", timeout_s=2, retry_s=0)
    except RemoteError as error:
        return str(error)
    return "ok"
