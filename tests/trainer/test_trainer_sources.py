"""One run has one source of episodes a domain, across restarts; what the trainer refuses stays in the store."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rl_bench import playing, trainer_process
from trainer_helpers import World, task_set

from services.common.config import ExperimentConfig
from services.trainer.checks import ExperimentFailed
from services.trainer.sampler import Task, TaskSet
from services.trainer.sources import admit_sources, admit_tasks
from services.trainer.state import State

MakeConfig = Callable[..., ExperimentConfig]
StartStore = Callable[[ExperimentConfig], str]
OURS, OTHER = "inspect-evals 0.26.0", "tau2 1.0.0"


def test_the_first_source_of_each_domain_is_kept_and_a_second_one_refused() -> None:
    state = State()
    admit_sources(state, [("telecom", OURS), None, ("telecom", OURS)], "batch b1")
    admit_sources(state, [("airline", OTHER)], "batch b2")
    assert state.sources == {"telecom": OURS, "airline": OTHER}
    with pytest.raises(ExperimentFailed, match=f"batch b3: telecom .*{OTHER}.*{OURS}.*nothing is lost: begin a new trial_name"):
        admit_sources(state, [("telecom", OTHER)], "batch b3")


def test_two_sources_in_one_batch_are_refused_too() -> None:
    with pytest.raises(ExperimentFailed, match="not comparable"):
        admit_sources(State(), [("telecom", OURS), ("telecom", OTHER)], "evaluation before")


def test_tasks_that_changed_since_the_run_began_are_refused() -> None:
    state, given = State(), task_set("telecom/small", 3)
    admit_tasks(state, given)
    admit_tasks(state, task_set("telecom/small", 3))
    admit_tasks(state, task_set("telecom/train", 5))
    edited = TaskSet(given.ref, [*given.tasks[:2], Task(given.tasks[2].task_id, True, "", "another")])
    for changed in (edited, task_set("telecom/small", 4)):
        with pytest.raises(ExperimentFailed, match="dataset telecom/small"):
            admit_tasks(state, changed)


def counts(store_url: str) -> dict[str, Any]:
    audit = httpx.get(f"{store_url}/v1/audit").json()
    assert audit["balanced"], audit
    return httpx.get(f"{store_url}/v1/stats").json()["kinds"]["train"]


async def test_a_resume_on_another_back_end_is_refused_and_goes_on_once_the_first_is_back(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=3, dynamic_filter=None, rollout={"max_head_offpolicyness": 0})
    store_url = start_store(config)
    async with playing(store_url, world, config) as player:
        player.source = lambda request: OURS if request.group_id.endswith(("00000", "00001")) else OTHER
        async with trainer_process(config, store_url, world_url) as process:
            with pytest.raises(ExperimentFailed, match=f"batch .*{OTHER}.*{OURS}.*recover.other_source=drop"):
                await asyncio.wait_for(process.loop.run(), 60)
        async with trainer_process(config, store_url, world_url) as process:
            assert process.state.sources == {"telecom": OURS} and process.state.step == 1
            with pytest.raises(ExperimentFailed, match=OTHER):
                await asyncio.wait_for(process.loop.run(), 60)
        refused = counts(store_url)
        assert (refused["trained"], refused["dropped"], refused["leased"], refused["lost"]) == (8, 0, 8, 0)
        player.source = lambda request: OURS
        back = config.model_copy(update={"recover": config.recover.model_copy(update={"other_source": "drop"})})
        async with trainer_process(back, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 60)
    final = counts(store_url)
    assert (final["trained"], final["drops"], final["lost"]) == (24, {"other_source": 8}, 0), final
