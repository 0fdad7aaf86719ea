"""Owns reading the accounts from Redis: counts per kind, group numbers, the the drop ledger."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.wire.rollouts import Kind
from services.common.wire.store import Stats
from services.trajectory_store.accounts import Tally, counts_of, total_of
from services.trajectory_store.redis_store.database import Database, pairs

SUPERSEDED = "superseded"


class Ledger:
    """Reads only; every number is written by the edge that changes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stats(self) -> Stats:
        """All counts, taken at one moment."""
        *rows, (latest, trajectories, n_bytes, alarms, paused, losses) = await self._database.run("stats")
        kinds = {Kind(kind.decode()): counts_of(_tally(numbers)) for kind, *numbers in rows}
        return Stats(
            kinds=kinds,
            total=total_of(kinds.values()),
            policy_version=int(latest),
            trajectories=trajectories,
            body_bytes=n_bytes,
            alarms=_texts(alarms),
            paused=_texts(paused),
            losses=_texts(losses),
        )

    async def note_loss(self, when: int | str, text: str) -> None:
        """Keeps for good that acknowledged writes were lost, or may have been. ``when`` is a beat or the Redis process that began then."""
        await self._database.command("HSET", self._database.keys.losses, when, text)

    async def clear_alarm(self, name: str) -> bool:
        """Takes an alarm back; False where it was not raised."""
        return bool(await self._database.run("clear_alarm", name))

    async def groups(self, kinds: Sequence[Kind]) -> dict[str, int]:
        """How many groups are ready and how many still miss members."""
        keys = self._database.keys
        counts = [("ZCARD", keys.ready(kind)) for kind in kinds] + [("SCARD", keys.open_groups(kind)) for kind in kinds]
        answers = await self._database.many(counts)
        return {"ready": sum(answers[: len(kinds)]), "open": sum(answers[len(kinds) :])}

    async def drops(self, limit: int) -> dict[str, Any]:
        """Counts per reason over all kinds, with up to ``limit`` of the first episodes dropped for each.

        ``attempts`` are no drops, because another attempt of the episode counts: superseded ones, named ``id#attempt``. ``sessions`` are
        those that were forgotten without a trajectory, by reason.
        """
        keys = self._database.keys
        counts: Counter[str] = Counter()
        for answer in await self._database.many([("HGETALL", keys.drops(kind)) for kind in Kind]):
            counts.update(_numbers(pairs(answer)))
        wanted = [("LRANGE", keys.drop_examples(reason), 0, limit - 1) for reason in (*counts, SUPERSEDED)]
        answers = await self._database.many([*wanted, *(("HGET", keys.counts(kind), SUPERSEDED) for kind in Kind)])
        *examples, superseded = answers[: len(counts) + 1]
        n_superseded = sum(int(count or 0) for count in answers[len(counts) + 1 :])
        return {
            "counts": dict(counts),
            "examples": {reason: _names(ids) for reason, ids in zip(counts, examples, strict=True)},
            "attempts": {SUPERSEDED: {"count": n_superseded, "examples": _names(superseded)}},
            "sessions": await self._swept(limit),
        }

    async def _swept(self, limit: int) -> dict[str, Any]:
        keys = self._database.keys
        counts = _numbers(pairs(await self._database.command("HGETALL", keys.swept)))
        examples = await self._database.many([("LRANGE", keys.drop_examples(f"session_{reason}"), 0, limit - 1) for reason in counts])
        return {"counts": counts, "examples": {reason: _names(ids) for reason, ids in zip(counts, examples, strict=True)}}


def _tally(answers: Sequence[Any]) -> Tally:
    enqueued, queued, running, ready, counters, drops = answers
    return Tally(enqueued, queued, running, ready, _numbers(pairs(counters)), _numbers(pairs(drops)))


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in pairs(flat).items()}


def _names(values: Sequence[bytes | None]) -> list[str]:
    return [(value or b"").decode() for value in values]


def _numbers(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}
