"""The runner's app behind uvicorn between a fake store, a fake proxy and the real user simulator, with a client."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from runner_fakes import FakeProxy, FakeStore, Json, LiveApp, config_for

from services.agent_runner.app import create_app
from services.agent_runner.conversation.demonstrator import Demonstrator
from services.agent_runner.domains import TaskSpec


@dataclass(frozen=True)
class Stack:
    """The running app and everything around it."""

    app: FastAPI
    http: httpx.Client
    store: FakeStore
    proxy: FakeProxy

    def finished(self, episode_id: str) -> Json:
        """Waits for an episode's end."""
        wait_until(lambda: self.view(episode_id)["state"] == "finished")
        return self.view(episode_id)

    def view(self, episode_id: str) -> Json:
        return self.http.get(f"/v1/episodes/{episode_id}").json()

    def start(self, **body: Any) -> str:
        answer = self.http.post("/v1/episodes", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["episode_id"]

    def play(self, **body: Any) -> Json:
        """One whole episode's trajectory."""
        answer = self.http.post("/v1/episodes", params={"wait": "true"}, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, line: str) -> float:
        found = [row for row in self.http.get("/metrics").text.splitlines() if row.startswith(f"frontdesk_agent_runner_{line} ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


@contextmanager
def running_stack(
    store: FakeStore, store_url: str, proxy: FakeProxy, proxy_url: str, users_url: str, econfig: Json | None = None, **runner: float
) -> Iterator[Stack]:
    """The stack for as long as the block lasts."""
    app = create_app(config_for(store=store_url, proxy=proxy_url, users=users_url, econfig=econfig, **runner))
    one = LiveApp(app).start()
    try:
        with httpx.Client(base_url=one.url, timeout=30) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200, 60)
            yield Stack(app, http, store, proxy)
    finally:
        one.stop()


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Waits for a condition with a deadline."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        time.sleep(0.01)


def playing(task: TaskSpec, *, solo: bool = True) -> Callable[[str, object], Any]:
    """A policy that solves a task."""
    demonstrator = Demonstrator(task, "complete", 0, solo=solo)
    return lambda _sid, _body: demonstrator.next_message(None)
