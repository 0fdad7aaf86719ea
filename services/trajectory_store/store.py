"""Owns how the parts of the store hang together: one object a process, none of which holds what a kill -9 would lose."""

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Any

from prometheus_client import Gauge

from services.common.config import ExperimentConfig
from services.trajectory_store.bell import Bell
from services.trajectory_store.keys import Keys
from services.trajectory_store.redis_store.batches import Batches
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.redis_store.experiment import Experiment
from services.trajectory_store.redis_store.ledger import Ledger
from services.trajectory_store.redis_store.rollouts import RolloutQueue
from services.trajectory_store.redis_store.sessions import Sessions
from services.trajectory_store.redis_store.trajectories import Trajectories

log = logging.getLogger(__name__)

SWEEP_S = 0.25
GAUGES_S = 5.0


@dataclass(frozen=True, slots=True)
class Store:
    """All parts over one `Database`, and the bells that wake waiting requests."""

    database: Database
    rollouts: RolloutQueue
    sessions: Sessions
    trajectories: Trajectories
    batches: Batches
    ledger: Ledger
    experiment: Experiment
    work: Bell
    """Rings when an episode may have become queued."""
    ready: Bell
    """Rings when a group may have become ready."""

    async def keep_sweeping(self) -> None:
        """Ends expired rollout leases and queues due retries, for ever."""
        while True:
            queued, final = await self.rollouts.sweep()
            if queued:
                self.work.ring()
            if final:
                log.warning("%d episodes failed for good because their leases expired", final)
                self.ready.ring()
            await asyncio.sleep(SWEEP_S)

    async def keep_gauges(self, gauge: Gauge) -> None:
        """Refreshes the Prometheus view of the counts, for ever."""
        while True:
            stats = await self.ledger.stats()
            for kind, counts in stats.kinds.items():
                fields: dict[str, Any] = counts.model_dump(exclude={"drops"})
                for name, value in fields.items():
                    gauge.labels(str(kind), name).set(value)
            await asyncio.sleep(GAUGES_S)


def build_store(config: ExperimentConfig) -> Store:
    """The store of one trial. Connects on first use."""
    settings = config.services.trajectory_store
    database = Database(redis_url(config), Keys.of_trial(config.experiment_name, config.trial_name))
    trajectories = Trajectories(database, settings.max_attempts, settings.retry_delay_s)
    return Store(
        database=database,
        rollouts=RolloutQueue(database, settings.max_attempts, settings.retry_delay_s),
        sessions=Sessions(database),
        trajectories=trajectories,
        batches=Batches(database, trajectories),
        ledger=Ledger(database),
        experiment=Experiment(database),
        work=Bell(),
        ready=Bell(),
    )


def redis_url(config: ExperimentConfig) -> str:
    """``REDIS_URL``, else the configured URL, else the Redis that the launcher starts."""
    settings = config.services.trajectory_store
    return os.environ.get("REDIS_URL") or settings.redis_url or f"redis://127.0.0.1:{settings.redis_port}/0"
