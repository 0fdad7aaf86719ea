"""Real servers in threads: uvicorn on a free port, stopped politely or killed with its connections."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn

from services.common.config import ExperimentConfig, to_yaml


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(check: Callable[[], Any], timeout_s: float = 10.0, what: str = "the condition") -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
        time.sleep(0.005)


class ServerThread:
    """An ASGI application behind uvicorn in a thread. ``build`` is called at each start."""

    def __init__(self, build: Callable[[], Any], port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._build = build
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        self._loop = asyncio.new_event_loop()
        config = uvicorn.Config(self._build(), host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what=f"the server on port {self.port}")
        return self

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve())

    def kill(self) -> None:
        """Connections are reset without an answer, and nobody listens any more."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._reset)
            self.stop()

    def _reset(self) -> None:
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def ask_to_stop(self) -> None:
        """Does not wait, so that several stop at the same time."""
        if self._thread is not None:
            self._server.should_exit = True

    def stop(self) -> None:
        if self._thread is not None:
            self.ask_to_stop()
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class ProxyProcess:
    """``python -m services.policy_proxy`` as a process of its own, to be killed with -9."""

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.url = config.services.url("policy_proxy")
        self._file = folder / "proxy.yaml"
        self._file.write_text(to_yaml(config))
        self._log = folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as out:
            command = [sys.executable, "-m", "services.policy_proxy", "--config", str(self._file)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
        wait_until(self._ready, 100, "the proxy process")

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None
