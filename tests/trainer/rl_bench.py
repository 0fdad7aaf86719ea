"""A trainer's RL loop on the real store, built the way a process builds it at its start, so that tests can crash it anywhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trainer_helpers import Player, World

from services.common.config import ExperimentConfig
from services.common.config.paths import checkpoints_dir, initial_model_dir, trial_dir
from services.trainer.engine import ComputeThread, open_engine
from services.trainer.feeder import Feeder
from services.trainer.mixing import TaskMix
from services.trainer.phases import Phase
from services.trainer.proxy_client import ProxyClient
from services.trainer.publisher import Publisher
from services.trainer.recorder import Recorder
from services.trainer.rl import RlLoop, RlParts
from services.trainer.runner_client import RunnerClient
from services.trainer.state import Checkpoints, State
from services.trainer.store_client import StoreClient


@dataclass
class Process:
    """What one life of the trainer holds in memory."""

    loop: RlLoop
    parts: RlParts
    state: State
    recorder: Recorder


async def _nothing() -> None:
    return None


@asynccontextmanager
async def trainer_process(config: ExperimentConfig, store_url: str, world_url: str) -> AsyncIterator[Process]:
    """A start of the trainer in the RL phase: from the state on disk, or from the initial model."""
    async with StoreClient(store_url, retry_s=5) as store, ProxyClient(world_url, retry_s=5) as proxy, RunnerClient(world_url) as runner:
        with ComputeThread() as compute:
            checkpoints = Checkpoints(checkpoints_dir(config), config.saver.keep)
            state = checkpoints.load() or State(phase=Phase.RL)
            engine = open_engine(initial_model_dir(config), config.actor, config.actor.optimizer, config.total_train_steps)
            if state.engine:
                checkpoints.restore_engine(engine, state.engine)
            recorder = Recorder(trial_dir(config) / "metrics.jsonl", store)
            parts = RlParts(config, store, Publisher(config, store, proxy, compute), checkpoints, recorder, compute)
            shares = config.train_dataset.shares()
            mix = TaskMix([await runner.tasks(ref, solo=config.econfig.solo_mode) for ref in shares], shares, config.seed)
            feeder = Feeder(config, store, mix, state)
            yield Process(RlLoop(parts, engine, feeder, state, _nothing), parts, state, recorder)


@asynccontextmanager
async def playing(store_url: str, world: World, config: ExperimentConfig) -> AsyncIterator[Player]:
    """A player at work. Its failure is the test's."""
    player = Player(store_url, world, config)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(player.run())
        yield player
        task.cancel()
