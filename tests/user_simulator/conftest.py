"""Fixtures of the user simulator's tests: the stand-in for SGLang in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from user_fakes import FAKE_SGLANG, Json, free_port


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRONTDESK_ADMIN_KEY", "FRONTDESK_USER_SIMULATOR_URL", "FRONTDESK_USER_LLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Sglang:
    """The stand-in as a client sees it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.url}/v1"

    def control(self, mode: str, times: int = 10**9) -> None:
        httpx.post(f"{self.url}/control", json={"mode": mode, "times": times}, timeout=5).raise_for_status()

    def bodies(self) -> list[Json]:
        return httpx.get(f"{self.url}/bodies", timeout=5).json()


@pytest.fixture(scope="module")
def _process() -> Iterator[Sglang]:
    port = free_port()
    with subprocess.Popen([sys.executable, str(FAKE_SGLANG), str(port)], stdout=subprocess.DEVNULL) as process:
        server = Sglang(port)
        try:
            wait_until_up(server)
            yield server
        finally:
            process.kill()


@pytest.fixture
def sglang(_process: Sglang) -> Sglang:
    _process.control("ok")
    return _process


def wait_until_up(server: Sglang) -> None:
    give_up_at = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"{server.url}/health", timeout=1).raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < give_up_at, "the fake SGLang did not start"
            time.sleep(0.05)
