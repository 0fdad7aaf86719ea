"""A real SGLang server (and router) as processes of their own, on a CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

HERE = Path(__file__).parent
ON_CPU = HERE / "on_cpu"
BOOT_S = 600.0
"""One to two minutes on two busy cores, more at the first start, which compiles all of SGLang's modules."""
FLAGS = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--sampling-backend": "pytorch",
    "--grammar-backend": "llguidance",
    "--dtype": "float32",
    "--max-total-tokens": "16384",
    "--max-running-requests": "32",
    "--host": "127.0.0.1",
}
SWITCHES = ["--disable-overlap-schedule", "--disable-cuda-graph", "--skip-server-warmup", "--enable-metrics"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(check: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.05) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {timeout_s:g} s"
        time.sleep(every_s)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


class Process:
    """A command with its children in a process group of their own, and its output in a file."""

    def __init__(self, command: list[str], log: Path, ready_url: str, env: Mapping[str, str]) -> None:
        self.log = log
        self.boot_s = 0.0
        self._command, self._ready_url, self._env = command, ready_url, dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        started = time.monotonic()
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, env=os.environ | self._env, start_new_session=True)
        try:
            wait_until(self._ready, BOOT_S, f"{self._command[2]} (log: {self.log})", every_s=0.5)
        except BaseException:
            self.stop()
            raise
        self.boot_s = time.monotonic() - started
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self._command[2]} ended with {self._process.returncode}:\n{self.tail()}")
        return answers(self._ready_url)

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left of the group."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        self._signal(signal.SIGKILL)
        self._process.wait(15)
        self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def cpu_environment() -> dict[str, str]:
    """What the server's processes need: the import stub, one thread each, no look at any hub, compiled modules kept for the next start."""
    return {
        "PYTHONPATH": str(ON_CPU),
        "PYTHONDONTWRITEBYTECODE": "",
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


class SglangProcess(Process):
    """``python -m sglang.launch_server``. ``extra``: further command-line arguments."""

    def __init__(self, model: Path, log: Path, extra: list[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = ["--model-path", str(model), "--port", str(port), *(word for pair in FLAGS.items() for word in pair)]
        command = [sys.executable, "-m", "sglang.launch_server", *flags, *SWITCHES, *extra]
        super().__init__(command, log, f"{self.url}/ready", cpu_environment())


class RouterProcess(Process):
    """``python -m sglang_router.launch_router`` in front of ``workers``."""

    def __init__(self, workers: list[str], log: Path, extra: list[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = ["--worker-urls", *workers, "--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-m", "sglang_router.launch_router", *flags, "--prometheus-port", str(free_port()), *extra]
        super().__init__(command, log, f"{self.url}/health", {})
