"""Owns what the launcher knows of a running experiment: polled from the store and the policy server, kept when they do not answer."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import RemoteError
from services.common.http import ServiceClient

RATE_WINDOW_S = 30.0
TOKENS_METRIC = "frontdesk_policy_server_generated_tokens_total"
REWARD_METRIC = "rollout/reward"
PAGE = 500
POLL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an experiment at one moment, as people want to see it."""

    phase: str = "starting"
    detail: str = ""
    step: int = 0
    total_steps: int = 0
    policy_version: int = -1
    reward: float | None = None
    """Mean rollout reward of the newest step."""
    episodes: int = 0
    """Finished so far, of all kinds."""
    episodes_per_s: float = 0.0
    tokens_per_s: float = 0.0
    queued: int = 0
    running: int = 0
    ready_groups: int = 0
    trained: int = 0
    dropped: int = 0
    evaluations: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Finished evaluation passes by name, as the ``experiment`` document has them."""


@dataclass(slots=True)
class Rate:
    """Growth per second of a counter over the last `RATE_WINDOW_S` seconds. A counter that falls (restart) starts anew."""

    points: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])

    def add(self, now: float, value: float) -> float:
        """Takes one reading and returns the rate."""
        if self.points and value < self.points[-1][1]:
            self.points.clear()
        self.points.append((now, value))
        while len(self.points) > 2 and self.points[1][0] < now - RATE_WINDOW_S:
            self.points.popleft()
        (first_at, first), (last_at, last) = self.points[0], self.points[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


def counter_total(text: str, name: str) -> float:
    """The sum over all labels of one counter in Prometheus text, 0 where it is absent."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith((name + " ", name + "{")):
            total += float(line.rpartition(" ")[2])
    return total


def rewards_by_step(records: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Mean rollout reward by PPO step. A step that was reported twice (crash after the report) counts as last reported."""
    return {int(record["step"]): float(record["values"][REWARD_METRIC]) for record in records if REWARD_METRIC in record["values"]}


class Watcher:
    """Polls a running experiment."""

    def __init__(self, store: ServiceClient, policy_server: ServiceClient) -> None:
        self.records: list[dict[str, Any]] = []
        """All metrics records so far."""
        self._store = store
        self._policy_server = policy_server
        self._cursor = 0
        self._episodes = Rate()
        self._tokens = Rate()
        self._last: dict[str, Any] = {}

    async def poll(self) -> Snapshot:
        """What is known now. A service that is away leaves its part as it was."""
        await self._refresh("experiment", self._experiment())
        await self._refresh("stats", self._stats())
        await self._refresh("metrics", self._read_metrics())
        await self._refresh("tokens", self._read_tokens())
        return self._snapshot()

    async def _refresh(self, part: str, reading: Any) -> None:
        try:
            self._last[part] = await reading
        except RemoteError:
            return

    async def _experiment(self) -> dict[str, Any]:
        return await self._store.get("/v1/documents/experiment", timeout_s=POLL_TIMEOUT_S)

    async def _stats(self) -> tuple[dict[str, Any], float]:
        stats: dict[str, Any] = await self._store.get("/v1/stats", timeout_s=POLL_TIMEOUT_S)
        return stats, self._episodes.add(time.monotonic(), stats["total"]["trajectories_in"])

    async def _read_metrics(self) -> None:
        while True:
            page = await self._store.get(f"/v1/metrics?after={self._cursor}&limit={PAGE}", timeout_s=POLL_TIMEOUT_S)
            self.records.extend(page["items"])
            self._cursor = page["next"]
            if len(page["items"]) < PAGE:
                return

    async def _read_tokens(self) -> float:
        text = (await self._policy_server.request("GET", "/metrics", timeout_s=POLL_TIMEOUT_S)).decode()
        return self._tokens.add(time.monotonic(), counter_total(text, TOKENS_METRIC))

    def _snapshot(self) -> Snapshot:
        experiment: dict[str, Any] = self._last.get("experiment", {})
        stats, episodes_per_s = self._last.get("stats", ({}, 0.0))
        total: dict[str, Any] = stats.get("total", {})
        train: dict[str, Any] = stats.get("kinds", {}).get("train", {})
        rewards = rewards_by_step(self.records)
        return Snapshot(
            phase=str(experiment.get("phase", "starting")),
            detail=str(experiment.get("detail", "")),
            step=int(experiment.get("step", 0)),
            total_steps=int(experiment.get("total_steps", 0)),
            policy_version=int(experiment.get("policy_version", -1)),
            reward=rewards[max(rewards)] if rewards else None,
            evaluations=experiment.get("evaluations", {}),
            episodes=int(total.get("trajectories_in", 0)),
            episodes_per_s=episodes_per_s,
            tokens_per_s=self._last.get("tokens", 0.0),
            queued=int(total.get("queued", 0)),
            running=int(total.get("running", 0)),
            ready_groups=int(total.get("ready_groups", 0)),
            trained=int(train.get("trained", 0)),
            dropped=int(train.get("dropped", 0)),
        )
