"""Owns batches in Redis: leasing ready groups, joining them with their tokens, ack, nack, extend."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.common.errors import BadRequest, Conflict, NotFound
from services.common.ids import new_id
from services.common.wire.store import AckBatchBody, Batch, Episode, Group, LeaseBatchBody
from services.trajectory_store.redis_store.database import Argument, Database
from services.trajectory_store.redis_store.trajectories import Trajectories
from services.trajectory_store.token_join import episode_of

EXAMPLES_PER_REASON = 5
NAMED_IN_ERROR = 5


class Batches:
    """Edges ready → leased → (ready | done) of a group, by batches."""

    def __init__(self, database: Database, trajectories: Trajectories) -> None:
        self._database = database
        self._trajectories = trajectories

    async def lease(self, body: LeaseBatchBody, *, partial: bool) -> Batch | None:
        """The batch the consumer holds, or a new one; None where there are too few ready groups."""
        found = await self._database.run(
            "lease_batch", new_id("batch"), body.consumer_id, body.kind, body.n_groups, body.ttl_s, int(partial)
        )
        if not found:
            return None
        batch_id, redelivered, expires_at, *rows = found
        return Batch(
            batch_id=batch_id.decode(),
            kind=body.kind,
            groups=await self._join([[name.decode() for name in row] for row in rows]),
            redelivered=bool(redelivered),
            expires_at=float(expires_at),
        )

    async def _join(self, rows: Sequence[Sequence[str]]) -> list[Group]:
        episode_ids = [episode_id for _, *members in rows for episode_id in members]
        found = dict(zip(episode_ids, await self._trajectories.many(episode_ids), strict=True))
        trajectories = {episode_id: body for episode_id, body in found.items() if isinstance(body, dict)}
        sessions = await self._sessions(trajectories.values())
        episodes: dict[str, Episode] = {
            episode_id: episode_of(body, sessions.get(body["session_id"] or "", {})) for episode_id, body in trajectories.items()
        }
        return [Group(group_id=group_id, episodes=[episodes[member] for member in members]) for group_id, *members in rows]

    async def _sessions(self, trajectories: Iterable[dict[str, Any]]) -> Mapping[str, Mapping[bytes, bytes]]:
        session_ids: list[str] = [body["session_id"] for body in trajectories if body["session_id"]]
        pipeline = self._database.pipeline()
        for session_id in session_ids:
            pipeline.hgetall(self._database.keys.session(session_id))
        return dict(zip(session_ids, await self._database.execute(pipeline), strict=True))

    async def ack(self, batch_id: str, body: AckBatchBody) -> None:
        """Marks every episode of a batch trained or dropped. Raises `BadRequest` where they are not exactly the batch's episodes."""
        arguments: list[Argument] = [body.step, body.policy_version, EXAMPLES_PER_REASON, len(body.trained), *body.trained]
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
