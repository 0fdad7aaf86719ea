"""Comparison with the real SGLang server on a CPU. Collected only where SGLang is installed: see `make test-sglang` and docs/sglang.md."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from real_stack import MakeStack, Stack

collect_ignore_glob = [] if importlib.util.find_spec("sglang") else ["*.py"]

if not collect_ignore_glob:
    sys.path.insert(0, str(Path(__file__).parent / "on_cpu"))
    import gpu_package_stub

    gpu_package_stub.install()

RUNNING_URL = "SGLANG_URL"
"""Environment variable: a server that runs already, with the flags of `real_server` and the keys of `real_stack`; it is left running."""
FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session", autouse=True)
def _outer_settings() -> Iterator[None]:
    """The outer environment must not decide which keys, Redis or services these tests use."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REDIS_URL", "FRONTDESK_TRAJECTORY_STORE_URL", "FRONTDESK_POLICY_PROXY_URL", "FRONTDESK_POLICY_SERVER_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder: the policy that knows one conversation."""
    from real_models import make_taught

    folder = tmp_path_factory.mktemp("taught")
    return make_taught(folder / "taught", folder)


@pytest.fixture(scope="session")
def random_policies(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """HF folders: random policies that differ in their weights alone."""
    from real_models import make_random

    folder = tmp_path_factory.mktemp("random")
    return [make_random(folder / f"r{seed}", taught, seed) for seed in range(3)]


@pytest.fixture(scope="session")
def sglang(taught: Path, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, str]) -> Iterator[str]:
    """The URL of the server, which has a key, and another for its admin routes. One for all tests: it takes a minute to start."""
    from real_server import SglangProcess
    from real_stack import ADMIN_KEY, SERVER_KEY

    if url := os.environ.get(RUNNING_URL):
        yield url
        return
    log = tmp_path_factory.mktemp("sglang") / "server.log"
    with SglangProcess(taught, log, ["--api-key", SERVER_KEY, "--admin-api-key", ADMIN_KEY]) as server:
        figures["ready after"] = f"{server.boot_s:.0f} s"
        yield server.url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from real_stack import running_redis

    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def make_stack(sglang: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["MakeStack"]:
    """Starts store and proxy in front of the server; see `running_stack`.

    In the end every request that any of them has sent must have been one of SGLang's own.
    """
    from real_stack import ADMIN_KEY, SERVER_KEY, running_stack
    from sglang_requests import CLASSES, accepted

    from services.common.app import ADMIN_KEY_ENV
    from services.policy_proxy.servers.settings import SERVER_KEY_ENV

    monkeypatch.setenv(ADMIN_KEY_ENV, ADMIN_KEY)
    monkeypatch.setenv(SERVER_KEY_ENV, SERVER_KEY)
    started: list[Stack] = []
    with ExitStack() as stack:

        def make(model: Path, **settings: Any) -> "Stack":
            started.append(stack.enter_context(running_stack(model, sglang, tmp_path, redis_url, **settings)))
            return started[-1]

        yield make
    exchanges = [exchange for running in started for exchange in running.tap.exchanges]
    assert {exchange.path for exchange in exchanges} <= CLASSES.keys()
    for exchange in exchanges:
        # sglang-router adds "model": null to what it passes on.
        accepted(exchange.path, {name: value for name, value in exchange.body.items() if (name, value) != ("model", None)})


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> dict[str, str]:
    """What is shown under the test's summary."""
    return request.config.stash.setdefault(FIGURES, {})


@pytest.fixture
def figure(figures: dict[str, str]) -> Callable[[str, str], None]:
    """Adds a figure to the summary."""
    return figures.__setitem__


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says how long the server took to start, and what was measured."""
    for name, value in config.stash.get(FIGURES, {}).items():
        terminalreporter.write_line(f"sglang: {name}: {value}")
