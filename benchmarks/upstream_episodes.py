"""One round of upstream tau2-bench's own batch runner against `fake_llm.py`, started by `episodes.py` under a Python that has upstream.

The episodes are those of our side: tasks of the domains in turn, its key in the user's persona, by which the fake finds a script.
"""

import argparse
import json
import time
from pathlib import Path

from tau2.data_model.simulation import TextRunConfig
from tau2.data_model.tasks import Task
from tau2.runner.batch import run_tasks

DOMAINS = ("airline", "retail", "telecom")
GREETING = 1


def keyed(domain: str, index: int, raw: dict) -> Task:
    """The task with ``[domain/index]`` in the user's persona."""
    scenario = raw["user_scenario"]
    persona = f"{scenario.get('persona') or ''} [{domain}/{index}]".strip()
    return Task.model_validate(raw | {"user_scenario": scenario | {"persona": persona}})


def run(domain: str, tasks: list[Task], url: str, concurrency: int) -> tuple[int, float]:
    """Policy calls made, and seconds that waiting for the models alone would have taken over all episodes."""
    args = {"api_base": f"{url}/v1", "api_key": "none"}
    config = TextRunConfig(
        domain=domain,
        agent="llm_agent",
        user="user_simulator",
        llm_agent="hosted_vllm/policy",
        llm_user="hosted_vllm/user",
        llm_args_agent=args,
        llm_args_user=args,
        num_trials=1,
        max_steps=200,
        max_concurrency=concurrency,
        max_retries=0,
        log_level="ERROR",
    )
    results = run_tasks(config, tasks, console_display=False)
    turns = calls = 0
    for simulation in results.simulations:
        roles = [message.role for message in simulation.messages]
        turns += roles.count("assistant") - GREETING
        calls += roles.count("assistant") + roles.count("user") - GREETING
    return turns, calls


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.2)
    arguments = parser.parse_args()
    raw = json.loads(arguments.tasks.read_text())
    chosen: dict[str, list[Task]] = {domain: [] for domain in DOMAINS}
    for number in range(arguments.concurrency):
        domain = DOMAINS[number % len(DOMAINS)]
        index = (number // len(DOMAINS)) % len(raw[domain])
        chosen[domain].append(keyed(domain, index, raw[domain][index]))
    # Upstream's runner takes one domain at a time, so the domains follow each other, each with as many threads as it has episodes.
    turns = 0
    wall_s = ideal_s = cpu_s = 0.0
    for domain, tasks in chosen.items():
        started, cpu = time.perf_counter(), time.process_time()
        made, calls = run(domain, tasks, arguments.url, len(tasks))
        wall_s += time.perf_counter() - started
        cpu_s += time.process_time() - cpu
        turns += made
        ideal_s += calls * arguments.latency / len(tasks)
    result = {
        "episodes_per_s": round(arguments.concurrency / wall_s, 3),
        "efficiency": round(ideal_s / wall_s, 4),
        "cpu_ms_per_turn": round(cpu_s * 1000 / turns, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
