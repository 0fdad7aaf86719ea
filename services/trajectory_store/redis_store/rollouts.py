"""Owns the rollout queue in Redis: enqueue, lease, heartbeat, release, cancel, pause, sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import Busy, Conflict
from services.common.wire.rollouts import Kind, RolloutRequest
from services.common.wire.store import CancelReply, EnqueueReply, RolloutLease
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.redis_store.link import Argument, Command
from services.trajectory_store.rules import Rules


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did, and the numbers by which lost writes are seen."""

    queued: int
    final: int
    beat: int
    enqueued: int
    completed: int

    def is_behind(self, earlier: "Sweep") -> bool:
        """Whether a number that only grows went back since an earlier sweep: Redis lost writes."""
        return self.beat <= earlier.beat or self.enqueued < earlier.enqueued or self.completed < earlier.completed


class RolloutQueue:
    """Edges new → queued → leased → (delayed →) queued of an episode, and → final where no attempt is left or wanted."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._rules = rules

    async def enqueue(self, requests: Sequence[RolloutRequest]) -> EnqueueReply:
        """Queues the requests whose episode is new, all or none.

        Raises `Conflict` where one does not fit its group or an alarm stands, `Busy` where too many wait already.
        """
        arguments: list[Argument] = [self._rules.group_quorum, self._rules.max_queued]
        for request in requests:
            body = request.model_dump_json()
            arguments += [request.episode_id, request.kind, request.group_id, request.group_size, request.sample_index, body]
        reply = await self._database.run("enqueue", *arguments)
        if reply[0] == b"conflict":
            raise Conflict(reply[1].decode(), code="group_conflict", param="requests")
        if reply[0] == b"full":
            text = f"{reply[1]} episodes wait already, more than {self._rules.max_queued} are refused"
            raise Busy(text, code="queue_full", retry_after_s=5)
        if reply[0] == b"alarm":
            raise Conflict(
                f"no more train episodes are taken: {reply[1].decode()}. Look at GET /v1/drops, correct the filter, "
                "then POST /v1/alarms/filter_rejects_all/clear",
                code="filter_rejects_all",
            )
        return EnqueueReply(enqueued=reply[1], known=reply[2])

    async def lease(self, token: str, worker_id: str, limit: int, ttl_s: float) -> list[RolloutLease]:
        """Leases up to ``limit`` requests. The same token again gives the same leases."""
        arguments = (token, worker_id, limit, ttl_s, self._rules.group_deadline_s, *self._rules.retry)
        flat = await self._database.run("lease_rollouts", *arguments)
        return [
            RolloutLease(
                lease_id=lease.decode(),
                request=RolloutRequest.model_validate_json(request).model_copy(update={"attempt": int(attempt)}),
                expires_at=float(expires),
            )
            for lease, attempt, expires, request in zip(*(flat[i::4] for i in range(4)), strict=True)
        ]

    async def heartbeat(self, worker_id: str, ttl_s: float, lease_ids: Sequence[str]) -> list[str]:
        """Renews the leases and returns those that are not the worker's."""
        lost = await self._database.run("heartbeat", worker_id, ttl_s, *lease_ids)
        return [lease_id.decode() for lease_id in lost]

    async def release(self, lease_id: str, reason: str, count_attempt: bool) -> str:
        """Ends a lease without a trajectory. "unknown" (it ended already), "queued", "retry" or "final"."""
        outcome = await self._database.run("release", lease_id, reason, int(count_attempt), *self._rules.retry)
        return outcome.decode()

    async def cancel(self, episode_ids: Sequence[str], group_ids: Sequence[str], reason: str) -> CancelReply:
        """Makes episodes final without a result. What is final already stays as it is."""
        cancelled, final, unknown = await self._database.run("cancel", reason, len(episode_ids), *episode_ids, *group_ids)
        return CancelReply(cancelled=cancelled, final=final, unknown=[name.decode() for name in unknown])

    async def set_paused(self, kinds: Sequence[Kind], reason: str | None) -> tuple[int, Mapping[str, str]]:
        """Pauses leasing of some kinds with a reason, or resumes it (None). Returns the episodes of them that still run, and all pauses."""
        running, flat = await self._database.run("pause", int(reason is not None), reason or "", *kinds)
        return running, {kind.decode(): why.decode() for kind, why in zip(flat[::2], flat[1::2], strict=True)}

    async def demand(self) -> tuple[int, int]:
        """(episodes that could be leased now, episodes that run), over all kinds that are not paused."""
        keys = self._database.keys
        commands: list[Command] = []
        for kind in Kind:
            commands += [("ZCARD", keys.queue(kind)), ("ZCARD", keys.leases(kind)), ("HEXISTS", keys.paused, kind)]
        answers = await self._database.many(commands)
        queued = sum(0 if paused else count for count, paused in zip(answers[::3], answers[2::3], strict=True))
        return queued, sum(answers[1::3])

    async def sweep(self) -> Sweep:
        """Ends expired leases, queues what is due, closes groups past their deadline."""
        return Sweep(*await self._database.run("sweep", *self._rules.retry))
