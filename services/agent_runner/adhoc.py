"""Owns episodes asked for over HTTP (`POST /v1/episodes`): admission, their state while they run, and their trajectory afterwards.

They never pass the queue, but are stored like any other. Refuses more than a fixed number at once.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from services.agent_runner.store import StoreClient
from services.common.errors import Busy, RemoteError
from services.common.wire.rollouts import RolloutRequest, Trajectory

log = logging.getLogger(__name__)

REMEMBERED = 256
"""Finished episodes kept here for a client that asks before the store can answer."""


class AdhocEpisodes:
    """Runs single episodes on request; `close` cancels what still runs."""

    def __init__(
        self, play: Callable[[RolloutRequest], Awaitable[Trajectory]], store: StoreClient, *, limit: int, store_patience_s: float = 10.0
    ) -> None:
        self._play = play
        self._store = store
        self._limit = limit
        self._patience_s = store_patience_s
        self._running: dict[str, asyncio.Task[Trajectory]] = {}
        self._finished: OrderedDict[str, Trajectory] = OrderedDict()

    async def close(self) -> None:
        """Cancels and awaits everything that runs."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def start(self, request: RolloutRequest) -> asyncio.Task[Trajectory]:
        """Begins an episode. Raises `Busy` where too many run."""
        if len(self._running) >= self._limit:
            raise Busy(f"{self._limit} requested episodes run already; wait for one to finish", retry_after_s=5)
        task = asyncio.create_task(self._run(request), name=request.episode_id)
        self._running[request.episode_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.episode_id, None))
        return task

    def is_running(self, episode_id: str) -> bool:
        """Whether the episode runs here."""
        return episode_id in self._running

    async def find(self, episode_id: str) -> Trajectory | None:
        """A finished episode, from here or from the store. Raises `RemoteError` where the store cannot be had."""
        return self._finished.get(episode_id) or await self._store.get(episode_id)

    async def _run(self, request: RolloutRequest) -> Trajectory:
        trajectory = await self._play(request)
        self._finished[request.episode_id] = trajectory
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)
        try:
            await self._store.put(trajectory, None, self._patience_s)
        except RemoteError as error:
            log.warning("episode %s is not stored: %s", request.episode_id, error)
        return trajectory
