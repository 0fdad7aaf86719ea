"""Owns what a launch consists of: the ports it needs, the set-up commands, the processes and their order. Pure but for the environment."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.app import ADMIN_KEY_ENV
from services.common.config import ExperimentConfig, ServiceName, paths
from services.launcher import redis_server
from services.launcher.ports import Wanted
from services.launcher.probes import http_probe, redis_probe
from services.launcher.process import ProcessSpec

WAVES: tuple[tuple[ServiceName, ...], ...] = (
    ("trajectory_store", "policy_server", "user_simulator"),
    ("policy_proxy",),
    ("agent_runner",),
    ("trainer",),
)
"""Start order. Services of one wave do not call each other; each wave calls only the ones before it."""

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
"""Several pools that each spin on all cores are many times slower than one thread each. The trainer raises its own count itself."""

WAIT_PASSIVELY = {"OMP_WAIT_POLICY": "PASSIVE"}
"""A thread that spins at a barrier takes the core from the service it waits for."""

CORPUS_TASKS = 64
"""Tasks whose texts the tokenizer of the small policy is trained on."""
SETUP_DEADLINE_S = 900.0


@dataclass(frozen=True, slots=True)
class SetupStep:
    """A command that runs once, before the services."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a launch starts."""

    setup: tuple[SetupStep, ...]
    waves: tuple[tuple[ProcessSpec, ...], ...]
    env: Mapping[str, str]
    logs: Path


PlanFactory = Callable[[ExperimentConfig, Path, str, bool], Plan]
"""Of (config, file that the services read it from, admin key, with trainer)."""


def service_names(*, with_trainer: bool) -> list[ServiceName]:
    """The services of a launch in start order."""
    return [name for wave in WAVES for name in wave if with_trainer or name != "trainer"]


def wanted_ports(config: ExperimentConfig, *, with_trainer: bool) -> list[Wanted]:
    """The ports a launch listens on."""
    endpoints = [(name, config.services.endpoint(name)) for name in service_names(with_trainer=with_trainer)]
    wanted = [Wanted(name, endpoint.host, endpoint.port, f"services.{name}.port") for name, endpoint in endpoints]
    if redis_server.external_url(config) is None:
        port = config.services.trajectory_store.redis_port
        wanted.append(Wanted("redis", redis_server.HOST, port, "services.trajectory_store.redis_port"))
    return wanted


def foreign_urls() -> list[str]:
    """Environment variables that would send services of this launch elsewhere."""
    names = (f"FRONTDESK_{name.upper()}_URL" for wave in WAVES for name in wave)
    return [name for name in names if name in os.environ]


def plan_for(config: ExperimentConfig, config_file: Path, admin_key: str, with_trainer: bool) -> Plan:
    """The plan of a launch on this machine."""
    redis_url = redis_server.external_url(config)
    env = {**os.environ, **ONE_THREAD, **WAIT_PASSIVELY, ADMIN_KEY_ENV: admin_key, "REDIS_URL": redis_url or redis_server.own_url(config)}
    waves = [tuple(service_spec(config, name, config_file, env) for name in wave if with_trainer or name != "trainer") for wave in WAVES]
    if redis_url is None:
        waves.insert(0, (redis_spec(config, env),))
    return Plan(setup_steps(config, config_file), tuple(wave for wave in waves if wave), env, paths.logs_dir(config))


def service_spec(config: ExperimentConfig, name: ServiceName, config_file: Path, env: Mapping[str, str]) -> ProcessSpec:
    """How one service is started and probed."""
    endpoint = config.services.endpoint(name)
    return ProcessSpec(
        name=name,
        command=(*_module(name), "--config", str(config_file)),
        env=env,
        log=paths.logs_dir(config) / f"{name}.log",
        probe=http_probe(endpoint.host, endpoint.port),
    )


def redis_spec(config: ExperimentConfig, env: Mapping[str, str]) -> ProcessSpec:
    """How the launch's own Redis is started and probed."""
    return ProcessSpec(
        name="redis",
        command=redis_server.command(config),
        env=env,
        log=paths.logs_dir(config) / "redis.log",
        probe=redis_probe(redis_server.HOST, config.services.trajectory_store.redis_port),
    )


def setup_steps(config: ExperimentConfig, config_file: Path) -> tuple[SetupStep, ...]:
    """The commands that make the initial policy, none where it is there or comes from ``actor.path``."""
    if config.actor.path or paths.initial_model_dir(config).exists():
        return ()
    corpus = str(paths.trial_dir(config) / "corpus.jsonl")
    shared = ("--config", str(config_file))
    limit = ("--limit", str(CORPUS_TASKS), "--seed", str(config.seed))
    return (
        SetupStep("corpus", (*_module("agent_runner"), "corpus", *shared, "--out", corpus, *limit)),
        SetupStep("model_init", (*_module("trainer"), "init", *shared, "--corpus", corpus)),
    )


def _module(name: str) -> tuple[str, ...]:
    # -P keeps the working directory off the import path: a folder called "services" there must not win.
    return (sys.executable, "-P", "-m", f"services.{name}")
