"""Fixtures of the proxy's tests: a small tokenizer with a ChatML template, a fake SGLang, a fake store, the real proxy over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from proxy_helpers import MakeProxy, ProxyUnderTest, make_model_folder, running_proxy
from real_store import running_store

from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.servers import watch


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
    with running_store(tmp_path) as url:
        yield url
