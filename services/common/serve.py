"""Owns the command line that every service shares: ``python -m services.<name> --config FILE [key.path=value …]``."""

import argparse
import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from services.common import logs
from services.common.app import ADMIN_KEY_ENV, WEAK_KEYS, admin_key
from services.common.config import ConfigError, ExperimentConfig, ServiceName, load_config, to_yaml

BuildApp = Callable[[ExperimentConfig], FastAPI]

STARTUP_FAILED = 3
"""The exit status of uvicorn's own command."""
GARBAGE_AFTER = 20_000
"""New containers before the cyclic collector looks. Parsing one answer of a policy server makes thousands, none of them in a cycle."""


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, overrides and ``--dry-run``."""
    parser.add_argument("--config", type=Path, required=True, help="experiment YAML")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def config_from(arguments: argparse.Namespace) -> ExperimentConfig:
    """Loads the config the arguments name; exits with status 2 and one clear line where it is wrong."""
    try:
        return load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        sys.exit(f"config error: {error}")


def serve(name: ServiceName, build: BuildApp) -> None:
    """Runs one service until it is told to stop."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}")
    config_arguments(parser)
    parser.add_argument("--host", help="address to bind, instead of services.<name>.host")
    parser.add_argument("--port", type=int, help="port to bind, instead of services.<name>.port")
    arguments = parser.parse_args()
    config = config_from(arguments)
    if arguments.dry_run:
        sys.stdout.write(to_yaml(config))
        return
    endpoint = config.services.endpoint(name)
    host, port = arguments.host or endpoint.host, arguments.port or endpoint.port
    refuse_weak_key(host)
    logs.configure(name, config.log_level)
    app = build(config)
    # What is there now stays, so the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER)
    _let_others_finish()
    options = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,
    )
    server = _Server(options, app)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)


class _Server(uvicorn.Server):
    """Says to the application that it is to stop, before it waits for requests to end."""

    def __init__(self, options: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(options)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        self._app.state.stopping.begin()
        await super().shutdown(sockets)


def _let_others_finish() -> None:
    """A service that is woken takes its turn instead of interrupting another: what comes in until then is handled together.

    Where services share cores this saves a sixth of the CPU of a call (docs/benchmarks.md); where each has its own it changes nothing.
    """
    if sys.platform == "linux":
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def refuse_weak_key(host: str) -> None:
    """Exits where a non-loopback address would be served with a default or empty admin key."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and (admin_key() in WEAK_KEYS or len(admin_key()) < 16):
        sys.exit(f"refusing to bind {host}: set ${ADMIN_KEY_ENV} to a secret of at least 16 characters, or bind 127.0.0.1")
