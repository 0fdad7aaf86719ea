"""Owns the seam between the experiment and what computes: the `Engine` protocol, opening an engine by name, the one thread it runs in.

The experiment above this module never imports torch. Refuses back ends that this build does not have, by name.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.common.config.experiment import ActorConfig, OptimizerConfig
from services.common.wire.calls import Row
from services.trainer.thinning import Thinning

Float32 = NDArray[np.float32]
T = TypeVar("T")

BACKENDS = ("torch",)


class Engine(Protocol):
    """The policy and its optimizer. One caller at a time."""

    steps_done: int
    """Optimizer steps so far."""

    def logp(self, rows: Sequence[Row], temperature: float = 1.0) -> list[Float32]:
        """Log-probability of each generated token under the current weights, one array [n_output] a row."""
        ...

    def sft_step(self, rows: Sequence[Row], thinning: Thinning | None = None) -> dict[str, float]:
        """One optimizer step on the negative log-probability of the generated tokens; its metrics."""
        ...

    def ppo_step(
        self, rows: Sequence[Row], advantages: Sequence[float], prox_logp: Sequence[Float32], temperature: float = 1.0
    ) -> dict[str, float]:
        """One optimizer step on the PPO loss, one advantage a row; its metrics."""
        ...

    def save_hf(self, folder: Path) -> None:
        """Writes config and weights into an existing folder in Hugging Face's form."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        ...


OpenEngine = Callable[[Path, ActorConfig, OptimizerConfig, int], Engine]
"""(HF folder, actor, optimizer, total optimizer steps) -> engine."""


def check_backend(actor: ActorConfig) -> None:
    """Raises ValueError where ``actor.backend`` names something that this build does not run."""
    if actor.backend not in BACKENDS:
        raise ValueError(
            f"actor.backend: {actor.backend!r} is not in this build, which runs {', '.join(BACKENDS)}; set actor.backend=torch"
        )


def open_engine(folder: Path, actor: ActorConfig, optimizer: OptimizerConfig, total_steps: int) -> Engine:
    """The engine that ``actor.backend`` names, with the weights of an HF folder. Raises ValueError for one that cannot be loaded."""
    check_backend(actor)
    from services.trainer.torch_engine import TorchEngine

    return TorchEngine(folder, actor, optimizer, total_steps)


def set_threads(n: int) -> None:
    """How many threads the engine computes with, for the calling thread."""
    import torch

    torch.set_num_threads(n)


def write_engine_state(engine: Engine, path: Path) -> None:
    """Writes `Engine.state` to a file."""
    import torch

    torch.save(engine.state(), path)


def read_engine_state(engine: Engine, path: Path) -> None:
    """Restores ``engine`` from a file. It is read without executing anything in it."""
    import torch

    engine.restore(torch.load(path, weights_only=True))


class ComputeThread:
    """The one thread in which all engine work runs, so that the HTTP side stays responsive and the engine has one caller.

    Leaving the block waits for the piece of work that is running, because nothing can interrupt it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``. A cancelled caller leaves a running piece of work to its end; its result is dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
