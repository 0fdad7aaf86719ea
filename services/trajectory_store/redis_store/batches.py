"""Owns batches in Redis: leasing ready groups, joining them with their tokens, shards, ack, nack, extend."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.ids import new_id
from services.common.wire.store import AckBatchBody, Batch, Group, LeaseBatchBody
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.redis_store.link import Argument
from services.trajectory_store.redis_store.sessions import Sessions
from services.trajectory_store.redis_store.trajectories import Trajectories
from services.trajectory_store.rules import Rules
from services.trajectory_store.shards import shard_of
from services.trajectory_store.token_join import episode_of

NAMED_IN_ERROR = 5


@dataclass(frozen=True, slots=True)
class Leased:
    """A batch without its content."""

    batch: Batch
    """``groups`` is empty."""
    rows: list[list[str]]
    """Per group its id and the episodes it hands out."""


class Batches:
    """Edges ready → leased → (ready | done) of a group, by batches."""

    def __init__(self, database: Database, trajectories: Trajectories, sessions: Sessions, rules: Rules) -> None:
        self._database = database
        self._trajectories = trajectories
        self._sessions = sessions
        self._rules = rules

    async def lease(self, body: LeaseBatchBody, *, partial: bool) -> Leased | None:
        """The batch the consumer holds, or a new one; None where there are too few ready groups."""
        oldest = await self._oldest_fresh(body)
        found = await self._database.run(
            "lease_batch", new_id("batch"), body.consumer_id, body.kind, body.n_groups, body.ttl_s, int(partial), oldest
        )
        if not found:
            return None
        batch_id, redelivered, expires_at, *rows = found
        batch = Batch(batch_id=batch_id.decode(), kind=body.kind, groups=[], redelivered=bool(redelivered), expires_at=float(expires_at))
        return Leased(batch, [[name.decode() for name in row] for row in rows])

    async def _oldest_fresh(self, body: LeaseBatchBody) -> int | str:
        if body.max_staleness is None:
            return ""
        version = body.policy_version
        if version is None:
            newest = await self._database.command("ZREVRANGE", self._database.keys.policy_versions, 0, 0)
            version = int(newest[0]) if newest else 0
        return version - body.max_staleness

    async def shard(self, batch_id: str, rank: int, world: int) -> Leased:
        """The groups of a leased batch that one of ``world`` data-parallel ranks reads. Raises `Conflict` where it is not leased."""
        state, kind, expires_at, *rows = await self._database.run("batch_members", batch_id)
        if not state:
            raise _unknown(batch_id)
        if state != b"leased":
            raise _not_leased(batch_id, state)
        mine = shard_of([int(row[1]) for row in rows], world, rank)
        batch = Batch(batch_id=batch_id, kind=kind.decode(), groups=[], expires_at=float(expires_at))
        return Leased(batch, [[rows[position][0].decode(), *(name.decode() for name in rows[position][2:])] for position in mine])

    async def groups(self, leased: Leased) -> AsyncIterator[Group]:
        """The content of a batch, group by group, so that a batch is never in memory as a whole."""
        for group_id, *episode_ids in leased.rows:
            yield await self._group(group_id, episode_ids)

    async def _group(self, group_id: str, episode_ids: Sequence[str]) -> Group:
        found = await self._trajectories.with_sessions(episode_ids)
        return Group(group_id=group_id, episodes=[episode_of(body, await self._sessions.loaded(session)) for body, session in found])

    async def ack(self, batch_id: str, body: AckBatchBody) -> bool:
        """Marks every episode of a batch trained or dropped; True where the filter alarm stands now.

        Raises `BadRequest` where they are not exactly the batch's episodes.
        """
        patience = self._rules.alarm_after_barren_groups
        arguments: list[Argument] = [body.step, body.policy_version, patience, len(body.trained), *body.trained]
        for episode_id, reason in body.dropped.items():
            arguments += [episode_id, reason]
        reply = await self._database.run("ack_batch", batch_id, *arguments)
        if reply[0] == b"unknown":
            raise _unknown(batch_id)
        if reply[0] == b"state":
            raise _not_leased(batch_id, reply[1])
        if reply[0] == b"partition":
            raise BadRequest(
                f"trained, dropped: together they must name every episode of batch {batch_id} once; "
                f"missing {_some(reply[1])}, not in the batch {_some(reply[2])}",
                code="not_a_partition",
                param="trained",
            )
        return bool(reply[1])

    async def nack(self, batch_id: str) -> None:
        """Gives the groups back. Raises `Conflict` where the batch is acked."""
        state = await self._database.run("nack_batch", batch_id)
        if not state:
            raise _unknown(batch_id)
        if state == b"acked":
            raise _not_leased(batch_id, state)

    async def extend(self, batch_id: str, ttl_s: float) -> None:
        """Keeps the batch for ``ttl_s`` more seconds. Raises `Conflict` where it is no longer leased."""
        state = await self._database.run("extend_batch", batch_id, ttl_s)
        if not state:
            raise _unknown(batch_id)
        if state != b"leased":
            raise _not_leased(batch_id, state)


def _unknown(batch_id: str) -> NotFound:
    return NotFound(f"batch {batch_id} is not known", code="batch_unknown")


def _not_leased(batch_id: str, state: bytes) -> Conflict:
    return Conflict(f"batch {batch_id} is {state.decode()}; lease again to get groups", code=f"batch_{state.decode()}")


def _some(names: Sequence[bytes]) -> str:
    shown = [name.decode() for name in names[:NAMED_IN_ERROR]]
    return f"{len(names)} ({', '.join(shown)})" if shown else "none"
