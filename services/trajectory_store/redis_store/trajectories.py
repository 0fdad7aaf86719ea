"""Owns trajectories in Redis: the one edge that makes an episode final by report, reading one, listing in completion order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from services.common.errors import BadRequest, NotFound
from services.common.wire.rollouts import Trajectory
from services.trajectory_store.outcomes import failed_head, is_retryable, joined, split
from services.trajectory_store.redis_store.database import Database

Outcome = Literal["stored", "duplicate", "superseded", "retry"]

RECORD_FIELDS = ("state", "head", "request", "attempt", "failed_who", "failed_why", "leased_at", "final_at")
SCAN = 200
"""Heads read at once by a listing."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a listing keeps; None keeps everything."""

    kind: str | None = None
    group_id: str | None = None
    task_id: str | None = None
    status: str | None = None

    def keeps(self, head: dict[str, Any]) -> bool:
        """Whether a trajectory head passes."""
        pairs = (
            (self.kind, head["kind"]),
            (self.group_id, head["group_id"]),
            (self.task_id, head["task"]["task_id"]),
            (self.status, head["status"]),
        )
        return all(wanted is None or wanted == value for wanted, value in pairs)


class Trajectories:
    """Final episodes."""

    def __init__(self, database: Database, max_attempts: int, retry_delay_s: float) -> None:
        self._database = database
        self._retry: tuple[int, float] = (max_attempts, retry_delay_s)

    async def put(self, trajectory: Trajectory, lease_id: str) -> Outcome:
        """Reports an attempt. ``lease_id`` is "" where the caller names none. Raises `BadRequest` where it is another episode's data."""
        head, messages = split(trajectory)
        failure = trajectory.failure
        reply = await self._database.run(
            "put_trajectory",
            trajectory.episode_id,
            trajectory.attempt,
            lease_id,
            trajectory.kind,
            trajectory.group_id,
            int(is_retryable(trajectory)),
            failure.who if failure else "",
            failure.why if failure else "",
            head,
            messages,
            *self._retry,
        )
        if reply[0] == b"mismatch":
            kind, group = reply[1].decode(), reply[2].decode()
            raise BadRequest(
                f"group_id, kind: episode {trajectory.episode_id} was enqueued with group_id={group} and kind={kind}, "
                f"the trajectory says {trajectory.group_id} and {trajectory.kind}",
                param="group_id",
            )
        return cast("Outcome", reply[0].decode())

    async def get(self, episode_id: str) -> dict[str, Any]:
        """The trajectory as JSON-able dict. Raises `NotFound` where the episode is unknown or not final."""
        found = await self.many([episode_id])
        if isinstance(found[0], str):
            state = found[0] or "not known"
            raise NotFound(f"episode {episode_id} is {state}; it has a trajectory once it is final", code="no_trajectory")
        return found[0]

    async def many(self, episode_ids: Sequence[str]) -> list[dict[str, Any] | str]:
        """The trajectories with messages, or the state ("" for unknown) of those that are not final."""
        pipeline = self._database.pipeline()
        for episode_id in episode_ids:
            pipeline.hmget(self._database.keys.episode(episode_id), RECORD_FIELDS)
            pipeline.get(self._database.keys.messages(episode_id))
        answers = await self._database.execute(pipeline)
        heads = [_head(record) for record in answers[::2]]
        return [joined(head, body) if isinstance(head, dict) else head for head, body in zip(heads, answers[1::2], strict=True)]

    async def page(self, after: int, limit: int, filters: Filters) -> tuple[list[dict[str, Any]], int]:
        """Up to ``limit`` heads after the cursor in completion order, and the cursor behind the last episode looked at."""
        items: list[dict[str, Any]] = []
        while True:
            rows = await self._completed(after)
            if not rows:
                return items, after
            heads = await self._heads([name.decode() for name, _ in rows])
            for (_, number), head in zip(rows, heads, strict=True):
                after = int(number)
                if isinstance(head, dict) and filters.keeps(head):
                    items.append(head)
                if len(items) == limit:
                    return items, after

    async def _completed(self, after: int) -> list[tuple[bytes, float]]:
        pipeline = self._database.pipeline()
        pipeline.zrangebyscore(self._database.keys.completed, f"({after}", "+inf", start=0, num=SCAN, withscores=True)
        [rows] = await self._database.execute(pipeline)
        return rows

    async def _heads(self, episode_ids: Sequence[str]) -> list[dict[str, Any] | str]:
        pipeline = self._database.pipeline()
        for episode_id in episode_ids:
            pipeline.hmget(self._database.keys.episode(episode_id), RECORD_FIELDS)
        return [_head(record) for record in await self._database.execute(pipeline)]


def _head(record: Sequence[bytes | None]) -> dict[str, Any] | str:
    values = [value or b"" for value in record]
    state, head, request, attempt, who, why, leased_at, final_at = values
    if state != b"final":
        return state.decode()
    if head:
        return orjson.loads(head)
    return failed_head(request, int(attempt), who.decode(), why.decode(), float(leased_at or 0), float(final_at))
