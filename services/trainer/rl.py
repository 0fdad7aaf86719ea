"""Owns the asynchronous PPO loop: taking ready groups while the queue is kept filled, the stages of a step, resuming between stages.

A step is the list of named stages in `RlLoop.stages`; a crash between any two of them is made good by `resume` or by the store's
redelivery, so that no episode is trained twice and none is lost. Rollouts go on while a step computes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.common.config import ExperimentConfig
from services.common.errors import RemoteError
from services.common.wire.rollouts import Kind
from services.common.wire.store import Batch, LeaseBatchBody
from services.trainer.batches import Chosen, Delivered, Rules, decode, delivered_stats, select
from services.trainer.engine import ComputeThread, Engine
from services.trainer.feeder import Feeder
from services.trainer.phases import Phase
from services.trainer.ppo import train_step
from services.trainer.publisher import Publisher
from services.trainer.recorder import Recorder
from services.trainer.sources import from_one_source
from services.trainer.staleness import Limits, max_age
from services.trainer.state import Checkpoints, PendingAck, Report, State, engine_checkpoint
from services.trainer.store_client import StoreClient

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH_TTL_S = 900.0
POLL_S = 1.0
"""How often the queue is topped up while the loop waits for something else."""
EXTEND_EVERY_S = 120.0
ALARM_AFTER = 3
"""Leases in a row without a group to train on after which the log says so as a warning."""

Stage = tuple[str, Callable[[], Awaitable[None]]]


@dataclass(frozen=True, slots=True)
class RlParts:
    """What the loop works with."""

    config: ExperimentConfig
    store: StoreClient
    publisher: Publisher
    checkpoints: Checkpoints
    recorder: Recorder
    compute: ComputeThread


class RlLoop:
    """PPO steps from ``state.step`` to ``total_train_steps``."""

    def __init__(self, parts: RlParts, engine: Engine, feeder: Feeder, state: State, after_step: Callable[[], Awaitable[None]]) -> None:
        self._parts = parts
        self._config = parts.config
        self._engine = engine
        self._feeder = feeder
        self._state = state
        self._after_step = after_step
        self._limits = Limits.of(parts.config)
        self._published = state.step
        self._held: list[PendingAck] = []
        self._chosen: list[Chosen] = []
        self._in_hand = 0
        """Groups that the rule counts as accepted and not consumed. A step counts as a whole batch, even where it trains on less."""
        self._delivered: list[Delivered] = []
        self._drops: dict[str, str] = {}
        self._metrics: dict[str, float] = {}
        self._extended_at = time.monotonic()

    async def run(self) -> None:
        """Resumes, then trains until all steps are done."""
        await self.resume()
        while self._state.step < self._config.total_train_steps:
            for _name, stage in self.stages():
                await stage()

    def stages(self) -> list[Stage]:
        """One step. Up to ``save`` a crash costs the work alone; from ``commit`` on the step counts."""
        return [
            ("collect", self._collect),
            ("train", self._train),
            ("save", self._save),
            ("commit", self._commit),
            ("ack", self._ack),
            ("publish", self._publish),
            ("feed", self._feed),
            ("report", self._report),
        ]

    async def resume(self) -> None:
        """Finishes what an earlier process left open after its last commit.

        Asks for no rollouts: a batch that this trainer holds since then is not counted before it has been leased again.
        """
        await self._ack()
        await self._publish()
        await self._report()

    async def _feed(self) -> None:
        await self._feeder.feed(self._published, self._in_hand)

    # Stages

    async def _collect(self) -> None:
        """Leases until at least half a batch of groups is there to train on; what is dropped whole is acked at once."""
        started = time.perf_counter()
        self._held, self._chosen, self._delivered, self._drops = [], [], [], {}
        barren = 0
        while 2 * len(self._chosen) < self._limits.batch:
            batch = await self._lease(len(self._held), self._limits.batch - len(self._chosen))
            found = await self._take(batch)
            barren = 0 if found else barren + 1
            if barren >= ALARM_AFTER:
                log.warning("%d leases in a row without a group to train on; dropped so far: %s", barren, self._drops)
        self._in_hand = self._limits.batch
        self._metrics = {
            **delivered_stats(self._delivered, self._drops),
            "rollout/leases": float(len(self._held)),
            "timeperf/rollout": time.perf_counter() - started,
        }

    async def _lease(self, slot: int, n_groups: int) -> Batch:
        """Waits for ``n_groups`` ready groups, filling the queue meanwhile. Each slot is a consumer, because a consumer holds one batch."""
        wait_s = 0.0
        waiting_since = time.monotonic()
        while True:
            await self._extend_leases()
            body = LeaseBatchBody(
                consumer_id=f"{self._config.trial_name}-trainer-{slot}", n_groups=n_groups, ttl_s=BATCH_TTL_S, wait_s=wait_s
            )
            if batch := await self._parts.store.lease(body):
                return batch
            await self._feed()
            wait_s = POLL_S
            if time.monotonic() - waiting_since > 60:
                log.warning("no batch of %d groups for 60 s; is the agent runner at work?", n_groups)
                waiting_since = time.monotonic()

    async def _take(self, batch: Batch) -> bool:
        """Sorts a batch into chosen groups and drops. True where something of it can be trained on.

        Raises `ExperimentFailed` for a batch from another source than the run's (`from_one_source`); it stays leased, untouched.
        """
        groups = [decode(group) for group in batch.groups]
        known = self._state.known()
        fresh = [group for group in groups if not any(member.episode_id in known for member in group.members)]
        fresh = from_one_source(self._state, fresh, f"batch {batch.batch_id}", drop=self._config.recover.other_source == "drop")
        rules = Rules(
            version=self._state.step,
            max_age=max_age(self._limits),
            max_row_tokens=self._config.actor.max_tokens_per_mb,
            filter=self._config.dynamic_filter,
        )
        selection = select(fresh, rules)
        pending = with_known(batch.batch_id, groups, known, selection.trained, selection.drops)
        self._delivered += fresh
        self._drops |= selection.drops
        if selection.chosen:
            self._chosen += selection.chosen
            self._in_hand = len(self._chosen)
            self._held.append(pending)
            return True
        await self._ack_one(pending)
        return False

    async def _train(self) -> None:
        chosen, version = list(self._chosen), self._state.step
        metrics = await self._meanwhile(self._parts.compute.run(lambda: train_step(self._engine, chosen, version, self._config)))
        self._metrics |= metrics

    async def _save(self) -> None:
        started = time.perf_counter()
        name = engine_checkpoint(self._state.sft_step, self._state.step + 1)
        await self._meanwhile(self._parts.compute.run(lambda: self._parts.checkpoints.save_engine(self._engine, name)))
        self._metrics["timeperf/checkpoint_for_recover"] = time.perf_counter() - started

    async def _commit(self) -> None:
        state = self._state
        state.step += 1
        state.engine = engine_checkpoint(state.sft_step, state.step)
        state.acks = list(self._held)
        state.report = Report(step=state.step, phase=Phase.RL, values=self._metrics, at=time.time())
        self._parts.checkpoints.commit(state)

    async def _ack(self) -> None:
        for pending in self._state.acks:
            await self._ack_one(pending)
        self._held = []

    async def _ack_one(self, pending: PendingAck) -> None:
        try:
            await self._parts.store.ack(pending.batch_id, pending.body(self._state.step))
        except RemoteError as error:
            # 409: taken back. 404: forgotten, by a Redis that lost its power, or long after it had ended.
            if error.status not in (404, 409):
                raise
            log.warning(
                "the store has taken or lost batch %s (%s) before its ack; its groups may come again", pending.batch_id, error.detail
            )
            self._state.settled |= {episode_id: "" for episode_id in pending.trained} | pending.dropped
            return
        for episode_id in [*pending.trained, *pending.dropped]:
            self._state.settled.pop(episode_id, None)

    async def _publish(self) -> None:
        started = time.perf_counter()
        await self._parts.publisher.publish(self._engine, self._state.step)
        self._published = self._state.step
        self._chosen, self._in_hand = [], 0
        if self._state.report:
            self._state.report.values["timeperf/update_weights"] = time.perf_counter() - started

    async def _report(self) -> None:
        if self._state.report:
            await self._parts.recorder.write(self._state.report)
            values = self._state.report.values
            log.info("step %d: reward %.3f", self._state.step, values.get("rollout/reward", float("nan")))
        await self._after_step()

    # While something else runs

    async def _meanwhile(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; until it is there the queue is kept filled and the leases are kept."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            while not task.done():
                await asyncio.wait({task}, timeout=POLL_S)
                if not task.done():
                    await self._feed()
                    await self._extend_leases()
        return task.result()

    async def _extend_leases(self) -> None:
        if not self._held or time.monotonic() - self._extended_at < EXTEND_EVERY_S:
            return
        for pending in self._held:
            await self._parts.store.extend(pending.batch_id, BATCH_TTL_S)
        self._extended_at = time.monotonic()


def with_known(
    batch_id: str, groups: Sequence[Delivered], known: Mapping[str, str], trained: Sequence[str], dropped: Mapping[str, str]
) -> PendingAck:
    """The ack of a batch in which groups may have come back that an earlier step had used or dropped (`State.known`)."""
    back = [member.episode_id for group in groups for member in group.members if member.episode_id in known]
    return PendingAck(
        batch_id=batch_id,
        trained=[*trained, *(episode_id for episode_id in back if not known[episode_id])],
        dropped={**dropped, **{episode_id: known[episode_id] for episode_id in back if known[episode_id]}},
    )


async def drop_unused(parts: RlParts, state: State, timeout_s: float) -> int:
    """After the last step: takes the groups that were rolled out and not needed, and drops them as ``unused``. Returns how many episodes.

    Groups that are still being rolled out after ``timeout_s`` stay in the store, where they count as waiting.
    """
    dropped, give_up_at = 0, time.monotonic() + timeout_s
    while True:
        ready, running = await parts.store.groups(Kind.TRAIN)
        if not ready and (not running or time.monotonic() > give_up_at):
            return dropped
        consumer = f"{parts.config.trial_name}-trainer-0"
        body = LeaseBatchBody(consumer_id=consumer, n_groups=max(1, ready), ttl_s=BATCH_TTL_S, wait_s=POLL_S, allow_partial=True)
        if batch := await parts.store.lease(body):
            groups = [decode(group) for group in batch.groups]
            known = state.known()
            episodes = [member.episode_id for group in groups for member in group.members if member.episode_id not in known]
            pending = with_known(batch.batch_id, groups, known, [], dict.fromkeys(episodes, "unused"))
            await parts.store.ack(batch.batch_id, pending.body(state.step))
            dropped += len(episodes)
