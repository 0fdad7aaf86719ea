"""Owns trajectories in Redis: the one edge that makes an episode final by report, reading one, listing in completion order."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from services.common.errors import BadRequest, NotFound
from services.common.wire.rollouts import Trajectory
from services.trajectory_store.outcomes import drop_reason, failed_head, is_retryable, joined, oldest_version, split
from services.trajectory_store.queries import Filters
from services.trajectory_store.redis_store.database import Database, pairs
from services.trajectory_store.redis_store.link import Argument
from services.trajectory_store.redis_store.prefixes import Packed, Prefixes
from services.trajectory_store.rules import Rules
from services.trajectory_store.spill import Bodies, references_in
from services.trajectory_store.tree_codec import expand

Outcome = Literal["stored", "duplicate", "superseded", "retry"]

RECORD_FIELDS = ("state", "head", "request", "attempt", "failed_who", "failed_why", "leased_at", "final_at")
SCAN = 200
"""Heads read at once by a listing."""
SEARCHED = 2000
"""Messages that one request of a text search reads at most; the caller goes on from the cursor."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing."""

    items: list[dict[str, Any]]
    cursor: int
    more: bool
    """Whether something may follow behind the cursor."""


class Trajectories:
    """Final episodes."""

    def __init__(self, database: Database, bodies: Bodies, prefixes: Prefixes, rules: Rules) -> None:
        self._database = database
        self._bodies = bodies
        self._prefixes = prefixes
        self._rules = rules

    async def put(self, trajectory: Trajectory, lease_id: str, calls: Sequence[bytes] | None = None) -> Outcome:
        """Reports an attempt. ``lease_id`` is "" where the caller names none; ``calls`` are its encoded records where it brings them along.

        Raises `BadRequest` where it is another episode's data.
        """
        tree = await self._prefixes.pack(calls) if calls is not None else Packed(b"", "")
        arguments = await self._arguments(trajectory, lease_id, tree, len(calls or ()))
        reply = await self._database.run("put_trajectory", *arguments)
        if reply[0] == b"prefix":
            await self._prefixes.restore(tree.digest)
            reply = await self._database.run("put_trajectory", *arguments)
        if reply[0] == b"mismatch":
            kind, group = reply[1].decode(), reply[2].decode()
            raise BadRequest(
                f"group_id, kind: episode {trajectory.episode_id} was enqueued with group_id={group} and kind={kind}, "
                f"the trajectory says {trajectory.group_id} and {trajectory.kind}",
                param="group_id",
            )
        return cast("Outcome", reply[0].decode())

    async def _arguments(self, trajectory: Trajectory, lease_id: str, tree: Packed, n_calls: int) -> list[Argument]:
        head, messages = split(trajectory)
        name = f"{trajectory.episode_id}.{trajectory.attempt}"
        held_messages, held_tree = await self._bodies.keep(f"{name}.messages", messages), await self._bodies.keep(f"{name}.tree", tree.blob)
        spilled = references_in(held_messages, held_tree)
        failure = trajectory.failure
        version = oldest_version(trajectory)
        return [
            trajectory.episode_id,
            trajectory.attempt,
            lease_id,
            trajectory.kind,
            trajectory.group_id,
            int(is_retryable(trajectory)),
            failure.who if failure else "",
            failure.why if failure else "",
            head,
            held_messages,
            *self._rules.retry,
            int(failure is None),
            "" if version is None else version,
            trajectory.session_id or "",
            held_tree,
            n_calls,
            len(messages) + len(tree.blob),
            orjson.dumps(spilled) if spilled else "",
            drop_reason(trajectory),
            tree.digest,
        ]

    async def get(self, episode_id: str) -> dict[str, Any]:
        """The trajectory as JSON-able dict. Raises `NotFound` where the episode is unknown or not final."""
        found = await self.many([episode_id])
        if isinstance(found[0], str):
            state = found[0] or "not known"
            raise NotFound(f"episode {episode_id} is {state}; it has a trajectory once it is final", code="no_trajectory")
        return found[0]

    async def many(self, episode_ids: Sequence[str]) -> list[dict[str, Any] | str]:
        """The trajectories with messages, or the state ("" for unknown) of those that are not final."""
        heads, bodies = await self._heads(episode_ids), await self._messages(episode_ids)
        return [joined(head, body) if isinstance(head, dict) else head for head, body in zip(heads, bodies, strict=True)]

    async def with_sessions(self, episode_ids: Sequence[str]) -> list[tuple[dict[str, Any], Sequence[bytes]]]:
        """The trajectories of final episodes with messages, each with its session as a flat hash; others are left out."""
        rows = await self._database.run("batch_content", len(RECORD_FIELDS), *RECORD_FIELDS, *episode_ids)
        found: list[tuple[dict[str, Any], Sequence[bytes]]] = []
        for record, held, session in rows:
            head = _head(record)
            if isinstance(head, dict):
                found.append((joined(head, await self._load(held)), session))
        return found

    async def page(self, after: int, limit: int, filters: Filters) -> Page:
        """Up to ``limit`` heads after the cursor in completion order, and the cursor behind the last episode looked at."""
        items: list[dict[str, Any]] = []
        searched = 0
        while True:
            rows = await self._completed(after)
            if not rows:
                return Page(items, after, more=False)
            for number, head in await self._kept(rows, filters):
                after = number
                if head is not None:
                    items.append(head)
                if len(items) == limit:
                    return Page(items, after, more=True)
            searched += len(rows)
            if filters.text is not None and searched >= SEARCHED:
                return Page(items, after, more=True)

    async def _kept(self, rows: Sequence[tuple[bytes, float]], filters: Filters) -> list[tuple[int, dict[str, Any] | None]]:
        """(completion number, head where the filters keep it) of each row."""
        names = [name.decode() for name, _ in rows]
        heads = [head if isinstance(head, dict) and filters.keeps(head) else None for head in await self._heads(names)]
        if filters.text is not None:
            wanted = [name for name, head in zip(names, heads, strict=True) if head is not None]
            bodies = dict(zip(wanted, await self._messages(wanted), strict=True))
            heads = [
                head if head is not None and filters.found_in(expand(bodies[name] or b"[]")) else None
                for name, head in zip(names, heads, strict=True)
            ]
        return [(int(number), head) for (_, number), head in zip(rows, heads, strict=True)]

    async def _completed(self, after: int) -> list[tuple[bytes, float]]:
        key = self._database.keys.completed
        flat = await self._database.command("ZRANGEBYSCORE", key, f"({after}", "+inf", "WITHSCORES", "LIMIT", 0, SCAN)
        return [(name, float(number)) for name, number in pairs(flat).items()]

    async def _heads(self, episode_ids: Sequence[str]) -> list[dict[str, Any] | str]:
        keys = self._database.keys
        records = await self._database.many([("HMGET", keys.episode(episode_id), *RECORD_FIELDS) for episode_id in episode_ids])
        return [_head(record) for record in records]

    async def _messages(self, episode_ids: Sequence[str]) -> list[bytes | None]:
        held = await self._database.many([("GET", self._database.keys.messages(episode_id)) for episode_id in episode_ids])
        return list(await asyncio.gather(*(self._load(body) for body in held)))

    async def _load(self, held: bytes | None) -> bytes | None:
        return None if held is None else await self._bodies.load(held)


def _head(record: Sequence[bytes | None]) -> dict[str, Any] | str:
    values = [value or b"" for value in record]
    state, head, request, attempt, who, why, leased_at, final_at = values
    if state != b"final":
        return state.decode()
    if head:
        return orjson.loads(head)
    return failed_head(request, int(attempt), who.decode(), why.decode(), float(leased_at or 0), float(final_at))
