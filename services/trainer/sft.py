"""Owns the SFT warm start: demonstrations asked for, taken from the store, kept on disk, trained on in shuffled epochs.

A batch of demonstrations is written into the trial's folder before it is acked, so that every later start has the same data in the same
order. Training begins when all demonstrations are in, because the order of the batches must not depend on who finished first.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from services.common.config import ExperimentConfig
from services.common.config.experiment import OptimizerConfig
from services.common.config.laptop import SftConfig
from services.common.config.paths import trial_dir
from services.common.wire.calls import Row, decode_call, rows_of
from services.common.wire.rollouts import Kind, RolloutRequest
from services.common.wire.store import AckBatchBody, Batch, Group, LeaseBatchBody
from services.trainer.batches import Origin, decode
from services.trainer.checks import ExperimentFailed
from services.trainer.engine import ComputeThread, Engine
from services.trainer.files import write_atomic
from services.trainer.phases import Phase
from services.trainer.recorder import Recorder
from services.trainer.sampler import epoch_index, seed_of
from services.trainer.sources import admit_sources
from services.trainer.state import Checkpoints, Report, State, engine_checkpoint
from services.trainer.store_client import StoreClient
from services.trainer.thinning import shared_prefix, thinning_of

log = logging.getLogger(__name__)

LEASE_GROUPS = 64
BATCH_TTL_S = 300.0
POLL_S = 1.0
CHECKPOINT_EVERY = 20
"""Steps."""

Progress = Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True)
class Demonstrations:
    """The SFT data, ordered by episode id. The calls stay encoded: as rows they would take fifty times the memory."""

    calls: list[list[bytes]]

    @cached_property
    def shared(self) -> int:
        """Length of the prompt prefix that all of them share."""
        return shared_prefix([self.rows(index)[0] for index in range(len(self.calls))])

    def rows(self, index: int) -> list[Row]:
        """The rows of one demonstration that have a generated token."""
        return [row for row in rows_of([decode_call(call) for call in self.calls[index]]) if row.n_output]


def sft_optimizer(sft: SftConfig, base: OptimizerConfig) -> OptimizerConfig:
    """The optimizer of the warm start: linear decay after ``sft.warmup_steps``; what ``sft`` does not say is the actor's."""
    return base.model_copy(
        update={
            "lr": sft.lr,
            "weight_decay": sft.weight_decay,
            "beta2": sft.beta2,
            "lr_scheduler_type": "linear",
            "warmup_steps_proportion": min(1.0, sft.warmup_steps / sft.steps),
            "min_lr_ratio": sft.min_lr_ratio,
        }
    )


class DemonstrationFiles:
    """The leased batches of demonstrations on disk."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._folder = trial_dir(config) / "demonstrations"

    def write(self, batch: Batch) -> None:
        """Keeps a batch. Writing it again changes nothing."""
        write_atomic(self._file(batch), msgspec.msgpack.encode(batch))

    def groups(self) -> dict[str, Group]:
        """Every group kept so far, by id."""
        groups: dict[str, Group] = {}
        for file in sorted(self._folder.glob("*.msgpack")):
            batch = msgspec.msgpack.decode(file.read_bytes(), type=Batch)
            groups |= {group.group_id: group for group in batch.groups}
        return groups

    def _file(self, batch: Batch) -> Path:
        return self._folder / f"{batch.batch_id}.msgpack"


async def collect(
    config: ExperimentConfig, store: StoreClient, requests: Sequence[RolloutRequest], state: State, progress: Progress
) -> Demonstrations:
    """Asks for all demonstrations and returns those that can be trained on, once all are in.

    Requests that a killed Redis forgot are made again.
    Raises `ExperimentFailed` where none can, or where they are from another source than the run's (`admit_sources`).
    """
    files = DemonstrationFiles(config)
    await store.enqueue(list(requests))
    groups = files.groups()
    while len(groups) < len(requests):
        body = LeaseBatchBody(
            consumer_id=f"{config.trial_name}-sft",
            kind=Kind.DEMO,
            n_groups=LEASE_GROUPS,
            ttl_s=BATCH_TTL_S,
            wait_s=POLL_S,
            allow_partial=True,
        )
        if batch := await store.lease(body):
            files.write(batch)
            await store.ack(batch.batch_id, demonstration_ack(batch))
            groups |= {group.group_id: group for group in batch.groups}
            await progress(len(groups), len(requests))
        elif not any(await store.groups(Kind.DEMO)) and not await store.enqueue(list(requests)):
            break
    return await asyncio.to_thread(usable, groups, requests, state)


def demonstration_ack(batch: Batch) -> AckBatchBody:
    """Demonstrations count as trained from the moment they are part of the SFT data; the reward of one does not matter."""
    members = [member for group in batch.groups for member in decode(group).members]
    return AckBatchBody(
        trained=[member.episode_id for member in members if not member.problem],
        dropped={member.episode_id: member.problem for member in members if member.problem},
        step=0,
        policy_version=0,
    )


def usable(groups: dict[str, Group], requests: Sequence[RolloutRequest], state: State) -> Demonstrations:
    """The demonstrations without a problem, by group id. Raises `ExperimentFailed` where there is none."""
    calls: list[list[bytes]] = []
    origins: list[Origin | None] = []
    problems: Counter[str] = Counter()
    for request in requests:
        group = groups.get(request.group_id)
        member = decode(group).members[0] if group else None
        problem = member.problem if member else "missing"
        problems[problem] += 1
        if group and member and not problem:
            calls.append(group.episodes[0].calls)
            origins.append(member.origin)
    admit_sources(state, origins, "demonstrations")
    if not calls:
        raise ExperimentFailed(f"sft: none of the {len(requests)} demonstrations can be trained on: {dict(problems)}")
    if len(calls) < len(requests):
        log.warning("sft: %d of %d demonstrations can be trained on: %s", len(calls), len(requests), dict(problems))
    return Demonstrations(calls)


@dataclass(frozen=True, slots=True)
class SftLoop:
    """Optimizer steps from ``state.sft_step`` to ``sft.steps``."""

    config: ExperimentConfig
    engine: Engine
    data: Demonstrations
    state: State
    checkpoints: Checkpoints
    recorder: Recorder
    compute: ComputeThread
    progress: Progress

    async def run(self) -> None:
        """Trains to the end. A crash costs the steps since the last checkpoint."""
        steps = self.config.sft.steps
        step = self.state.sft_step
        while step < steps:
            metrics = await self._step(step)
            step += 1
            await self.recorder.write(Report(step=step, phase=Phase.SFT, values=metrics))
            if step % CHECKPOINT_EVERY == 0 or step == steps:
                await self._checkpoint(step)
            await self.progress(step, steps)

    def batch(self, step: int) -> list[int]:
        """Indices of the demonstrations of a step (0-based)."""
        size, seed = self.config.sft.batch_size, seed_of(self.config.seed, "sft")
        return [epoch_index(len(self.data.calls), step * size + offset, seed) for offset in range(size)]

    async def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()

        def work() -> dict[str, float]:
            thinning = thinning_of(step, self.data.shared, self.config.sft, seed_of(self.config.seed, "thinning"))
            return self.engine.sft_step([row for index in self.batch(step) for row in self.data.rows(index)], thinning)

        metrics = await self.compute.run(work)
        log.info("sft step %d of %d: loss %.4f", step + 1, self.config.sft.steps, metrics["sft/loss"])
        return metrics | {"timeperf/train_step": time.perf_counter() - started}

    async def _checkpoint(self, step: int) -> None:
        name = engine_checkpoint(step, 0)
        await self.compute.run(lambda: self.checkpoints.save_engine(self.engine, name))
        self.state.sft_step = step
        self.state.engine = name
        self.checkpoints.commit(self.state)
