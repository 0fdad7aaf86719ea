"""Owns the pull loop: lease rollout requests up to the free capacity, renew leases, play, report; give back what a shutdown interrupts.

Any number of workers may run or be killed: a lease that is not renewed goes back to the queue. Refuses to die of a store or proxy that
is away.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.agent_runner.store import StoreClient
from services.common import logs
from services.common.errors import RemoteError
from services.common.wire.rollouts import RolloutRequest, Trajectory
from services.common.wire.store import RolloutLease

log = logging.getLogger(__name__)

Play = Callable[[RolloutRequest], Awaitable[Trajectory]]

LEASED_AT_ONCE = 256
"""A reply with more would keep the event loop busy for tens of milliseconds."""
REPORT_PATIENCE_S = 300.0
"""How long a finished episode waits for a store that is away; its lease is renewed all the while."""


class Worker:
    """Plays leased episodes, at most ``concurrency`` at once. ``play`` decides when each begins."""

    def __init__(
        self,
        worker_id: str,
        store: StoreClient,
        play: Play,
        *,
        concurrency: int,
        ttl_s: float,
        wait_s: float = 5.0,
        pause_s: float = 0.5,
    ) -> None:
        self._id = worker_id
        self._store = store
        self._play = play
        self._concurrency = concurrency
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._pause_s = pause_s
        self._running: dict[str, tuple[RolloutRequest, asyncio.Task[None]]] = {}
        self._freed = asyncio.Event()
        self.finished = 0

    @property
    def running(self) -> list[str]:
        """Ids of the episodes in flight."""
        return [request.episode_id for request, _ in self._running.values()]

    async def run(self) -> None:
        """Works until cancelled; then stops the episodes in flight and gives their leases back without counting the attempt."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew_forever(), name="heartbeat")
                await self._lease_forever(group)
        finally:
            await self._give_back()

    async def _lease_forever(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._freed.clear()
            free = self._concurrency - len(self._running)
            if free <= 0:
                await self._freed.wait()
                continue
            try:
                leases = await self._store.lease(self._id, min(free, LEASED_AT_ONCE), self._ttl_s, self._wait_s)
            except RemoteError as error:
                log.warning("leasing: %s", error)
                await asyncio.sleep(self._pause_s)
                continue
            for lease in leases:
                task = group.create_task(self._work(lease), name=lease.request.episode_id)
                self._running[lease.lease_id] = (lease.request, task)
            if not leases:
                # A store that answers at once although asked to wait must not become a busy loop.
                await asyncio.sleep(0.02)

    async def _work(self, lease: RolloutLease) -> None:
        logs.bind(episode_id=lease.request.episode_id, attempt=lease.request.attempt)
        trajectory = await self._play(lease.request)
        await self._report(trajectory, lease.lease_id)
        # Not in a `finally`: on a shutdown the lease stays listed for `_give_back`, and a lost lease is off the list already.
        self._running.pop(lease.lease_id, None)
        self._freed.set()

    async def _report(self, trajectory: Trajectory, lease_id: str) -> None:
        try:
            outcome = await self._store.put(trajectory, lease_id, REPORT_PATIENCE_S)
        except RemoteError as error:
            log.error("trajectory %s could not be reported and is left to its lease: %s", trajectory.episode_id, error)
            return
        self.finished += 1
        why = f" {trajectory.failure.who}: {trajectory.failure.why}" if trajectory.failure else ""
        log.info("episode %s, reward %s, %s%s", trajectory.status.value, trajectory.reward, outcome, why)

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            if not self._running:
                continue
            try:
                lost = await self._store.heartbeat(self._id, list(self._running), self._ttl_s)
            except RemoteError as error:
                log.warning("heartbeat: %s", error)
                continue
            for lease_id in lost:
                self._stop_lost(lease_id)

    def _stop_lost(self, lease_id: str) -> None:
        request, task = self._running.pop(lease_id, (None, None))
        if request is not None and task is not None:
            log.warning("lease of episode %s is lost, stopping it", request.episode_id)
            task.cancel()
            self._freed.set()

    async def _give_back(self) -> None:
        leases, self._running = list(self._running), {}
        releases = (self._store.release(lease, "shutdown", count_attempt=False) for lease in leases)
        results = await asyncio.gather(*releases, return_exceptions=True)
        failed = sum(isinstance(result, RemoteError) for result in results)
        if failed:
            log.warning("%d of %d leases could not be given back and will expire", failed, len(leases))
