"""Importing one service never imports another, nor what only another needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("agent_runner", "policy_proxy", "policy_server", "user_simulator", "trajectory_store", "trainer", "launcher")
HEAVY = {
    "agent_runner": {"torch", "transformers", "redis"},
    "policy_proxy": {"torch", "transformers", "redis", "inspect_evals"},
    "policy_server": {"transformers", "redis", "inspect_evals"},
    "user_simulator": {"torch", "transformers", "redis", "inspect_evals"},
    "trajectory_store": {"torch", "transformers", "inspect_evals"},
    "trainer": {"transformers", "redis", "inspect_evals"},
    "launcher": {"torch", "transformers", "inspect_evals"},
}
ENTRY = {name: "services.launcher.cli" if name == "launcher" else f"services.{name}.app" for name in SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_imports_neither_another_service_nor_its_packages(name: str) -> None:
    code = f"import sys, {ENTRY[name]}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    modules = set(done.stdout.split())
    others = {module for module in modules for other in SERVICES if other != name and module.startswith(f"services.{other}")}
    assert not others
    assert not modules & HEAVY[name]
