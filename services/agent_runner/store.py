"""Owns talking to `trajectory_store`: leasing rollout requests, keeping and returning leases, reporting trajectories.

Every method raises `RemoteError` where the store cannot be had. Refuses to cache: the store is the only memory.
"""

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.rollouts import Trajectory
from services.common.wire.store import (
    HeartbeatBody,
    HeartbeatReply,
    LeaseRolloutsBody,
    LeaseRolloutsReply,
    PutTrajectoryReply,
    ReleaseBody,
    RolloutLease,
)


class StoreClient:
    """The routes of the store that a worker needs."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def lease(self, worker_id: str, limit: int, ttl_s: float, wait_s: float) -> list[RolloutLease]:
        """Up to ``limit`` requests; waits up to ``wait_s`` for the first. Not retried: a lost answer holds its leases until they expire."""
        body = LeaseRolloutsBody(worker_id=worker_id, limit=limit, ttl_s=ttl_s, wait_s=wait_s)
        raw = await self._client.post("/v1/rollouts/lease", body.model_dump(mode="json"), timeout_s=wait_s + 15)
        return LeaseRolloutsReply.model_validate(raw).leases

    async def heartbeat(self, worker_id: str, lease_ids: list[str], ttl_s: float) -> list[str]:
        """Renews leases; returns those that are lost."""
        body = HeartbeatBody(worker_id=worker_id, lease_ids=lease_ids, ttl_s=ttl_s)
        raw = await self._client.post("/v1/rollouts/heartbeat", body.model_dump(mode="json"), timeout_s=ttl_s / 3)
        return HeartbeatReply.model_validate(raw).lost

    async def release(self, lease_id: str, reason: str, *, count_attempt: bool, timeout_s: float = 5.0) -> None:
        """Gives a lease back unfinished."""
        body = ReleaseBody(lease_id=lease_id, reason=reason, count_attempt=count_attempt)
        await self._client.post("/v1/rollouts/release", body.model_dump(mode="json"), timeout_s=timeout_s)

    async def put(self, trajectory: Trajectory, lease_id: str | None, retry_s: float) -> str:
        """Reports a finished episode; returns the store's verdict (`PutTrajectoryReply.outcome`)."""
        headers = {} if lease_id is None else {"X-Lease-Id": lease_id}
        path = f"/v1/trajectories/{trajectory.episode_id}"
        raw = await self._client.put(path, trajectory.model_dump(mode="json"), headers=headers, retry_s=retry_s)
        return PutTrajectoryReply.model_validate(raw).outcome

    async def get(self, episode_id: str) -> Trajectory | None:
        """A finished episode, or None where the store has none of that id."""
        try:
            return Trajectory.model_validate(await self._client.get(f"/v1/trajectories/{episode_id}"))
        except RemoteError as error:
            if error.status == 404:
                return None
            raise

    async def page(self, after: int, *, kind: str, limit: int = 500) -> tuple[list[Trajectory], int]:
        """Up to ``limit`` trajectories without messages after a cursor, in completion order, and the cursor behind them."""
        raw = await self._client.get(f"/v1/trajectories?after={after}&limit={limit}&kind={kind}")
        return [Trajectory.model_validate(item) for item in raw["items"]], int(raw["next"])
