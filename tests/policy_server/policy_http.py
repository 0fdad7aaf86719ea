"""Runs a policy server of its own over real HTTP."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from services.common.config import ExperimentConfig
from services.policy_server.app import create_app

START_DEADLINE_S = 30.0


@contextmanager
def serving(config: ExperimentConfig) -> Iterator[str]:
    """Runs the app of ``config`` in a thread; yields its base URL once it accepts connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(config), log_config=None, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_DEADLINE_S
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_DEADLINE_S)
            assert not thread.is_alive()


def make_config(model: Path, root: Path) -> ExperimentConfig:
    section = {"max_running_requests": 8, "kv_slots": 16, "max_tail_tokens": 512}
    return ExperimentConfig.model_validate(
        {"actor": {"path": str(model)}, "cluster": {"fileroot": str(root)}, "services": {"policy_server": section}}
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
