"""Speed and size of the trajectory store, side by side with agentlightning. One command:

    python benchmarks/store.py --json result.json [--peer PYTHON] [--peer-03 PYTHON]

``--peer`` is the python of an environment with agentlightning 1.x, ``--peer-03`` one with 0.3 (both from PyPI); without them only this
project's store is measured. Rounds of the contenders alternate, because the speed of a shared machine moves; medians are reported.

- ``lifecycles_per_s.{1,16,64}``: enqueue, lease, heartbeat, put a 30-turn 20,000-token trajectory, lease it in a batch, ack, by so many
  clients over HTTP. Compare what sends the same in the same way: ``frontdesk`` with ``agentlightning_one_event`` (as a whole),
  ``frontdesk_call_by_call`` with ``agentlightning`` and ``agentlightning_0.3`` (call by call, as their own tracers do)
- ``server_ms_per_lifecycle``: CPU of the server's processes (store and Redis), at 16 clients
- ``bytes_per_trajectory``: what Redis holds for one, index included; ``bytes_individual_rows``: the same as AReaL's individual export
- ``rss_mb_20k``: memory of the service over 20,000 trajectories
- ``by_size``: with 1,000 to 100,000 trajectories stored: lifecycles per second, milliseconds of each operation, the audit

The peers keep everything in memory and lose it with the process; this project's store writes each step to an append-only file.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from store_load import CLIENTS, AgentLightning, AgentLightningOneEvent, Contender, Frontdesk, FrontdeskCallByCall, LightningStore
from store_payload import Payload

Figures = dict[str, Any]


async def rate(work: Callable[[str], Awaitable[None]], clients: int, seconds: float) -> float:
    """Calls of ``work`` per second by so many clients at once, each going on as soon as it is answered."""
    done = 0
    end = time.perf_counter() + seconds

    async def client(name: str) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await work(name)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(client(f"w{number}") for number in range(clients)))
    return done / (time.perf_counter() - started)


async def fill(store: Frontdesk, count: int, clients: int = 16) -> None:
    """Stores so many whole trajectories."""
    left = count

    async def client(name: str) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await store.lifecycle(name)

    await asyncio.gather(*(client(f"f{number}") for number in range(clients)))


async def side_by_side(makers: dict[str, Callable[[], Contender]], rounds: int, seconds: float) -> Figures:
    """lifecycles_per_s of every contender; each round starts each contender afresh, because some only ever grow."""
    found: dict[str, dict[int, list[float]]] = {name: {clients: [] for clients in CLIENTS} for name in makers}
    burnt: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            async with make() as contender:
                await contender.lifecycle("warm")
                for clients in contender.clients:
                    before, started = contender.cpu_s(), time.perf_counter()
                    speed = await rate(contender.lifecycle, clients, seconds)
                    found[name][clients].append(speed)
                    if clients == min(16, max(contender.clients)):
                        burnt[name].append((contender.cpu_s() - before) / (speed * (time.perf_counter() - started)) * 1000)
    return {
        name: {
            "lifecycles_per_s": {str(clients): round(statistics.median(rates), 2) for clients, rates in by_clients.items() if rates},
            "server_ms_per_lifecycle": round(statistics.median(burnt[name]), 2),
        }
        for name, by_clients in found.items()
    }


async def sizes(payload: Payload, count: int) -> Figures:
    """Bytes of one trajectory, and the memory of the service on the way to ``count`` of them."""
    async with Frontdesk(payload) as store:
        await fill(store, 100)
        before, rss = store.stored_bytes(), [round(store.rss_mb(), 1)]
        for _ in range(10):
            await fill(store, count // 10)
            rss.append(round(store.rss_mb(), 1))
        after = store.stored_bytes()
    return {
        "bytes_per_trajectory": round((after - before) / (count // 10 * 10)),
        "bytes_individual_rows": payload.individual_rows_bytes(),
        "tokens": payload.n_tokens,
        "rss_mb_20k": rss[-1],
        "rss_mb_course": rss,
    }


async def by_size(payload: Payload, stops: list[int], seconds: float) -> Figures:
    """What things cost with so many trajectories stored. They have no content, because that of 100,000 would fill a laptop."""
    found: Figures = {}
    async with Frontdesk(payload) as store:
        stored = 0
        for stop in stops:
            await store.fill(stop - stored)
            stored = stop
            store.times.clear()
            alone = await rate(store.lifecycle, 1, seconds)
            costs = {what: round(statistics.median(times) * 1000, 2) for what, times in store.times.items()}
            together = await rate(store.lifecycle, 16, seconds)
            found[str(stop)] = {"lifecycles_per_s": {"1": round(alone, 2), "16": round(together, 2)}, "ms": costs, **await store.audit()}
    return found


async def measure(options: argparse.Namespace) -> Figures:
    payload = Payload()
    makers: dict[str, Callable[[], Contender]] = {
        "frontdesk": lambda: Frontdesk(payload, options.fsync),
        "frontdesk_call_by_call": lambda: FrontdeskCallByCall(payload, options.fsync),
    }
    if options.peer:
        makers["agentlightning"] = lambda: AgentLightning(payload, options.peer)
        makers["agentlightning_one_event"] = lambda: AgentLightningOneEvent(payload, options.peer)
    if options.peer_03:
        makers["agentlightning_0.3"] = lambda: LightningStore(payload, options.peer_03)
    result = await side_by_side(makers, options.rounds, options.seconds)
    if options.trajectories:
        result["frontdesk"] |= await sizes(payload, options.trajectories)
    if options.by_size:
        result["frontdesk"]["by_size"] = await by_size(payload, options.by_size, options.seconds)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--peer", type=Path, help="python with agentlightning 1.x")
    parser.add_argument("--peer-03", type=Path, help="python with agentlightning 0.3")
    parser.add_argument("--fsync", default="everysec", choices=["always", "everysec"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--trajectories", type=int, default=20_000, help="for the sizes; 0 = leave out")
    parser.add_argument("--by-size", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="trajectories stored; none = leave out")
    result = asyncio.run(measure(parser.parse_args()))
    text = json.dumps(result, indent=2)
    print(text)
    if path := parser.parse_args().json:
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
