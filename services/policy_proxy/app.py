"""Owns putting the proxy together: adapters, core and background loops, for as long as the application runs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI

from services.common.app import admin_headers, admin_key
from services.common.app import create_app as common_app
from services.common.background import Background
from services.common.config import ExperimentConfig
from services.common.config.paths import initial_model_dir
from services.common.http import ServiceClient
from services.common.wire.store import PolicyVersion
from services.policy_proxy.calls.generation import Generator
from services.policy_proxy.calls.service import CallService
from services.policy_proxy.calls.turns import Limits, Turns
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.parsing import check_parsers
from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.routes import admin, api, areal, servers, sessions
from services.policy_proxy.servers.fleet import Fleet
from services.policy_proxy.servers.pool import ServerPool, ServerState
from services.policy_proxy.servers.settings import pool_settings
from services.policy_proxy.servers.watch import VersionFollower, Watcher
from services.policy_proxy.sessions.areal import ArealSessions
from services.policy_proxy.sessions.keys import SessionKeys, trial_secret
from services.policy_proxy.sessions.store import Store
from services.policy_proxy.sessions.table import SessionTable
from services.policy_proxy.weights.gate import Gate
from services.policy_proxy.weights.group import WeightGroup
from services.policy_proxy.weights.updates import WeightUpdates

STORE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """What the routes work with, in ``app.state.proxy``."""

    config: ExperimentConfig
    keys: SessionKeys
    store: Store
    sessions: SessionTable
    areal: ArealSessions
    renderer: Renderer
    turns: Turns
    calls: CallService
    pool: ServerPool
    gate: Gate
    group: WeightGroup
    updates: WeightUpdates
    fleet: Fleet


def create_app(config: ExperimentConfig) -> FastAPI:
    """The application. Raises ValueError where the model folder or a parser name is wrong."""
    agent = config.rollout.agent
    check_parsers(tool_call_parser=agent.tool_call_parser, reasoning_parser=agent.reasoning_parser)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        metrics = ProxyMetrics(app.state.metrics)
        url = config.services.url("trajectory_store")
        async with ServiceClient("trajectory_store", url, timeout_s=STORE_TIMEOUT_S, headers=admin_headers()) as client:
            proxy = _assemble(config, Store(client), metrics)
            _observe(metrics, proxy)
            app.state.proxy = proxy
            async with Background() as background:
                _start(background, proxy)
                yield
            await proxy.pool.close()

    async def readiness() -> dict[str, str]:
        proxy: Proxy = app.state.proxy
        states = ", ".join(f"{server.url}: {server.state.value} {server.detail}".strip() for server in proxy.pool.servers)
        return {"trajectory_store": await proxy.store.check(), "policy_servers": "ok" if proxy.pool.up() else states}

    modules = (api, sessions, areal, admin, servers)
    app = common_app("policy_proxy", lifespan=lifespan, readiness=readiness, routers=[each.router() for each in modules])
    return app


def _assemble(config: ExperimentConfig, store: Store, metrics: ProxyMetrics) -> Proxy:
    section = config.services.policy_proxy
    pool = ServerPool(section.server_urls or [config.services.url("policy_server")], pool_settings(section))
    gate, group = Gate(), WeightGroup(pool)
    table = SessionTable(store)
    renderer = Renderer.load(initial_model_dir(config), config.rollout.agent.chat_template)
    generator = Generator(pool, gate, section.call_timeout_s)
    agent = config.rollout.agent
    limits = Limits(config.gconfig.max_tokens, config.gconfig.max_new_tokens, agent.reasoning_parser, agent.tool_call_parser)
    return Proxy(
        config=config,
        keys=SessionKeys(trial_secret(config, admin_key())),
        store=store,
        sessions=table,
        areal=ArealSessions(store, table, capacity=section.areal_capacity, export_wait_s=section.areal_export_wait_s),
        renderer=renderer,
        turns=Turns(renderer, table, generator, limits, metrics),
        calls=CallService(table, metrics, max_in_flight=section.max_inflight_calls),
        pool=pool,
        gate=gate,
        group=group,
        updates=WeightUpdates(pool, gate, group, section.pause_mode, controls=section.controls_servers),
        fleet=Fleet(pool, Watcher(pool, section.pause_deadline_s, controls=section.controls_servers)),
    )


def _observe(metrics: ProxyMetrics, proxy: Proxy) -> None:
    """Gauges are read off when Prometheus asks."""
    metrics.in_flight.set_function(lambda: proxy.calls.in_flight)
    metrics.sessions.set_function(lambda: len(proxy.sessions))
    metrics.paused.set_function(lambda: float(proxy.gate.closed))
    metrics.policy_version.set_function(lambda: proxy.pool.policy_version)
    for state in ServerState:
        metrics.servers.labels(state.value).set_function(partial(proxy.pool.count, state))


def _start(background: Background, proxy: Proxy) -> None:
    config = proxy.config
    deadline_s = config.services.policy_proxy.pause_deadline_s
    initial = PolicyVersion(version=0, path=str(initial_model_dir(config)))
    follower = VersionFollower(proxy.pool, proxy.updates, proxy.store.latest_version, initial, deadline_s)
    background.start("keep the call log", proxy.store.keep_log)
    background.start("follow versions", follower.run)
    background.start("sweep sessions", proxy.sessions.run)
    proxy.fleet.start(background)
