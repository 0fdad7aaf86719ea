"""Owns which policy servers there are: added, drained and removed while the proxy runs, beginning with those of the configuration.

Refuses to remove a server that still has calls, unless told to end them (they go on at another server). Kept in this process only: a
restart begins with the configuration again, and each proxy is told by itself.
"""

import asyncio
from functools import partial

from services.common.background import Background
from services.common.errors import Conflict, NotFound
from services.policy_proxy.servers.pool import PolicyServer, ServerPool
from services.policy_proxy.servers.watch import Watcher
from services.policy_proxy.weights.steps import give_up

DRAINED_EVERY_S = 0.05
LEAVING_S = 10.0
"""For calls that were ended at a removed server to come back, before its connections are closed."""


class Fleet:
    """The pool's members; `start` begins to watch them."""

    def __init__(self, pool: ServerPool, watcher: Watcher) -> None:
        self._pool = pool
        self._watcher = watcher
        self._background: Background | None = None
        self._watched = 0

    def start(self, background: Background) -> None:
        """Watches every server from now on, those that are added later too."""
        self._background = background
        for server in self._pool.servers:
            self._watch(server)

    def add(self, url: str) -> PolicyServer:
        """Takes a server into the pool, or back into rotation where it is there; it gets calls once it has the current weights."""
        server = self._pool.find(url)
        if server is None:
            server = self._pool.add(url)
            self._watch(server)
        server.cordoned = False
        self._pool.room.wake()
        return server

    async def drain(self, url: str, deadline_s: float) -> PolicyServer:
        """Gives a server no more calls, and waits for those it has for at most ``deadline_s``. It still gets weight updates."""
        server = self._known(url)
        server.cordoned = True
        await _left(server, deadline_s)
        return server

    async def remove(self, url: str, *, force: bool) -> PolicyServer:
        """Takes a server out of the pool. Raises `Conflict` where it has calls and ``force`` is not given."""
        server = self._known(url)
        if server.in_flight and not force:
            raise Conflict(f"url: {server.in_flight} calls are there; drain it first, or force=true", code="server_busy")
        server.cordoned = server.removed = True
        self._pool.servers.remove(server)
        if server.in_flight:
            await give_up(server)
        server.poked.set()
        return server

    def _known(self, url: str) -> PolicyServer:
        server = self._pool.find(url)
        if server is None:
            raise NotFound(f"url: {url} is not in the pool, which has {', '.join(item.url for item in self._pool.servers) or 'no server'}")
        return server

    def _watch(self, server: PolicyServer) -> None:
        if self._background is not None:
            self._watched += 1
            self._background.start(f"watch {server.url} ({self._watched})", partial(self._run, server))

    async def _run(self, server: PolicyServer) -> None:
        await self._watcher.run(server)
        await _left(server, LEAVING_S)
        await server.api.close()


async def _left(server: PolicyServer, deadline_s: float) -> None:
    """Waits for the calls at a server to end, at most ``deadline_s``."""
    try:
        async with asyncio.timeout(deadline_s):
            while server.in_flight:  # noqa: ASYNC110 - nothing is gained by being told at once
                await asyncio.sleep(DRAINED_EVERY_S)
    except TimeoutError:
        return
