"""Owns what the store does without being asked: sweeping, packing, retention, dumping, gauges, and seeing that Redis lost writes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge

from services.common.app import Metrics
from services.common.errors import ServiceError
from services.trajectory_store.durability import EVERYSEC_NOTE
from services.trajectory_store.redis_store.rollouts import Sweep
from services.trajectory_store.redis_store.sessions import HARMLESS
from services.trajectory_store.store import Store
from services.trajectory_store.tenants import Tenants

log = logging.getLogger(__name__)

SWEEP_S = 0.25
PACK_S = 0.5
PACKS_IN_A_ROW = 64
"""Before the next trial has its turn."""
SLOW_S = 5.0
AGAIN_S = 1.0
"""After Redis or a spill folder refused something."""


@dataclass(slots=True)
class Gauges:
    """The Prometheus view of the accounts. Trials are labels; there are at most ``max_trials`` of them."""

    metrics: Metrics
    episodes: Gauge = field(init=False)
    bodies: Gauge = field(init=False)
    trajectories: Gauge = field(init=False)
    drops: Gauge = field(init=False)
    alarms: Gauge = field(init=False)
    risks: Gauge = field(init=False)
    losses: Counter = field(init=False)
    retired: Counter = field(init=False)
    swept: Counter = field(init=False)

    def __post_init__(self) -> None:
        make = self.metrics.gauge
        self.episodes = make("episodes", "Counts of the ledger", ("trial", "kind", "count"))
        self.bodies = make("body_bytes", "Bytes of messages and token trees", ("trial",))
        self.trajectories = make("trajectories", "Trajectories stored now", ("trial",))
        self.drops = make("dropped_episodes", "Episodes that were not trained on, by reason", ("trial", "kind", "reason"))
        self.alarms = make("alarm", "1 while an alarm stands", ("trial", "name"))
        self.risks = make("redis_data_at_risk", "1 where Redis could lose acknowledged data", ("risk",))
        self.losses = self.metrics.counter("redis_lost_writes_total", "Times Redis was found without acknowledged writes", ("trial",))
        self.retired = self.metrics.counter("retired_episodes_total", "Episodes removed by retention", ("trial",))
        self.swept = self.metrics.counter("swept_sessions_total", "Sessions forgotten without a trajectory, by reason", ("trial", "reason"))


class Upkeep:
    """The background loops over all trials of this process."""

    def __init__(self, tenants: Tenants, metrics: Metrics) -> None:
        self._tenants = tenants
        self._gauges = Gauges(metrics)
        self._last: dict[str, Sweep] = {}
        self._replaced = 0

    async def keep_sweeping(self) -> None:
        """Ends expired rollout leases, queues due retries, closes overdue groups, for ever."""
        while True:
            fine = await self._for_all("sweeping", self._sweep)
            await asyncio.sleep(SWEEP_S if fine else AGAIN_S)

    async def _for_all(self, what: str, work: Callable[[Store], Awaitable[None]]) -> bool:
        """Does something for every trial. What is refused now is logged, hinders no other trial, and makes the answer False."""
        fine = True
        for store in self._tenants.stores:
            try:
                await work(store)
            except ServiceError as error:
                log.warning("%s: %s: %s", store.trial, what, error.detail)
                fine = False
        return fine

    async def _sweep(self, store: Store) -> None:
        sweep = await store.rollouts.sweep()
        if sweep.queued:
            store.work.ring()
        if sweep.final:
            log.warning("%s: %d episodes or groups ended because their time was over", store.trial, sweep.final)
            store.ready.ring()
        last = self._last.get(store.trial)
        if last is not None and sweep.is_behind(last):
            await self._report_loss(store, last, sweep)
        self._last[store.trial] = sweep

    async def _report_loss(self, store: Store, last: Sweep, sweep: Sweep) -> None:
        """Redis came back without its latest writes. The beat grows four times a second, so it also says how much time is missing."""
        text = (
            f"Redis lost acknowledged writes of about the last {max(1, last.beat - sweep.beat + 1) * SWEEP_S:.2f} s: at least "
            f"{max(0, last.enqueued - sweep.enqueued)} enqueued episodes and {max(0, last.completed - sweep.completed)} trajectories"
        )
        await store.ledger.note_loss(last.beat, text)
        log.error("%s: %s", store.trial, text)
        self._gauges.losses.labels(store.trial).inc()

    async def _note_restart(self, store: Store) -> None:
        """What is gone between two beats shows in no number, so it is said that it may be."""
        text = f"another Redis process answers since shortly before {time.strftime('%FT%TZ', time.gmtime())}: {EVERYSEC_NOTE}"
        await store.ledger.note_loss(f"process {self._tenants.server.run_id[:12]}", text)
        log.warning("%s: %s", store.trial, text)

    async def keep_packing(self) -> None:
        """Packs the token trees of finished sessions, for ever."""
        while True:
            fine = await self._for_all("packing", self._pack)
            await asyncio.sleep(PACK_S if fine else AGAIN_S)

    async def _pack(self, store: Store) -> None:
        for _ in range(PACKS_IN_A_ROW):
            if not await store.sessions.pack():
                return

    async def keep_tidy(self) -> None:
        """Retention, alarms, gauges and trials that other stores made, for ever."""
        while True:
            try:
                await self._tenants.discover()
            except ServiceError as error:
                log.warning("trials: %s", error.detail)
            await self._tenants.server.health()
            if self._tenants.server.replaced != self._replaced and await self._for_all("noting a restart of Redis", self._note_restart):
                self._replaced = self._tenants.server.replaced
            self._gauges.alarms.clear()
            await self._for_all("tidying", self._tidy)
            self._gauges.risks.clear()
            for risk in self._tenants.server.risks:
                self._gauges.risks.labels(risk).set(1)
            await asyncio.sleep(SLOW_S)

    async def _tidy(self, store: Store) -> None:
        while retired := await store.retention.retire():
            self._gauges.retired.labels(store.trial).inc(retired)
        await self._forget_sessions(store)
        await self._refresh(store)

    async def _forget_sessions(self, store: Store) -> None:
        for swept in await store.sessions.sweep():
            self._gauges.swept.labels(store.trial, swept.reason).inc()
            if swept.reason not in HARMLESS:
                text = "%s: session %s was idle for too long and is forgotten with its %d calls: %s"
                log.warning(text, store.trial, swept.session_id, swept.n_calls, swept.reason)

    async def _refresh(self, store: Store) -> None:
        stats = await store.ledger.stats()
        for kind, counts in stats.kinds.items():
            numbers: dict[str, int] = counts.model_dump(exclude={"drops"})
            for name, value in numbers.items():
                self._gauges.episodes.labels(store.trial, str(kind), name).set(value)
            for reason, count in counts.drops.items():
                self._gauges.drops.labels(store.trial, str(kind), reason).set(count)
        self._gauges.bodies.labels(store.trial).set(stats.body_bytes)
        self._gauges.trajectories.labels(store.trial).set(stats.trajectories)
        for name in stats.alarms:
            self._gauges.alarms.labels(store.trial, name).set(1)
