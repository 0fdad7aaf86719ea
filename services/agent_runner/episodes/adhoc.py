"""Owns episodes asked for over HTTP (`POST /v1/episodes`, relived ones): admission, and storing their trajectories.

They never pass the queue, but are stored like any other. Refuses more than a fixed number at once.
"""

import asyncio
import logging

from services.agent_runner.episodes.live import LiveEpisodes, Play
from services.agent_runner.store import StoreClient
from services.common.errors import Busy, RemoteError
from services.common.wire.rollouts import RolloutRequest, Trajectory

log = logging.getLogger(__name__)


class AdhocEpisodes:
    """Runs single episodes on request; `close` cancels what still runs."""

    def __init__(self, live: LiveEpisodes, store: StoreClient, *, limit: int, store_patience_s: float = 10.0) -> None:
        self._live = live
        self._store = store
        self._limit = limit
        self._patience_s = store_patience_s
        self._running: dict[str, asyncio.Task[Trajectory]] = {}

    async def close(self) -> None:
        """Cancels and awaits everything that runs."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def start(self, request: RolloutRequest, play: Play) -> asyncio.Task[Trajectory]:
        """Begins an episode. Raises `Busy` where too many run."""
        if len(self._running) >= self._limit:
            raise Busy(f"{self._limit} requested episodes run already; wait for one to finish", retry_after_s=5)
        task = asyncio.create_task(self._run(request, play), name=request.episode_id)
        self._running[request.episode_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.episode_id, None))
        return task

    async def _run(self, request: RolloutRequest, play: Play) -> Trajectory:
        trajectory = await self._live.run(request, play)
        try:
            await self._store.put(trajectory, None, self._patience_s)
        except RemoteError as error:
            log.warning("episode %s is not stored: %s", request.episode_id, error)
        return trajectory
