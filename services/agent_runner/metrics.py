"""Owns the runner's Prometheus metrics.

Means of rewards are a quotient of two metrics, and so is the do-nothing floor beside each: the sums go over the same episodes, so the two
means can be compared whatever mix of tasks was played.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from services.agent_runner.episodes.pacing import LoopLag
from services.common.errors import ServiceError
from services.common.wire.rollouts import TaskRef, Trajectory

if TYPE_CHECKING:
    from services.common.app import Metrics

log = logging.getLogger(__name__)

REWARDS_WAITING = 16384
"""Rewards whose floor is not known yet."""
LAG_QUANTILES = {"0.5": 0.5, "0.99": 0.99, "1": 1.0}


class RunnerMetrics:
    """What the runner counts. ``floor_of`` gives what doing nothing earns on a task."""

    def __init__(self, metrics: "Metrics", floor_of: Callable[[TaskRef], Awaitable[float]]) -> None:
        self._floor_of = floor_of
        self._episodes = metrics.counter(
            "episodes_total", "Episodes ended, by domain, status and, where they failed, whose fault it is", ("domain", "status", "owner")
        )
        self._turns = metrics.counter("turns_total", "Calls of the policy in ended episodes", ("domain",))
        self._user_turns = metrics.counter("user_turns_total", "Turns of simulated users in ended episodes, by fault label", ("fault",))
        # Gauges, because a reward may be negative and a counter may not go down.
        self._rewards = metrics.gauge("reward_sum", "Sum of the rewards of episodes that have one", ("domain",))
        self._floors = metrics.gauge("floor_sum", "Sum of what doing nothing would have earned in the same episodes", ("domain",))
        self._rewarded = metrics.counter("rewarded_episodes_total", "Episodes in both sums", ("domain",))
        self._lag = metrics.gauge("event_loop_lag_seconds", "How late the event loop runs a timer, over the last minute", ("quantile",))
        self._running = metrics.gauge("episodes_now", "Episodes here now, by phase", ("phase",))
        self._waiting: asyncio.Queue[tuple[TaskRef, float]] = asyncio.Queue(REWARDS_WAITING)

    def observe(self, lag: LoopLag, running: Callable[[], int], queued: Callable[[], int]) -> None:
        """Reads off the gauges when Prometheus asks."""
        for label, q in LAG_QUANTILES.items():
            self._lag.labels(label).set_function(lambda q=q: lag.quantile(q))
        self._running.labels("running").set_function(running)
        self._running.labels("queued").set_function(queued)

    def count(self, trajectory: Trajectory) -> None:
        """Takes in an episode that has ended. Its reward shows once the floor of its task is known, see `run`."""
        domain = trajectory.task.domain
        owner = trajectory.failure.who.value if trajectory.failure else ""
        self._episodes.labels(domain, trajectory.status.value, owner).inc()
        self._turns.labels(domain).inc(trajectory.n_turns)
        for fault, count in trajectory.user_faults.items():
            self._user_turns.labels(fault).inc(count)
        if trajectory.reward is None:
            return
        try:
            self._waiting.put_nowait((trajectory.task, trajectory.reward))
        except asyncio.QueueFull:
            log.error("reward metrics: over %d rewards wait for the floors of their tasks; this one is left out", REWARDS_WAITING)

    async def run(self) -> None:
        """Adds rewards and floors for as long as the service runs."""
        while True:
            task, reward = await self._waiting.get()
            try:
                floor = await self._floor_of(task)
            except ServiceError as error:
                log.warning("reward metrics: no floor for %s, its reward is left out: %s", task, error.detail)
                continue
            self._rewards.labels(task.domain).inc(reward)
            self._floors.labels(task.domain).inc(floor)
            self._rewarded.labels(task.domain).inc()
