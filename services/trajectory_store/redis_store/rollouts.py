"""Owns the rollout queue in Redis: enqueue, lease, heartbeat, release, sweep."""

from collections.abc import Sequence

from services.common.errors import Conflict
from services.common.wire.rollouts import RolloutRequest
from services.common.wire.store import EnqueueReply, RolloutLease
from services.trajectory_store.redis_store.database import Argument, Database


class RolloutQueue:
    """Edges new → queued → leased → (delayed →) queued of an episode, and leased → final where no attempt is left."""

    def __init__(self, database: Database, max_attempts: int, retry_delay_s: float) -> None:
        self._database = database
        self._retry: tuple[int, float] = (max_attempts, retry_delay_s)

    async def enqueue(self, requests: Sequence[RolloutRequest]) -> EnqueueReply:
        """Queues the requests whose episode is new, all or none. Raises `Conflict` where one does not fit its group."""
        arguments: list[Argument] = []
        for request in requests:
            body = request.model_dump_json()
            arguments += [request.episode_id, request.kind, request.group_id, request.group_size, request.sample_index, body]
        reply = await self._database.run("enqueue", *arguments)
        if reply[0] == b"conflict":
            raise Conflict(reply[1].decode(), code="group_conflict", param="requests")
        return EnqueueReply(enqueued=reply[1], known=reply[2])

    async def lease(self, token: str, worker_id: str, limit: int, ttl_s: float) -> list[RolloutLease]:
        """Leases up to ``limit`` requests. The same token again gives the same leases."""
        flat = await self._database.run("lease_rollouts", token, worker_id, limit, ttl_s, *self._retry)
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
        outcome = await self._database.run("release", lease_id, reason, int(count_attempt), *self._retry)
        return outcome.decode()

    async def sweep(self) -> tuple[int, int]:
        """Ends expired leases and queues what is due: how many episodes were queued and how many became final."""
        queued, final = await self._database.run("sweep", *self._retry)
        return queued, final
