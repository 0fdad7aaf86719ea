"""What an episode costs the agent runner, beside upstream tau2-bench where it is installed.

    .venv/bin/python benchmarks/episodes.py --json FILE [--upstream-python PYTHON --upstream-data TAU2_DATA_DIR]

1. In process: a scripted episode of each domain with instant replies, environment, conversation and reward included; CPU time.
2. Over HTTP: the runner's `EpisodePlayer` in this process, a fake LLM (`fake_llm.py`, no model) in another that answers after 2 s, at
   1 to 2,048 episodes at once: CPU per turn, turns per second, efficiency (latency alone / time taken), memory per episode, event-loop lag.
3. With 200 ms, 8 and 64 at once, interleaved with upstream's batch runner (threads) on the same fake. A turn is one call of the policy.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop
from episode_scripts import Json, agent_script, user_reply

from services.agent_runner.conversation.messages import Message, ToolCall
from services.agent_runner.conversation.orchestrator import Tools, Trace, play
from services.agent_runner.conversation.protocol import Conversation
from services.agent_runner.domains import DomainBackend, TaskSpec, open_backend
from services.agent_runner.episodes.pacing import Pace, PacedClient
from services.agent_runner.episodes.player import EpisodePlayer
from services.agent_runner.proxy import ProxyClient
from services.agent_runner.reward.evaluator import Outcome, References, evaluate
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind, RolloutRequest, TaskRef

HERE = Path(__file__).parent
DOMAINS = ("airline", "retail", "telecom")
SPLIT = "base"
MAX_STEPS = 200
LATENCY_S = 2.0
CONCURRENCY = (1, 64, 512, 2048)


class ScriptedAgent:
    """Says its script, at once."""

    def __init__(self, script: list[Json]) -> None:
        self._script = iter(script)

    async def reply(self, history: object) -> Json:
        """The next line."""
        return next(self._script)


class ScriptedUser:
    """Answers what it hears, at once."""

    def __init__(self) -> None:
        self._ids = itertools.count()

    async def reply(self, history: Any) -> Message:
        """The next message of the user."""
        last = history[-1]
        said = user_reply({"role": last.role, "content": last.content}, "Hi, I need help.", next(self._ids))
        calls = tuple(
            ToolCall(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in said.get("tool_calls") or ()
        )
        return Message("user", said["content"], calls)


async def in_process(
    backend: DomainBackend, tasks: list[TaskSpec], scripts: list[list[Json]], references: References
) -> tuple[float, float]:
    """CPU milliseconds per episode and mean reward over all tasks, one after the other."""
    rewards: list[float] = []
    started = time.process_time()
    for task, script in zip(tasks, scripts, strict=True):
        session = backend.new_session(task, solo=False)
        conversation = Conversation(solo=False, max_steps=MAX_STEPS, max_errors=10)
        await play(conversation, ScriptedAgent(script), ScriptedUser(), Tools(session), Trace())
        rewards.append(evaluate(backend, task, Outcome.of(session, conversation.messages), references=references).reward)
    return (time.process_time() - started) * 1000 / len(tasks), statistics.mean(rewards)


@contextmanager
def fake_llm(latency_s: float, tasks: Path) -> Iterator[str]:
    """The fake in its own process; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "fake_llm.py"), "--port", str(port), "--latency", str(latency_s), "--tasks", str(tasks)]
    process = subprocess.Popen(command)
    try:
        _await_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"the fake does not listen on port {port}")


class LagMeter:
    """How late the event loop runs what is due: the lateness of a 50 ms timer, in milliseconds. A faster one would be a cost of its own."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = time.perf_counter() + 0.05
            await asyncio.sleep(0.05)
            self.late_ms.append((time.perf_counter() - due) * 1000)

    def p99(self) -> float:
        """The 99th percentile."""
        return sorted(self.late_ms)[int(len(self.late_ms) * 0.99)]


@asynccontextmanager
async def measured_lag() -> AsyncGenerator[LagMeter]:
    """A lag meter that runs meanwhile."""
    meter = LagMeter()
    task = asyncio.create_task(meter.run())
    try:
        yield meter
    finally:
        task.cancel()


def requests_for(count: int, round_number: int, sizes: dict[str, int], ids: dict[str, list[str]]) -> list[RolloutRequest]:
    """``count`` episodes, the domains in turn."""
    found: list[RolloutRequest] = []
    for number in range(count):
        domain = DOMAINS[number % len(DOMAINS)]
        index = (number // len(DOMAINS)) % sizes[domain]
        name = f"b-{domain}-{index}-{round_number}-{number}"
        task = TaskRef(domain=domain, split=SPLIT, task_id=ids[domain][index], solo_mode=False)
        found.append(RolloutRequest(episode_id=name, group_id=name, kind=Kind.EVAL, task=task, max_steps=MAX_STEPS))
    return found


async def over_http(config: ExperimentConfig, url: str, requests: list[RolloutRequest], latency_s: float) -> Json:
    """Plays all requests at once and says what it took."""
    gc.collect()
    rss = psutil.Process().memory_info().rss
    pace = Pace()
    proxy_http = PacedClient("policy_proxy", url, pace, timeout_s=120)
    users_http = PacedClient("user_simulator", url, pace, timeout_s=120)
    async with proxy_http, users_http, measured_lag() as lag:
        player = EpisodePlayer(config, ProxyClient(proxy_http, call_timeout_s=120), users_http)
        peak = asyncio.create_task(_peak_rss())
        started, cpu = time.perf_counter(), time.process_time()
        trajectories = await asyncio.gather(*(_admitted(player, request, number) for number, request in enumerate(requests)))
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        peak.cancel()
    failed = [trajectory.failure for trajectory in trajectories if trajectory.failure]
    if failed:
        raise RuntimeError(f"{len(failed)} episodes failed, the first: {failed[0]}")
    turns = sum(trajectory.n_turns for trajectory in trajectories)
    calls = [_model_calls(trajectory.messages) for trajectory in trajectories]
    ideal_s = sum(calls) * latency_s
    taken_s = sum(trajectory.timings.total_s for trajectory in trajectories)
    return {
        "episodes": len(requests),
        "turns": turns,
        "turns_per_s": round(turns / wall_s, 1),
        "episodes_per_s": round(len(requests) / wall_s, 2),
        "cpu_ms_per_turn": round(cpu_s * 1000 / turns, 3),
        "efficiency": round(ideal_s / taken_s, 4),
        "loop_lag_p99_ms": round(lag.p99(), 2),
        "rss_kb_per_episode": round((PEAK["rss"] - rss) / 1024 / len(requests), 1),
        "mean_reward": round(statistics.mean(trajectory.reward or 0.0 for trajectory in trajectories), 3),
    }


PEAK = {"rss": 0}


async def _peak_rss() -> None:
    PEAK["rss"] = 0
    while True:
        PEAK["rss"] = max(PEAK["rss"], psutil.Process().memory_info().rss)
        await asyncio.sleep(0.25)


async def _admitted(player: EpisodePlayer, request: RolloutRequest, number: int) -> Any:
    # As the worker admits a large lease: 2,048 episodes that begin in the same instant would only measure their own start.
    await asyncio.sleep(number * 0.001)
    return await player.play(request)


def _model_calls(messages: list[Json]) -> int:
    """Messages that a model was asked for: all of agent and user but the greeting."""
    return sum(message["role"] in ("assistant", "user") for message in messages) - 1


def load(domain: str) -> tuple[DomainBackend, list[TaskSpec]]:
    """The back end and the tasks that need no judge."""
    backend = open_backend(domain)
    tasks = [task for task in backend.tasks(SPLIT) if not ("NL_ASSERTION" in task.reward_basis and task.nl_assertions)]
    return backend, tasks


def measure_in_process(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """CPU milliseconds per episode and mean reward of each domain: medians of interleaved rounds, after one to warm up."""
    loaded = {domain: load(domain) for domain in DOMAINS}
    scripts = {domain: [agent_script(task.raw) for task in tasks] for domain, (_, tasks) in loaded.items()}
    cpu: dict[str, list[float]] = {domain: [] for domain in DOMAINS}
    rewards: dict[str, float] = {}
    references = References()
    for number in range(rounds + 1):
        for domain, (backend, tasks) in loaded.items():
            spent, rewards[domain] = uvloop.run(in_process(backend, tasks, scripts[domain], references))
            if number:
                cpu[domain].append(spent)
    return {domain: round(statistics.median(found), 3) for domain, found in cpu.items()}, rewards


def measure_http(config: ExperimentConfig, tasks_file: Path, ids: dict[str, list[str]], concurrency: list[int], latency_s: float) -> Json:
    """`over_http` at each concurrency, ours alone."""
    sizes = {domain: len(found) for domain, found in ids.items()}
    results: Json = {}
    with fake_llm(latency_s, tasks_file) as url:
        # The first episodes of a process parse schemas and prompts; the measured ones come after.
        uvloop.run(over_http(config, url, requests_for(6, 99, sizes, ids), latency_s))
        for number, count in enumerate(concurrency):
            results[str(count)] = uvloop.run(over_http(config, url, requests_for(count, number, sizes, ids), latency_s))
            print(f"{count} at once, {latency_s} s: {results[str(count)]}", flush=True)
    return results


def measure_upstream(python: str, tasks_file: Path, url: str, count: int) -> Json:
    """One round of upstream's batch runner on the same tasks, in its own process."""
    command = [python, str(HERE / "upstream_episodes.py"), "--url", url, "--tasks", str(tasks_file), "--concurrency", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode:
        raise RuntimeError(f"upstream's round failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def side_by_side(config: ExperimentConfig, arguments: argparse.Namespace, tasks_file: Path, ids: dict[str, list[str]]) -> Json:
    """8 and 64 at once with 200 ms, in interleaved rounds; medians."""
    sizes = {domain: len(found) for domain, found in ids.items()}
    rounds: dict[str, list[Json]] = {}
    with fake_llm(0.2, tasks_file) as url:
        for number in range(arguments.rounds):
            for count in (8, 64):
                ours = uvloop.run(over_http(config, url, requests_for(count, 100 + number, sizes, ids), 0.2))
                rounds.setdefault(f"frontdesk.{count}", []).append(ours)
                if arguments.upstream_python:
                    theirs = measure_upstream(arguments.upstream_python, tasks_file, url, count)
                    rounds.setdefault(f"upstream.{count}", []).append(theirs)
                    print(f"{count} at once, 0.2 s: ours {ours}\n   upstream {theirs}", flush=True)
    keys = ("episodes_per_s", "efficiency", "cpu_ms_per_turn")
    return {name: {key: statistics.median(run[key] for run in found) for key in keys} for name, found in rounds.items()}


def main() -> None:
    """Runs the benchmark and prints, and on request writes, its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="*", default=list(CONCURRENCY))
    parser.add_argument("--upstream-python", help="a Python with upstream tau2 installed; set TAU2_DATA_DIR to its data")
    arguments = parser.parse_args()
    # A runner holds one connection per waiting call.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    cpu, rewards = measure_in_process(arguments.rounds)
    print(f"CPU ms per episode in process: {cpu}; rewards {rewards}", flush=True)
    raw = {domain: [task.raw for task in load(domain)[1]] for domain in DOMAINS}
    ids = {domain: [task["id"] for task in tasks] for domain, tasks in raw.items()}
    config = ExperimentConfig.model_validate({"econfig": {"solo_mode": False, "retail_reward": "db"}})
    with tempfile.TemporaryDirectory() as folder:
        tasks_file = Path(folder) / "tasks.json"
        tasks_file.write_text(json.dumps(raw))
        http = measure_http(config, tasks_file, ids, arguments.concurrency, LATENCY_S)
        beside = side_by_side(config, arguments, tasks_file, ids)
    result: Json = {
        "cpu_ms_per_episode": cpu,
        "mean_reward": rewards,
        "http_2s": http,
        "http_200ms": beside,
        "efficiency_512": http.get("512", {}).get("efficiency"),
        "rss_kb_per_episode": http.get("2048", {}).get("rss_kb_per_episode"),
        "loop_lag_p99_ms_2048": http.get("2048", {}).get("loop_lag_p99_ms"),
        "upstream": {key.removeprefix("upstream."): value for key, value in beside.items() if key.startswith("upstream.")},
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
