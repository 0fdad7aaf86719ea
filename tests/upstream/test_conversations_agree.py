"""The same scripted agent and user through upstream's orchestrator and evaluator and through ours: messages, chats, ends and rewards."""

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from ours import play_ours
from played import differences
from scripted import SCRIPTS, Setting
from theirs import Task, llm_agent, play

from services.agent_runner.domains import DomainBackend, TaskSpec, open_backend

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

BACKENDS = ("tau2", "inspect_evals")
SHOWN = 12
"""Mismatches that a failing test prints."""

CHEAP = 1
"""Every task plays every script."""
SELECTED: dict[str, tuple[Sequence[tuple[str, int]], int]] = {
    # domain: ((split, every nth task), every nth task plays a script other than the oracle)
    "airline": ([("base", 1)], 4),
    "retail": ([("base", 1)], 4),
    "telecom": ([("base", 1), ("full", 50)], 2),
    "telecom-workflow": ([("base", 12)], CHEAP),
    "banking_knowledge": ([("base", 4)], 4),
    "mock": ([("base", 1)], CHEAP),
}
SOLO = ("telecom", "telecom-workflow", "mock")


def backend(domain: str, name: str = "tau2") -> DomainBackend:
    return open_backend(domain, backend=name)


@cache
def selected(domain: str) -> tuple[TaskSpec, ...]:
    found: dict[str, TaskSpec] = {}
    for split, nth in SELECTED[domain][0]:
        found |= {task.task_id: task for task in list(backend(domain).tasks(split))[::nth]}
    return tuple(found.values())


@cache
def values(domain: str) -> dict[str, list[Any]]:
    """Argument name -> what reference actions of the domain have there."""
    found: dict[str, list[Any]] = {}
    for task in selected(domain):
        for action in task.actions:
            for name, value in action.arguments.items():
                known = found.setdefault(name, [])
                if value not in known and len(known) < 200:
                    known.append(value)
    return found


def played_by(domain: str, script: str, solo: bool) -> Iterator[tuple[TaskSpec, Setting]]:
    tau2 = backend(domain)
    nth = 1 if script == "oracle" else SELECTED[domain][1]
    for task in selected(domain)[list(SCRIPTS).index(script) % nth :: nth]:
        if solo and (task.ticket is None or not llm_agent.LLMSoloAgent.check_valid_task(Task.model_validate(task.raw))):
            continue
        seed = zlib.crc32(f"{domain} {task.task_id} {script} {solo}".encode())
        tools, user_tools = tau2.tool_schemas(task, solo=solo), tau2.user_tool_schemas(task)
        yield task, Setting(task, solo, tools, user_tools, values(domain), random.Random(seed))


CASES = [(domain, solo, script) for domain in SELECTED for solo in (False, True) for script in SCRIPTS if not solo or domain in SOLO]


@pytest.mark.parametrize(("domain", "solo", "script"), CASES, ids=lambda value: {True: "solo", False: "normal"}.get(value, value))
def test_conversations_and_rewards_agree(domain: str, solo: bool, script: str, record_property: Callable[[str, object], None]) -> None:
    problems: list[str] = []
    episodes = messages = end_states = 0
    raised: Counter[str] = Counter()
    tasks: list[str] = []
    for task, setting in played_by(domain, script, solo):
        line = SCRIPTS[script](setting)
        theirs = play(domain, task.raw, line, solo=solo)
        tasks.append(f"{domain}/{task.task_id}")
        if theirs.raised:
            raised[theirs.raised[:70]] += 1
        for name in BACKENDS:
            ours, _, _ = asyncio.run(play_ours(backend(domain, name), task, line, solo=solo))
            problems += [f"{domain}/{task.task_id} on {name}: {one}" for one in differences(theirs, ours)]
            episodes += 1
            messages += len(theirs.messages)
            end_states += theirs.end_state is not None
    counts = {
        "episodes": episodes,
        "messages": messages,
        "end_states": end_states,
        "mismatches": len(problems),
        "deviations": raised.total(),
    }
    for key, value in counts.items():
        record_property(key, value)
    record_property("raised", dict(raised))
    record_property("tasks", tasks)
    assert not problems, f"{len(problems)} mismatches in {episodes} episodes:\n" + "\n".join(problems[:SHOWN])
