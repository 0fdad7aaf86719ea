"""Fixtures of the trainer's tests."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from trainer_helpers import AppThread, RedisServer, World, tiny_model_folder

from services.common.config import ExperimentConfig
from services.trajectory_store.app import create_app as create_store

_trials = itertools.count()

# No deadline: a busy machine is not a slow function.
settings.register_profile("trainer", max_examples=40, deadline=None)
settings.load_profile("trainer")


@pytest.fixture(scope="session", autouse=True)
def _calm_process() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REDIS_URL", "FRONTDESK_ADMIN_KEY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny random policy."""
    return tiny_model_folder(tmp_path / "model")


@pytest.fixture
def make_config(tmp_path: Path, model_folder: Path) -> Callable[..., ExperimentConfig]:
    """An experiment that is small in every direction. ``sections`` are merged over it, one level deep."""

    def make(**sections: Any) -> ExperimentConfig:
        base: dict[str, Any] = {
            "experiment_name": "trainer-tests",
            "trial_name": f"t{next(_trials)}",
            "cluster": {"fileroot": str(tmp_path / "experiments")},
            "total_train_steps": 3,
            "gconfig": {"n_samples": 4},
            "rollout": {"max_head_offpolicyness": 1},
            "train_dataset": {"path": "telecom/small", "batch_size": 2},
            "valid_dataset": {"path": "telecom/small"},
            "evaluator": {"n_samples": 2},
            "econfig": {"solo_mode": True},
            "actor": {"path": str(model_folder), "max_tokens_per_mb": 512, "optimizer": {"lr": 1e-3}},
            "sft": {"n_demonstrations": 6, "steps": 4, "batch_size": 3, "warmup_steps": 1},
        }
        for name, value in sections.items():
            base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
        return ExperimentConfig.model_validate(base)

    return make


@pytest.fixture
def start_store(redis_url: str) -> Iterator[Callable[[ExperimentConfig], str]]:
    """Starts a real store for a config's trial and returns its URL."""
    running: list[AppThread] = []

    def start(config: ExperimentConfig) -> str:
        settings = config.services.trajectory_store.model_copy(update={"redis_url": redis_url, "retry_delay_s": 0.05})
        services = config.services.model_copy(update={"trajectory_store": settings})
        running.append(AppThread(create_store(config.model_copy(update={"services": services}))).__enter__())
        return running[-1].url

    yield start
    for thread in running:
        thread.__exit__(None, None, None)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def world_url(world: World) -> Iterator[str]:
    with AppThread(world.app) as server:
        yield server.url
