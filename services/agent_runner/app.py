"""Owns putting the agent runner together: clients, the episode player, the worker, the routes."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI

from services.agent_runner.catalog import Catalog
from services.agent_runner.episodes.adhoc import AdhocEpisodes
from services.agent_runner.episodes.events import Phase
from services.agent_runner.episodes.live import LiveEpisodes
from services.agent_runner.episodes.pacing import LoopLag, Pace, PacedClient
from services.agent_runner.episodes.player import EpisodePlayer
from services.agent_runner.episodes.worker import Worker
from services.agent_runner.metrics import RunnerMetrics
from services.agent_runner.proxy import ProxyClient
from services.agent_runner.records.replay import Replays
from services.agent_runner.reward.judge import open_judge
from services.agent_runner.routes import episodes, replays, tasks
from services.agent_runner.routes.sse import Streams
from services.agent_runner.store import StoreClient
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


@dataclass(frozen=True, slots=True)
class Clients:
    """The services that the runner talks to."""

    store: ServiceClient
    proxy: ServiceClient
    users: ServiceClient

    @classmethod
    def of(cls, config: ExperimentConfig) -> "Clients":
        """Clients for the addresses in the config; nothing is connected yet."""
        url, pace = config.services.url, Pace()
        return cls(
            store=ServiceClient("trajectory_store", url("trajectory_store"), timeout_s=SHORT_CALL_S, headers=common.admin_headers()),
            proxy=PacedClient("policy_proxy", url("policy_proxy"), pace, timeout_s=SHORT_CALL_S, retry_s=RETRY_S),
            users=PacedClient("user_simulator", url("user_simulator"), pace, timeout_s=SHORT_CALL_S, retry_s=RETRY_S),
        )

    async def answers(self, *, users: bool) -> dict[str, str]:
        """ "ok" or the reason it is not, by service."""
        needed: dict[ServiceName, ServiceClient] = {"trajectory_store": self.store, "policy_proxy": self.proxy}
        if users:
            needed["user_simulator"] = self.users
        checks = await asyncio.gather(*(_answers(client) for client in needed.values()))
        return dict(zip(needed, checks, strict=True))


def create_app(config: ExperimentConfig) -> FastAPI:
    """The agent runner's app. It begins to lease as soon as the config's tasks are loaded."""
    clients = Clients.of(config)
    loaded = asyncio.Event()

    async def readiness() -> dict[str, str]:
        checks = await clients.answers(users=not config.econfig.solo_mode)
        return {"domains": "ok" if loaded.is_set() else "loading", **checks}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for client in (clients.store, clients.proxy, clients.users):
                await stack.enter_async_context(client)
            app.state.loaded = loaded
            loops = _assemble(app, config, clients)
            stack.push_async_callback(app.state.player.close)
            stack.push_async_callback(app.state.adhoc.close)
            background = await stack.enter_async_context(Background())
            for name, run in loops.items():
                background.start(name, run)
            yield

    routers = [episodes.router, tasks.router, replays.router]
    return common.create_app("agent_runner", lifespan=lifespan, readiness=readiness, routers=routers)


def _assemble(app: FastAPI, config: ExperimentConfig, clients: Clients) -> dict[str, Callable[[], Awaitable[None]]]:
    """Fills ``app.state`` with what the routes use, and returns the loops to run beside them."""
    runner, state = config.services.agent_runner, app.state
    judge = open_judge(config.econfig)
    proxy, store = ProxyClient(clients.proxy, call_timeout_s=runner.call_timeout_s), StoreClient(clients.store)
    catalog, lag = Catalog(config), LoopLag()
    metrics = RunnerMetrics(state.metrics, catalog.task_floor)
    live = LiveEpisodes(proxy.seal, catalog.stamp, metrics)
    metrics.observe(lag, partial(live.count, Phase.RUNNING), partial(live.count, Phase.QUEUED))
    state.config, state.store, state.catalog, state.live, state.streams = config, store, catalog, live, Streams()
    state.player = EpisodePlayer(config, proxy, clients.users, judge)
    state.replays = Replays(config, judge)
    state.adhoc = AdhocEpisodes(live, store, limit=runner.concurrency)
    play = partial(live.run, play=state.player.play)
    state.worker = Worker(worker_id(), store, play, concurrency=runner.concurrency, ttl_s=runner.lease_ttl_s)

    async def work() -> None:
        await catalog.preload()
        state.loaded.set()
        await state.worker.run()

    return {"worker": work, "loop lag": lag.run, "reward metrics": metrics.run}


async def _answers(client: ServiceClient) -> str:
    try:
        await client.get("/healthz", timeout_s=2, retry_s=0)
    except RemoteError as error:
        return str(error)
    return "ok"
