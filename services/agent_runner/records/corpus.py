"""Owns the text corpus of a domain: full conversations of demonstrations as JSON lines, for a tokenizer that is trained at set-up.

Plays in process, without any service. Tasks of the excluded split are left out, as in the warm start itself.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.agent_runner.conversation.demonstrator import Demonstrator, Quality
from services.agent_runner.conversation.messages import read_agent_message
from services.agent_runner.conversation.prompts import system_prompt
from services.agent_runner.domains import STOP_TOOL, DomainBackend, TaskSpec, open_backend
from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef

Json = dict[str, Any]


def write_corpus(config: ExperimentConfig, out: Path, *, limit: int, seed: int) -> int:
    """Writes up to ``limit`` lines of ``{"tools": […], "messages": […]}`` to ``out`` and returns how many. Raises like `conversations`."""
    with out.open("w", encoding="utf-8") as file:
        count = 0
        for record in conversations(config, limit=limit, seed=seed):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def conversations(config: ExperimentConfig, *, limit: int, seed: int) -> Iterator[Json]:
    """Demonstrations on ``sft.dataset`` without ``sft.exclude_split``: tasks drawn by ``seed``, qualities in the shares of ``sft.mix``.

    Of any length (``sft.max_actions`` limits what is imitated): a tokenizer needs all words.

    Raises `UnknownDomain` and `UnknownSplit` where there are no such tasks.
    """
    dataset = DatasetRef.parse(config.sft.dataset)
    backend = open_backend(dataset.domain, config.econfig.backend, retrieval=config.econfig.banking_retrieval)
    excluded = {task.task_id for task in backend.tasks(config.sft.exclude_split)}
    tasks = [task for task in backend.tasks(dataset.split) if task.task_id not in excluded]
    draw = random.Random(seed)
    draw.shuffle(tasks)
    mix: dict[Quality, float] = {
        "complete": config.sft.mix.complete,
        "gives_up": config.sft.mix.gives_up,
        "skips_step": config.sft.mix.skips_step,
    }
    for task in tasks[:limit]:
        quality = draw.choices(list(mix), list(mix.values()))[0]
        yield conversation(backend, task, quality, seed)


def conversation(backend: DomainBackend, task: TaskSpec, quality: Quality, seed: int) -> Json:
    """One solo demonstration in OpenAI form, the system message and the final ``done`` included."""
    session = backend.new_session(task, solo=True)
    demonstrator = Demonstrator(task, quality, seed)
    messages: list[Json] = [{"role": "system", "content": system_prompt(backend.policy(task, solo=True), task.ticket)}]
    result = None
    while True:
        said = demonstrator.next_message(result)
        messages.append(said)
        call = read_agent_message(said).tool_calls[0]
        if call.name == STOP_TOOL:
            return {"tools": backend.tool_schemas(task, solo=True), "messages": messages}
        result = session.call(call.name, call.arguments)
        messages.append({"role": "tool", "content": result.content, "tool_call_id": call.id})
