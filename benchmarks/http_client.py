"""CPU per request of the HTTP client between services (`services.common.http`) beside aiohttp and httpx, same server, same body.

    .venv/bin/python benchmarks/http_client.py --json FILE

The body is the size of a policy call: 30 kB of JSON out, 2 kB back. Medians of interleaved rounds, 16 requests in flight.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
import orjson
import uvicorn

from services.common.http import ServiceClient

REQUEST = {"messages": [{"role": "user", "content": "x" * 30_000}]}
ANSWER = json.dumps({"content": "y" * 2_000}).encode()
IN_FLIGHT = 16

Send = Callable[[], Awaitable[object]]


async def answer(scope: dict, receive: Callable, send: Callable) -> None:
    """A raw ASGI app, so that the server costs as little as possible."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": ANSWER})


def serve(port: int) -> None:
    """Runs the server process."""
    uvicorn.run(answer, host="127.0.0.1", port=port, log_level="error", lifespan="off")


async def cpu_ms_per_request(send: Send, requests: int) -> float:
    """Process CPU time of the client side, per request."""
    await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))

    async def worker() -> None:
        for _ in range(requests // IN_FLIGHT):
            await send()

    started = time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return (time.process_time() - started) * 1000 / (requests // IN_FLIGHT * IN_FLIGHT)


async def measure(url: str, rounds: int, requests: int) -> dict[str, float]:
    """Interleaved rounds, median of each contender."""
    results: dict[str, list[float]] = {"ours": [], "aiohttp": [], "httpx": []}
    pool = aiohttp.TCPConnector(limit=0)
    async with (
        ServiceClient("server", url) as ours,
        aiohttp.ClientSession(connector=pool) as theirs,
        httpx.AsyncClient(base_url=url) as third,
    ):

        async def through_aiohttp() -> None:
            timeout, headers = aiohttp.ClientTimeout(total=30), {"Content-Type": "application/json"}
            async with theirs.post(url + "/", data=orjson.dumps(REQUEST), headers=headers, timeout=timeout) as reply:
                orjson.loads(await reply.read())

        for _ in range(rounds):
            results["ours"].append(await cpu_ms_per_request(lambda: ours.post("/", REQUEST), requests))
            results["aiohttp"].append(await cpu_ms_per_request(through_aiohttp, requests))
            results["httpx"].append(await cpu_ms_per_request(lambda: third.post("/", json=REQUEST), requests))
    return {name: round(statistics.median(values), 3) for name, values in results.items()}


def main() -> None:
    """Runs the benchmark and prints, and on request writes, its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=800)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(1.5)
    result = {"cpu_ms_per_request": asyncio.run(measure(f"http://127.0.0.1:{port}", arguments.rounds, arguments.requests))}
    server.terminate()
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
