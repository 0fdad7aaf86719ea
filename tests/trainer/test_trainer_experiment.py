"""A whole experiment against the real store: warm start, evaluation, PPO steps, evaluation, results."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from trainer_helpers import Player, World

from services.common.config import ExperimentConfig
from services.common.config.paths import results_file
from services.trainer.engine import ComputeThread, open_engine
from services.trainer.experiment import Clients, Experiment
from services.trainer.phases import Phase
from services.trainer.proxy_client import ProxyClient
from services.trainer.runner_client import RunnerClient
from services.trainer.store_client import StoreClient


@asynccontextmanager
async def opened(config: ExperimentConfig, store_url: str, world_url: str) -> AsyncIterator[Experiment]:
    async with (
        StoreClient(store_url, retry_s=5) as store,
        ProxyClient(world_url, retry_s=5) as proxy,
        RunnerClient(world_url) as runner,
    ):
        with ComputeThread() as compute:
            yield Experiment(config, Clients(store, proxy, runner), compute, open_engine)


async def test_an_experiment_runs_through_all_phases_and_accounts_for_every_trajectory(
    make_config: Callable[..., ExperimentConfig], start_store: Callable[[ExperimentConfig], str], world: World, world_url: str
) -> None:
    config = make_config(sft={"enabled": True})
    store_url = start_store(config)
    player = asyncio.create_task(Player(store_url, world, config).run())
    async with opened(config, store_url, world_url) as experiment:
        await asyncio.wait_for(experiment.run(), 60)
        assert experiment.view.phase is Phase.DONE, experiment.view.detail
    player.cancel()
    await asyncio.gather(player, return_exceptions=True)
    found = json.loads(results_file(config).read_text())
    print(json.dumps(found, indent=1))
    assert found["ppo_steps"] == 3
