"""Owns the small shared facts of a trial in Redis: the policy-version log, metrics, documents."""

from typing import Any

import orjson

from services.common.errors import Conflict, NotFound
from services.common.wire.store import MetricsRecord, PolicyVersion
from services.trajectory_store.redis_store.database import Database


class Experiment:
    """Written by the trainer, read by everybody."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, version: PolicyVersion) -> PolicyVersion:
        """Logs a version; the same again is the same. Raises `Conflict` where it was published with another path."""
        stored = _version(
            version.version,
            await self._database.run("publish_version", version.version, version.path, version.step, version.published_at),
        )
        if stored.path != version.path:
            raise Conflict(
                f"policy version {version.version} was published as {stored.path}; publish {version.path} under a new number",
                code="version_published",
            )
        return stored

    async def latest(self) -> PolicyVersion:
        """The highest version. Raises `NotFound` where none was published."""
        newest = await self._database.command("ZREVRANGE", self._database.keys.policy_versions, 0, 0)
        if not newest:
            raise NotFound("no policy version was published yet", code="no_policy_version")
        key = self._database.keys.policy_version(newest[0].decode())
        return _version(int(newest[0]), await self._database.command("HMGET", key, "path", "step", "published_at"))

    async def append_metrics(self, record: MetricsRecord) -> None:
        """Appends a line; ``at`` becomes now where it is 0."""
        if not record.at:
            now, micros = await self._database.command("TIME")
            record = record.model_copy(update={"at": int(now) + int(micros) / 1e6})
        await self._database.run("append_metrics", orjson.dumps(record.model_dump(mode="json")))

    async def metrics(self, after: int, limit: int) -> tuple[list[Any], int]:
        """Up to ``limit`` lines after the first ``after`` ones that were ever written, and the cursor behind them."""
        first, lines = await self._database.run("list_metrics", after, limit)
        return [orjson.loads(line) for line in lines], first + len(lines)

    async def put_document(self, name: str, document: dict[str, Any]) -> None:
        """Replaces a document."""
        await self._database.command("HSET", self._database.keys.documents, name, orjson.dumps(document))

    async def document(self, name: str) -> dict[str, Any]:
        """A document. Raises `NotFound`."""
        found = await self._database.command("HGET", self._database.keys.documents, name)
        if found is None:
            raise NotFound(f"document {name} does not exist", code="no_document")
        return orjson.loads(found)

    async def number(self, name: str) -> int:
        """A number that a background loop keeps, 0 where it kept none."""
        return int(await self._database.command("HGET", self._database.keys.totals, name) or 0)

    async def set_number(self, name: str, value: int) -> None:
        """Keeps a number."""
        await self._database.command("HSET", self._database.keys.totals, name, value)


def _version(version: int, fields: Any) -> PolicyVersion:
    path, step, published_at = fields
    return PolicyVersion(version=version, path=path.decode(), step=int(step), published_at=float(published_at))
