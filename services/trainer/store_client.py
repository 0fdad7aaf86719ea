"""Owns the trainer's view of the trajectory store: one typed method a route, with retries that outlast a restart of the store."""

from typing import Any, Self, cast
from urllib.parse import quote, urlencode

import msgspec

from services.common.app import admin_headers
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.rollouts import Kind, RolloutRequest, Trajectory
from services.common.wire.store import (
    AckBatchBody,
    Batch,
    EnqueueBody,
    EnqueueReply,
    ExtendBody,
    LeaseBatchBody,
    MetricsRecord,
    PolicyVersion,
    Stats,
)

RETRY_S = 300.0
"""A store that is away this long is reported as a failure; the experiment's supervisor then starts the phase again."""

PAGE = 500
ENQUEUE_CHUNK = 1000

_batches = msgspec.msgpack.Decoder(Batch)


class StoreClient:
    """A client of one trial's trajectory store. Every method raises `RemoteError` once the retries are used up."""

    def __init__(self, base_url: str, *, retry_s: float = RETRY_S) -> None:
        self._http = ServiceClient("trajectory_store", base_url, timeout_s=60.0, retry_s=retry_s, headers=admin_headers())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def ready(self, timeout_s: float = 2.0) -> str:
        """ "ok", or why the store cannot be reached."""
        try:
            await self._http.get("/healthz", timeout_s=timeout_s, retry_s=0.0)
        except RemoteError as error:
            return str(error)
        return "ok"

    async def enqueue(self, requests: list[RolloutRequest]) -> int:
        """Asks for episodes; returns how many of them the store did not know yet."""
        fresh = 0
        for start in range(0, len(requests), ENQUEUE_CHUNK):
            body = EnqueueBody(requests=requests[start : start + ENQUEUE_CHUNK])
            fresh += EnqueueReply.model_validate(await self._http.post("/v1/rollouts", body.model_dump(mode="json"))).enqueued
        return fresh

    async def lease(self, body: LeaseBatchBody) -> Batch | None:
        """Ready groups with their tokens, or None where none (or too few) were ready within ``body.wait_s``."""
        reply = await self._http.request("POST", "/v1/batches/lease", json=body.model_dump(mode="json"), timeout_s=body.wait_s + 60.0)
        batch = _batches.decode(reply)
        return batch if batch.batch_id else None

    async def ack(self, batch_id: str, body: AckBatchBody) -> None:
        """Says of every episode of a batch what became of it. Idempotent. 409 where the batch was given to others meanwhile."""
        await self._http.post(f"/v1/batches/{quote(batch_id)}/ack", body.model_dump(mode="json"))

    async def extend(self, batch_id: str, ttl_s: float) -> None:
        """Keeps a batch for ``ttl_s`` more seconds."""
        await self._http.post(f"/v1/batches/{quote(batch_id)}/extend", ExtendBody(ttl_s=ttl_s).model_dump(mode="json"))

    async def groups(self, kind: Kind) -> tuple[int, int]:
        """(ready, open) groups of a kind."""
        reply = await self._http.get(f"/v1/groups?{urlencode({'kind': kind})}")
        return int(reply["ready"]), int(reply["open"])

    async def trajectories(self, kind: Kind) -> list[Trajectory]:
        """Every final trajectory of a kind, without messages, in the order of completion."""
        items: list[Trajectory] = []
        after: Any = 0
        while True:
            reply = await self._http.get(f"/v1/trajectories?{urlencode({'kind': kind, 'after': after, 'limit': PAGE})}")
            page = cast("list[Any]", reply["items"])
            items += [Trajectory.model_validate(item) for item in page]
            if len(page) < PAGE:
                return items
            after = reply["next"]

    async def publish_version(self, version: PolicyVersion) -> None:
        """Logs published weights. Idempotent; 409 where the version was published from another path."""
        await self._http.post("/v1/policy_versions", version.model_dump(mode="json"))

    async def append_metrics(self, record: MetricsRecord) -> None:
        """Appends one line of metrics. Not idempotent: a retry may append it twice, and readers take the last line of a step."""
        await self._http.post("/v1/metrics", record.model_dump(mode="json"))

    async def put_document(self, name: str, content: dict[str, Any]) -> None:
        """Replaces a shared document."""
        await self._http.put(f"/v1/documents/{quote(name)}", content)

    async def stats(self) -> Stats:
        """The store's accounts."""
        return Stats.model_validate(await self._http.get("/v1/stats"))
