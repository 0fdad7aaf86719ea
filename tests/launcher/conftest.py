"""Free ports, configs on them, and stand-in processes."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.config import ExperimentConfig, load_config
from services.launcher.probes import http_probe
from services.launcher.process import ProcessSpec

STANDIN = Path(__file__).with_name("standin_bare.py")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    names = ("trajectory_store", "policy_server", "policy_proxy", "user_simulator", "agent_runner", "trainer")
    *ports, redis = free_ports(len(names) + 1)
    return [
        f"cluster.fileroot={tmp_path / 'runs'}",
        *(f"services.{name}.port={port}" for name, port in zip(names, ports, strict=True)),
        f"services.trajectory_store.redis_port={redis}",
    ]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.yaml"
    file.write_text("experiment_name: e\ntrial_name: t\n")
    return file


@pytest.fixture
def config(config_file: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    monkeypatch.delenv("REDIS_URL", raising=False)
    return load_config(config_file, overrides)


@pytest.fixture
def standin_spec(tmp_path: Path, free_port: int) -> Callable[..., ProcessSpec]:
    """A spec of a stand-in service on a free port."""

    def make(**changes: float) -> ProcessSpec:
        command = (sys.executable, str(STANDIN), str(free_port))
        return ProcessSpec("policy_server", command, {}, tmp_path / "standin.log", http_probe("127.0.0.1", free_port), **changes)

    return make
