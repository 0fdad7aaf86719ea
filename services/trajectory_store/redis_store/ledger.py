"""Owns reading the accounts from Redis: counts per kind, group numbers, the drop ledger, and the snapshot for the audit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.wire.rollouts import Kind
from services.common.wire.store import Stats
from services.trajectory_store.accounts import EpisodeFacts, GroupFacts, KindSnapshot, Snapshot, Tally, counts_of, total_of
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.states import EpisodeState

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

    async def note_loss(self, beat: int, text: str) -> None:
        """Keeps for good that acknowledged writes were lost."""
        await self._database.command("HSET", self._database.keys.losses, beat, text)

    async def clear_alarm(self, name: str) -> bool:
        """Takes an alarm back; False where it was not raised."""
        return bool(await self._database.run("clear_alarm", name))

    async def groups(self, kinds: Sequence[Kind]) -> dict[str, int]:
        """How many groups are ready and how many still miss members."""
        pipeline = self._database.pipeline()
        for kind in kinds:
            pipeline.zcard(self._database.keys.ready(kind))
            pipeline.scard(self._database.keys.open_groups(kind))
        answers = await self._database.execute(pipeline)
        return {"ready": sum(answers[::2]), "open": sum(answers[1::2])}

    async def drops(self, limit: int) -> dict[str, Any]:
        """Counts per reason over all kinds, with up to ``limit`` of the first episodes dropped for each.

        ``attempts`` are no drops, because another attempt of the episode counts: superseded ones, named ``id#attempt``.
        """
        pipeline = self._database.pipeline()
        for kind in Kind:
            pipeline.hgetall(self._database.keys.drops(kind))
        counts: Counter[str] = Counter()
        for answer in await self._database.execute(pipeline):
            counts.update(_numbers(answer))
        pipeline = self._database.pipeline()
        for reason in (*counts, SUPERSEDED):
            pipeline.lrange(self._database.keys.drop_examples(reason), 0, limit - 1)
        for kind in Kind:
            pipeline.hget(self._database.keys.counts(kind), SUPERSEDED)
        answers = await self._database.execute(pipeline)
        *examples, superseded = answers[: len(counts) + 1]
        n_superseded = sum(int(count or 0) for count in answers[len(counts) + 1 :])
        return {
            "counts": dict(counts),
            "examples": {reason: _names(ids) for reason, ids in zip(counts, examples, strict=True)},
            "attempts": {SUPERSEDED: {"count": n_superseded, "examples": _names(superseded)}},
        }

    async def snapshot(self) -> Snapshot:
        """Every record at one moment. Redis does nothing else meanwhile: about 1 s for 100,000 episodes."""
        *kinds, completed, adhoc = await self._database.run("snapshot")
        return Snapshot(
            kinds=[_kind_snapshot(row) for row in kinds],
            completed=_names(completed),
            adhoc=frozenset(_names(adhoc)),
        )


def _tally(answers: Sequence[Any]) -> Tally:
    enqueued, queued, running, ready, counters, drops = answers
    return Tally(enqueued, queued, running, ready, _numbers(_pairs(counters)), _numbers(_pairs(drops)))


def _kind_snapshot(row: Sequence[Any]) -> KindSnapshot:
    kind, episodes, queued, delayed, leased, ready, groups, counters, drops, retired = row
    return KindSnapshot(
        kind=kind.decode(),
        episodes=[EpisodeFacts(*_names(record)) for record in episodes],
        members={
            EpisodeState.QUEUED: _names(queued),
            EpisodeState.DELAYED: _names(delayed),
            EpisodeState.LEASED: _names(leased),
        },
        ready=_names(ready),
        groups=[_group_facts(record) for record in groups],
        counters=_numbers(_pairs(counters)),
        drops=_numbers(_pairs(drops)),
        retired=_numbers(_pairs(retired)),
    )


def _group_facts(record: Sequence[bytes | None]) -> GroupFacts:
    group_id, state, size, finals, deliver = _names(record)
    return GroupFacts(group_id, state, int(size or 0), int(finals or 0), int(deliver or 0))


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in _pairs(flat).items()}


def _names(values: Sequence[bytes | None]) -> list[str]:
    return [(value or b"").decode() for value in values]


def _numbers(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}
