"""Owns keeping the pool true to the world: is each server there, does it have the current weights, how busy is it, is it left paused.

Loops that run as long as the service: one a server, one that follows the newest policy version in the store. A server that was away,
was restarted with other weights, or was left paused by a crash gets the current weights and is continued before it is used.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.common.errors import RemoteError, ServiceError
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.load import LoadFigures
from services.policy_proxy.servers.pool import PolicyServer, ServerEvent, ServerPool, ServerState
from services.policy_proxy.servers.versions import RECEIVING, Weights, holds, version_of
from services.policy_proxy.weights.updates import WeightUpdates

log = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
FOLLOW_EVERY_S = 2.0
FIRST_FOLLOW_EVERY_S = 0.3
MISSES_ALLOWED = 3
"""Probes that time out before a server counts as down; a refused connection counts at once."""
QUARANTINE_S = 2.0
"""Between two attempts to bring a quarantined server back."""
NEWER_GRACE_S = 5.0
"""A server with a newer version than ours was updated by another proxy: the store will soon tell; only then is it taken back."""


class Watcher:
    """Checks servers one by one; `run` is the loop of one server.

    ``pause_deadline_s``: no update pauses a server longer; ``controls``: whether servers are brought up to date from here.
    """

    def __init__(
        self, pool: ServerPool, pause_deadline_s: float, clock: Callable[[], float] = time.monotonic, *, controls: bool = True
    ) -> None:
        self._pool = pool
        self._deadline_s = pause_deadline_s
        self._clock = clock
        self._controls = controls
        self._misses: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._paused_since: dict[str, float] = {}
        self._newer_since: dict[str, float] = {}

    async def run(self, server: PolicyServer) -> None:
        """Looks every second, and at once when poked, until the server is removed."""
        while not server.removed:
            server.poked.clear()
            await self.check(server)
            self._pool.room.wake()
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
        self._misses[server.url] = 0
        if server.epoch != epoch:
            return
        if server.state is ServerState.UP and self._pool.is_current(server, weights):
            await self._measure(server, epoch)
        elif not self._in_quarantine(server) and not self._others_are_at_it(server, weights):
            await self._adopt(server, weights)

    async def _measure(self, server: PolicyServer, epoch: int) -> None:
        """What it says about itself beyond its weights; a failure here says nothing about the calls it has."""
        try:
            figures = await server.api.load()
            if server.epoch == epoch:
                self._limit(server, figures)
            if self._controls and await self._left_paused(server) and server.epoch == epoch:
                log.warning("%s has been paused for over %g s and is continued", server.url, self._deadline_s)
                await server.api.resume()
        except RemoteError as error:
            log.debug("%s does not tell its load: %s", server.url, error)

    def _limit(self, server: PolicyServer, figures: LoadFigures | None) -> None:
        if figures is None:
            server.limit.unreported(server.in_flight)
        else:
            server.limit.report(figures, server.in_flight)

    async def _left_paused(self, server: PolicyServer) -> bool:
        """Whether it is paused for longer than any update may take: whoever paused it is gone."""
        if not await server.api.paused():
            self._paused_since.pop(server.url, None)
            return False
        since = self._paused_since.setdefault(server.url, self._clock())
        return self._clock() - since > self._deadline_s

    def _in_quarantine(self, server: PolicyServer) -> bool:
        return server.state is ServerState.QUARANTINED and self._clock() < self._retry_at.get(server.url, 0.0)

    def _others_are_at_it(self, server: PolicyServer, weights: Weights) -> bool:
        """Another proxy has given it a newer version than ours, or is giving it one: out of rotation until the store has told us too."""
        newer = version_of(weights.label) > self._pool.policy_version or weights.label.startswith(RECEIVING)
        if not newer or server.tainted:
            self._newer_since.pop(server.url, None)
            return False
        grace_s = self._deadline_s if weights.label.startswith(RECEIVING) else NEWER_GRACE_S
        since = self._newer_since.setdefault(server.url, self._clock())
        if self._clock() - since > grace_s:
            return False
        detail = f"has {weights.label}, which another proxy gave it; ours is {self._pool.policy_version}"
        if server.state is ServerState.DOWN:
            server.detail = detail
        else:
            self._pool.apply(server, ServerEvent.LOST, detail)
        return True

    async def _adopt(self, server: PolicyServer, weights: Weights) -> None:
        target = self._pool.target
        assert target is not None
        self._pool.apply(server, ServerEvent.UPDATE, f"has version {weights.label}, gets {target.version}")
        try:
            async with asyncio.timeout(self._deadline_s):
                weights = await self._brought_up_to_date(server, weights, target)
        except (RemoteError, TimeoutError) as error:
            self._pool.apply(server, ServerEvent.FAILED, str(error) or "the update took too long")
        else:
            self._pool.verified(server, weights)
        self._retry_at[server.url] = self._clock() + QUARANTINE_S
        log.info("%s is %s: %s", server.url, server.state.value, server.detail or f"version {server.version}")

    async def _brought_up_to_date(self, server: PolicyServer, weights: Weights, target: PolicyVersion) -> Weights:
        if not self._controls:
            return weights
        if server.tainted or not holds(weights, target):
            if weights.label.startswith(RECEIVING):
                await server.api.end_receiving()
            server.tainted = True
            await server.api.update(target, self._deadline_s)
            weights = await server.api.weights()
        await server.api.resume()
        return weights

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
