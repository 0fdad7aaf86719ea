"""Owns the episodes that run in this process, leased or asked for: their order of starting, their logs, and cancelling one by request.

A cancelled episode is `failed`, owned by infra, and final: its policy call in flight is aborted (the proxy notices that nobody waits for
it), its session is sealed, no other attempt is made. Refuses to know where a request came from or where its trajectory goes.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

from services.agent_runner.episodes.events import EpisodeLog, Json, Phase
from services.agent_runner.episodes.pacing import Turnstile
from services.agent_runner.metrics import RunnerMetrics
from services.common.errors import Conflict, NotFound, RemoteError
from services.common.ids import session_id
from services.common.wire.rollouts import Failure, Owner, RolloutRequest, Status, TaskRef, TaskStamp, Timings, Trajectory

CANCELLED = "cancelled by request"
REMEMBERED = 256
"""Episodes whose log is kept after their end."""


class Play(Protocol):
    """Plays one episode; `episode.EpisodePlayer.play`."""

    def __call__(self, request: RolloutRequest, *, watch: Callable[[str, Json], None] | None = None) -> Awaitable[Trajectory]:
        """The trajectory. Raises nothing but CancelledError."""
        ...


class Seal(Protocol):
    """Seals a session; `proxy.ProxyClient.seal`."""

    def __call__(self, session_id: str) -> Awaitable[None]:
        """Raises `RemoteError`; status 404 where the session was never opened."""
        ...


class LiveEpisodes:
    """Runs episodes and knows those that run. ``stamp`` names the data behind a task that may not exist."""

    def __init__(self, seal: Seal, stamp: Callable[[TaskRef], Awaitable[TaskStamp]], metrics: RunnerMetrics) -> None:
        self._seal = seal
        self._stamp = stamp
        self._metrics = metrics
        self._turnstile = Turnstile()
        self._running: dict[str, EpisodeLog] = {}
        self._scopes: dict[str, asyncio.Timeout] = {}
        self._ended: OrderedDict[str, EpisodeLog] = OrderedDict()

    async def run(self, request: RolloutRequest, play: Play) -> Trajectory:
        """One episode from queued to finished. Raises nothing but CancelledError: the runner stops, or the lease is lost."""
        log = self._running[request.episode_id] = EpisodeLog(request)
        try:
            trajectory = await self._played(log, play)
        except asyncio.CancelledError:
            log.stop("this runner does not play it any more; another one may")
            raise
        finally:
            self._retire(log)
        log.finish(trajectory)
        self._metrics.count(trajectory)
        return trajectory

    def find(self, episode_id: str) -> EpisodeLog | None:
        """The log of an episode that runs here or ended here lately."""
        return self._running.get(episode_id) or self._ended.get(episode_id)

    def count(self, phase: Phase) -> int:
        """Episodes in a phase before the end."""
        return sum(log.phase is phase for log in self._running.values())

    def cancel(self, episode_id: str) -> None:
        """Ends an episode; once more is no error. Raises `NotFound`, and `Conflict` where it has ended."""
        log = self.find(episode_id)
        if log is None:
            raise NotFound(f"episode_id: no episode {episode_id!r} runs here; ask the runner that plays it", param="episode_id")
        if log.phase is Phase.FINISHED:
            raise Conflict(f"episode {episode_id} has ended; there is nothing to cancel", code="episode_ended")
        scope = self._scopes.get(episode_id)
        if scope is not None and scope.when() is None:
            log.watch("cancelling", {"why": CANCELLED})
            scope.reschedule(asyncio.get_running_loop().time())

    async def _played(self, log: EpisodeLog, play: Play) -> Trajectory:
        started_at, started = time.time(), time.monotonic()
        # A timeout without a deadline: giving it one cancels what is inside, and only that.
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes[log.request.episode_id] = scope
                await self._turnstile.admit()
                log.begin()
                return await play(log.request, watch=log.watch)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            if self._scopes.get(log.request.episode_id) is scope:
                del self._scopes[log.request.episode_id]
        return await self._cancelled(log, Timings(started_at=started_at, total_s=time.monotonic() - started))

    async def _cancelled(self, log: EpisodeLog, timings: Timings) -> Trajectory:
        request = log.request
        return Trajectory(
            **request.model_dump(exclude={"max_steps", "policy_version"}),
            stamp=await self._stamp(request.task),
            status=Status.FAILED,
            termination_reason=f"failed_{Owner.INFRA}",
            failure=Failure(who=Owner.INFRA, why=CANCELLED, final=True),
            messages=log.messages,
            n_turns=log.turn,
            policy_versions=log.versions,
            n_tool_errors=sum(bool(message.get("error")) for message in log.messages),
            session_id=await self._sealed(session_id(request.episode_id, request.attempt)),
            timings=timings,
        )

    async def _sealed(self, session: str) -> str | None:
        try:
            await self._seal(session)
        except RemoteError as error:
            # Unsealed, its tokens count as incomplete and are not trained on either.
            return None if error.status == 404 else session
        return session

    def _retire(self, log: EpisodeLog) -> None:
        episode_id = log.request.episode_id
        # A lost lease may have come back here as the next attempt, which is another log.
        if self._running.get(episode_id) is log:
            del self._running[episode_id]
            self._ended[episode_id] = log
            self._ended.move_to_end(episode_id)
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
