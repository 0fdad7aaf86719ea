"""What a call costs in the policy proxy, side by side with other gateways. One command:

    python benchmarks/proxy.py --json FILE [--peers DIR] [--long CALLS]

``DIR`` holds a virtual environment of each peer under its name on PyPI (litellm, agentlightning, rllm-model-gateway, sglang-router;
docs/benchmarks.md says how to make them); those that are not there are named under ``skipped``.

Everyone stands in front of the same fake model server and gets the same conversations (`proxy_payload`): sessions of 16 calls, each call
extending the last. Rounds of the contenders alternate and each round starts each of them afresh, because the speed of a shared machine
moves and some only ever grow; medians of the rounds are reported. The contender with everything that belongs to it (ours: proxy, store and
Redis) has the CPUs of ``--cpus``, load generator and model server those of ``--load-cpus``. ``frontdesk_store_apart`` is ours with store
and Redis on the latter, as where they run on another machine.

- ``p50_ms_c1``, ``p99_ms_c1``, ``rps_c1``, and so on for 16 and 64 clients; ``added_p50_ms_c1``: over going there directly
- ``cpu_ms_c1``, …: CPU time of all processes of the contender per call, which what else runs on the machine disturbs least
- ``rss_mb_5k``: memory of all processes of the contender after 5,000 calls, ``rss_mb_5k_by_part`` of each
- ``rss_mb_long`` (``--long``): ours on the way to so many calls
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from proxy_contenders import PEERS, Direct, Frontdesk, Gateway
from proxy_load import Plan
from proxy_payload import OUTPUT_TOKENS, TURNS, Payload, make_payload
from store_load import free_port

HERE = Path(__file__).parent
CLIENTS = (1, 16, 64)
Figures = dict[str, Any]
Makers = dict[str, Callable[[], Gateway]]


class Bench:
    """The model server, the load generator and the options that they share."""

    def __init__(self, options: argparse.Namespace, folder: Path, payload: Payload, upstream: str) -> None:
        self._options, self._folder, self.payload, self.upstream = options, folder, payload, upstream
        self._loads = 0

    async def load(self, contender: Gateway, clients: int, **amount: Any) -> Figures:
        """One run of the load generator: its result, and the contender's CPU time per call, opening and closing included."""
        self._loads += 1
        plan: Plan = contender.plan(f"b{self._loads}", clients, **amount)
        file = self._folder / "plan.json"
        file.write_bytes(msgspec.json.encode(plan))
        command = [*_pinned(self._options.load_cpus), sys.executable, str(HERE / "proxy_load.py"), str(file)]
        cpu = contender.cpu_by_part()
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{contender.name} with {clients} clients:\n{err.decode()[-3000:]}")
        found: Figures = json.loads(out)
        calls = found.pop("calls_in_all")
        spent = {part: round((after - cpu[part]) * 1000 / calls, 3) for part, after in contender.cpu_by_part().items()}
        return {**found, "cpu_ms": round(sum(spent.values()), 3), "cpu_ms_by_part": spent}

    async def check(self, contender: Gateway) -> None:
        """One session, and whether it left what it should."""
        await self.load(contender, 1, calls=TURNS)
        await contender.verify(f"b{self._loads}-0")


@asynccontextmanager
async def model_server(folder: Path, payload: Payload, cpus: str) -> AsyncGenerator[str]:
    """The fake, in its own process; its URL."""
    (folder / "chat.json").write_bytes(payload.chat_reply)
    (folder / "generate.json").write_bytes(payload.generate_reply)
    port = free_port()
    command = [*_pinned(cpus), sys.executable, str(HERE / "proxy_upstream.py"), "--port", str(port), "--folder", str(folder)]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _listening(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _listening(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return
    raise TimeoutError(f"the model server does not listen on port {port}")


async def side_by_side(bench: Bench, makers: Makers, rounds: int, seconds: float) -> tuple[dict[str, Figures], list[Figures]]:
    """The figures of every contender, and every round as it was."""
    seen: list[Figures] = []
    for number in range(rounds):
        for name, make in makers.items():
            async with make() as contender:
                await bench.check(contender)
                for clients in CLIENTS:
                    load = os.getloadavg()[0]
                    found = await bench.load(contender, clients, seconds=seconds)
                    seen.append({"round": number, "contender": name, "clients": clients, "load_average": round(load, 2), **_rounded(found)})
                    print(seen[-1], flush=True)
    return {name: _medians([run for run in seen if run["contender"] == name]) for name in makers}, seen


def _medians(runs: list[Figures]) -> Figures:
    figures: Figures = {}
    for clients in CLIENTS:
        chosen = [run for run in runs if run["clients"] == clients]
        for key in ("p50_ms", "p99_ms", "rps", "cpu_ms"):
            figures[f"{key}_c{clients}"] = round(statistics.median(run[key] for run in chosen), 3)
    return figures


async def memory(bench: Bench, makers: Makers, calls: int) -> dict[str, Figures]:
    """Memory of each contender, before and after so many calls by 16 clients."""
    found: dict[str, Figures] = {}
    for name, make in makers.items():
        async with make() as contender:
            await bench.check(contender)
            before = contender.rss_by_part()
            await bench.load(contender, 16, calls=calls)
            after = contender.rss_by_part()
        found[name] = {
            "rss_mb_start": _total(before),
            "rss_mb_5k": _total(after),
            "rss_mb_5k_by_part": after,
        }
        print(name, found[name], flush=True)
    return found


def _total(by_part: dict[str, float]) -> float:
    return round(sum(by_part.values()), 1)


async def long_run(bench: Bench, make: Callable[[], Gateway], calls: int, steps: int = 10) -> list[Figures]:
    """Our memory on the way to ``calls`` calls."""
    course: list[Figures] = []
    async with make() as contender:
        await bench.check(contender)
        for step in range(steps):
            done = await bench.load(contender, 16, calls=calls // steps)
            figures = {"rps": round(done["rps"], 1), "cpu_ms_by_part": done["cpu_ms_by_part"], "rss_mb_by_part": contender.rss_by_part()}
            course.append({"calls": (step + 1) * (calls // steps), **figures})
            print(course[-1], flush=True)
    return course


def compared(result: dict[str, Figures]) -> Figures:
    """Ours beside each of the others."""
    direct = result["direct"]
    others = {name: figures for name, figures in result.items() if not name.startswith("frontdesk") and name != "direct"}

    def times(mine: Figures) -> Figures:
        return {
            name: {str(clients): round(mine[f"rps_c{clients}"] / figures[f"rps_c{clients}"], 1) for clients in CLIENTS}
            for name, figures in others.items()
        }

    return {
        "added_p50_ms_c1": {
            name: round(figures["p50_ms_c1"] - direct["p50_ms_c1"], 3) for name, figures in result.items() if name != "direct"
        },
        **{f"{name}_times_the_rps_of": times(figures) for name, figures in result.items() if name.startswith("frontdesk")},
    }


def find_peers(folder: Path | None, only: list[str]) -> tuple[dict[type[Gateway], Path], dict[str, str]]:
    """The Python of each peer, and why the others are left out."""
    found: dict[type[Gateway], Path] = {}
    skipped: dict[str, str] = {}
    for peer in PEERS:
        python = (folder or Path()) / peer.package / "bin" / "python"
        if only and peer.name not in only:
            skipped[peer.name] = "not asked for"
        elif folder is None:
            skipped[peer.name] = "no --peers given"
        elif not python.exists():
            skipped[peer.name] = f"no {peer.package}/bin/python in --peers"
        else:
            found[peer] = python.absolute()
    return found, skipped


def setup(options: argparse.Namespace, payload: Payload, peers: dict[type[Gateway], Path]) -> Figures:
    """Under which conditions the figures were taken."""
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "cpus_contender": options.cpus,
        "cpus_load": options.load_cpus,
        "load_average_at_start": os.getloadavg(),
        "note": options.note,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "calls_per_session": TURNS,
        "request_bytes_mean": payload.request_bytes,
        "reply_bytes": {"chat": len(payload.chat_reply), "generate": len(payload.generate_reply)},
        "output_tokens": OUTPUT_TOKENS,
        "durability": "ours: Redis appendonly, appendfsync everysec",
        "python": platform.python_version(),
        "peers": {peer.package: _version(python, peer.package) for peer, python in peers.items()},
    }


def _version(python: Path, package: str) -> str:
    code = f"import sys; from importlib.metadata import version; print(version({package!r}), 'on Python', sys.version.split()[0])"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _pinned(cpus: str) -> list[str]:
    return ["taskset", "-c", cpus] if cpus else []


def _rounded(found: Figures) -> Figures:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


async def measure(options: argparse.Namespace, folder: Path) -> Figures:
    payload = make_payload(folder / "model")
    peers, skipped = find_peers(options.peers, options.only)
    async with model_server(folder, payload, options.load_cpus) as upstream:
        bench = Bench(options, folder, payload, upstream)
        ours = partial(Frontdesk, upstream, payload, options.cpus, Path(sys.executable), model=folder / "model")
        makers: Makers = {"direct": partial(Direct, upstream, payload, options.cpus), "frontdesk": ours}
        if options.load_cpus != options.cpus:
            makers["frontdesk_store_apart"] = partial(ours, store_cpus=options.load_cpus)
        makers |= {peer.name: partial(peer, upstream, payload, options.cpus, python) for peer, python in peers.items()}
        conditions = setup(options, payload, peers)
        result, rounds = await side_by_side(bench, makers, options.rounds, options.seconds)
        comparison = compared(result)
        if options.calls:
            kept = {name: make for name, make in makers.items() if name not in ("direct", "frontdesk_store_apart")}
            sizes = await memory(bench, kept, options.calls)
            result = {name: figures | sizes.get(name, {}) for name, figures in result.items()}
        if options.long:
            result["frontdesk"]["rss_mb_long"] = await long_run(bench, ours, options.long)
    conditions["load_average_at_end"] = os.getloadavg()
    return {**result, "compared": comparison, "skipped": skipped, "setup": conditions, "rounds": rounds}


def main() -> None:
    """Runs the benchmark and prints, and on request writes, its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--peers", type=Path, help="folder with a virtual environment of each peer")
    parser.add_argument("--only", nargs="*", default=[], choices=[peer.name for peer in PEERS], help="these peers alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--calls", type=int, default=5_000, help="before memory is read; 0 = leave out")
    parser.add_argument("--long", type=int, default=0, metavar="CALLS", help="our memory over so many calls, such as 50000")
    several = (os.cpu_count() or 1) > 1
    parser.add_argument("--cpus", default="0" if several else "", help="of the contender, as taskset takes them")
    parser.add_argument("--load-cpus", default="1" if several else "", help="of load generator and model server")
    parser.add_argument("--note", default="", help="said in the result, such as that the machine was not calm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as folder:
        result = asyncio.run(measure(options, Path(folder)))
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
