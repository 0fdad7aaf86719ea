"""Owns keeping the pool true to the world: is each server there, does it have the current weights, which weights are current.

Loops that run as long as the service: one a server, one that follows the newest policy version in the store. A server that was away,
was restarted with other weights, or was left paused by a crash gets the current weights and is continued before it is used.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.common.errors import RemoteError, ServiceError
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers import PolicyServer, ServerEvent, ServerPool, ServerState
from services.policy_proxy.sglang import Weights
from services.policy_proxy.weights import WeightUpdates

log = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
FOLLOW_EVERY_S = 2.0
FIRST_FOLLOW_EVERY_S = 0.3
MISSES_ALLOWED = 3
"""Probes that time out before a server counts as down; a refused connection counts at once."""
QUARANTINE_S = 2.0
"""Between two attempts to bring a quarantined server back."""


class Watcher:
    """Checks servers one by one; `run` is the loop of one server."""

    def __init__(self, pool: ServerPool, update_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._update_timeout_s = update_timeout_s
        self._clock = clock
        self._misses: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}

    async def run(self, server: PolicyServer) -> None:
        """Looks every second, and at once when poked."""
        while True:
            server.poked.clear()
            await self.check(server)
            try:
                async with asyncio.timeout(PROBE_EVERY_S):
                    await server.poked.wait()
            except TimeoutError:
                continue

    async def check(self, server: PolicyServer) -> None:
        """One look. A server in an update is left to that update."""
        if server.state is ServerState.UPDATING or self._pool.target is None:
            return
        epoch = server.epoch
        try:
            weights = await server.api.weights()
        except RemoteError as error:
            if server.epoch == epoch:
                self._missed(server, error)
            return
        self._misses.pop(server.url, None)
        if server.epoch != epoch or (server.state is ServerState.UP and self._is_current(server, weights)):
            return
        if server.state is ServerState.QUARANTINED and self._clock() < self._retry_at.get(server.url, 0.0):
            return
        await self._adopt(server, weights)

    def _is_current(self, server: PolicyServer, weights: Weights) -> bool:
        return weights == server.weights and weights.label == str(self._pool.policy_version)

    async def _adopt(self, server: PolicyServer, weights: Weights) -> None:
        target = self._pool.target
        assert target is not None
        self._pool.apply(server, ServerEvent.UPDATE, f"has version {weights.label}, gets {target.version}")
        try:
            async with asyncio.timeout(self._update_timeout_s):
                if weights != Weights(str(target.version), target.path):
                    await server.api.update(target, self._update_timeout_s)
                    weights = await server.api.weights()
                await server.api.resume()
        except (RemoteError, TimeoutError) as error:
            self._pool.apply(server, ServerEvent.FAILED, str(error) or "the update took too long")
        else:
            self._pool.verified(server, weights)
        self._retry_at[server.url] = self._clock() + QUARANTINE_S
        log.info("%s is %s: %s", server.url, server.state.value, server.detail or f"version {server.version}")

    def _missed(self, server: PolicyServer, error: RemoteError) -> None:
        misses = self._misses[server.url] = self._misses.get(server.url, 0) + 1
        if error.code != "timeout" or misses >= MISSES_ALLOWED:
            if server.state is not ServerState.DOWN:
                log.warning("%s is down: %s", server.url, error.detail)
            self._pool.apply(server, ServerEvent.LOST, error.detail)


class VersionFollower:
    """Follows the newest policy version in the store. ``initial`` counts where nothing was published yet."""

    def __init__(
        self,
        pool: ServerPool,
        updates: WeightUpdates,
        latest: Callable[[], Awaitable[PolicyVersion | None]],
        initial: PolicyVersion,
        deadline_s: float,
    ) -> None:
        self._pool = pool
        self._updates = updates
        self._latest = latest
        self._initial = initial
        self._deadline_s = deadline_s
        self._failing = False

    async def run(self) -> None:
        """Asks the store every couple of seconds, more often until it has answered once."""
        while True:
            try:
                await self.follow()
                self._failing = False
            except ServiceError as error:
                if not self._failing:
                    log.warning("the newest policy version is not followed for now: %s", error.detail)
                self._failing = True
            await asyncio.sleep(FOLLOW_EVERY_S if self._pool.target else FIRST_FOLLOW_EVERY_S)

    async def follow(self) -> None:
        """Takes over the store's newest version where it is newer than ours. Raises `ServiceError`."""
        newest = await self._latest()
        if newest is not None:
            await self._updates.follow(newest, self._deadline_s)
        elif self._pool.target is None:
            self._pool.commit(self._initial, provisional=True)
