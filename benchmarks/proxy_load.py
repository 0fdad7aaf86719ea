"""The load generator of the proxy benchmark, a process of its own: so many clients, each in its own sessions, each waiting for its answer.

    python benchmarks/proxy_load.py PLAN

``PLAN`` is a JSON file, see `Plan`; the result is one JSON line, see `Load.result`. A client opens a session, makes the calls of the
conversation one after the other, closes the session, and begins again. A call's latency is its own; opening and closing cost time too and
so lower the calls per second.
"""

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson
import uvloop

SESSION = "SESSION"
"""Stands in paths and bodies where the session's id belongs."""
DEADLINE_S = 120.0


class Step(msgspec.Struct, frozen=True):
    """A request around the calls. Where the answer to the first has an ``api_key``, that is the bearer token of the session."""

    method: str
    path: str
    body: dict[str, Any] | list[Any] = {}


class Plan(msgspec.Struct, frozen=True):
    """What to do. ``calls`` (if not 0) ends the load instead of ``warm_s`` and ``seconds``; sessions that have begun are then finished."""

    base: str
    path: str
    """Of a call."""
    requests: list[dict[str, Any]]
    """Bodies of the calls of one session."""
    prefix: str
    """Of session ids, so that no two loads share one."""
    clients: int
    seconds: float = 5.0
    warm_s: float = 1.0
    calls: int = 0
    opening: list[Step] = []
    closing: list[Step] = []
    key: str = "none"
    """Bearer token where no opening hands one out."""


class Load:
    """Runs a plan."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._http = http
        self._bodies = [orjson.dumps(request) for request in plan.requests]
        self._numbers = itertools.count()
        self._ended: list[tuple[float, float]] = []
        """(moment, latency in s) of every call."""
        self._from = self._until = 0.0

    async def run(self) -> dict[str, float]:
        """The result."""
        begun = time.perf_counter()
        plan = self._plan
        self._from = begun + (0.0 if plan.calls else plan.warm_s)
        self._until = begun + 3600.0 if plan.calls else self._from + plan.seconds
        async with asyncio.TaskGroup() as clients:
            for _ in range(plan.clients):
                clients.create_task(self._client())
        return self.result(self._until if not plan.calls else time.perf_counter())

    def result(self, until: float) -> dict[str, float]:
        """Calls per second and latencies of the calls that ended in the measured time."""
        counted = sorted(latency for moment, latency in self._ended if self._from <= moment <= until)
        if not counted:
            raise RuntimeError("no call ended in the measured time; measure for longer")
        return {
            "calls": len(counted),
            "calls_in_all": len(self._ended),
            "rps": len(counted) / (until - self._from),
            "p50_ms": counted[len(counted) // 2] * 1000,
            "p99_ms": counted[int(len(counted) * 0.99)] * 1000,
        }

    def _over(self) -> bool:
        return time.perf_counter() > self._until or 0 < self._plan.calls <= len(self._ended)

    async def _client(self) -> None:
        while not self._over():
            session = f"{self._plan.prefix}-{next(self._numbers)}"
            key = self._plan.key
            for step in self._plan.opening:
                answer: Any = orjson.loads(await self._send(step, session) or b"null")
                key = answer["api_key"] if isinstance(answer, dict) and "api_key" in answer else key
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            path = self._plan.path.replace(SESSION, session)
            for body in self._bodies:
                started = time.perf_counter()
                await self._request("POST", path, body, headers)
                ended = time.perf_counter()
                self._ended.append((ended, ended - started))
                if not self._plan.calls and self._over():
                    return
            for step in self._plan.closing:
                await self._send(step, session)

    async def _send(self, step: Step, session: str) -> bytes:
        body = orjson.dumps(step.body).replace(SESSION.encode(), session.encode())
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._plan.key}"}
        return await self._request(step.method, step.path.replace(SESSION, session), body, headers)

    async def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        async with self._http.request(method, self._plan.base + path, data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
            return content


async def run(plan: Plan) -> dict[str, float]:
    """Runs a plan in this process."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        return await Load(plan, http).run()


def main() -> None:
    """Runs the plan and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    print(json.dumps(uvloop.run(run(msgspec.json.decode(parser.parse_args().plan.read_bytes(), type=Plan)))))


if __name__ == "__main__":
    main()
