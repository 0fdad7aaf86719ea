"""The Compose file is valid, asks for its secret, and starts every service with an address, a health check and no privilege."""

import os
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from services.common.config import ServiceName, load_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "docker-compose.yml"
CONFIG = ROOT / "configs" / "smoke_cpu.yaml"
SERVICES = [name.replace("_", "-") for name in get_args(ServiceName)]


def run(compose: list[str], *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FRONTDESK_")}
    command = [*compose, "-f", str(FILE), "--profile", "cpu", *arguments]
    return subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def resolved(compose: list[str]) -> dict[str, Any]:
    result = run(compose, "config", FRONTDESK_ADMIN_KEY="k" * 32, FRONTDESK_CONFIG=str(CONFIG))
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)["services"]


def test_file_is_valid(compose: list[str]) -> None:
    result = run(compose, "config", "-q", FRONTDESK_ADMIN_KEY="k" * 32)
    assert (result.returncode, result.stderr) == (0, "")


def test_admin_key_is_required(compose: list[str]) -> None:
    result = run(compose, "config", "-q")
    assert result.returncode != 0 and "FRONTDESK_ADMIN_KEY" in result.stderr


def test_every_service_is_there(resolved: dict[str, Any]) -> None:
    assert resolved.keys() == {*SERVICES, "redis", "corpus", "model"}


@pytest.mark.parametrize("name", SERVICES)
def test_service_listens_where_the_others_look_for_it(resolved: dict[str, Any], name: str) -> None:
    service = resolved[name]
    port = next(word.removeprefix("--port=") for word in service["command"] if word.startswith("--port="))
    module = name.replace("-", "_")
    assert service["command"][0] == f"services.{module}"
    for other in SERVICES:
        assert resolved[other]["environment"][f"FRONTDESK_{module.upper()}_URL"] == f"http://{name}:{port}"
    assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
    assert {item["host_ip"] for item in service["ports"]} == {"127.0.0.1"}
    assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", [*SERVICES, "corpus", "model"])
def test_overrides_on_the_command_line_load(resolved: dict[str, Any], name: str) -> None:
    overrides = [word for word in resolved[name]["command"] if "=" in word and not word.startswith("--")]
    assert load_config(CONFIG, overrides).cluster.fileroot == "/var/lib/frontdesk"


def test_image_runs_without_root() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    assert "USER frontdesk" in lines and lines.index("USER frontdesk") > max(i for i, line in enumerate(lines) if line.startswith("FROM"))
