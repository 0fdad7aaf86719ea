"""Owns reading every record for the audit as it is at one moment, without ever stopping Redis for long.

Records are read a few hundred at a time. Meanwhile every edge notes what it touches (`touch` in lua/lib.lua); what was touched is read
again until nothing is left, and the script that finds nothing left gives the counters too: then everything that was read is true at
that one moment. It is how a running machine is moved to another host: copy, then copy again what changed.
Refuses to judge: `accounts.audit` does.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import Busy
from services.common.ids import new_id
from services.common.wire.rollouts import Kind
from services.trajectory_store.accounts import EpisodeFacts, GroupFacts, KindSnapshot, Snapshot
from services.trajectory_store.redis_store.database import Database, pairs
from services.trajectory_store.states import EpisodeState

AT_ONCE = 400
"""Records one script reads: some milliseconds of Redis."""
WAIT_S = 30.0
"""For an audit of the same trial that runs already; one whose process was killed is forgotten sooner."""
LOOK_AGAIN_S = 0.1
PLACES = {EpisodeState.QUEUED: "q", EpisodeState.DELAYED: "d", EpisodeState.LEASED: "l", EpisodeState.FINAL: "c"}
"""Letters of lua/audit_step.lua; ``e`` is the set of enqueued episodes, ``a`` that of episodes stored ad hoc."""
STRUCTURES = {EpisodeState.QUEUED: "queue", EpisodeState.DELAYED: "delayed", EpisodeState.LEASED: "leases", EpisodeState.FINAL: "completed"}
LISTED = (EpisodeState.QUEUED, EpisodeState.DELAYED, EpisodeState.LEASED)
"""States whose structure is one a kind."""


class Interrupted(Exception):
    """The audit was forgotten because it asked for nothing for too long."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An episode as it was last read."""

    kind: str
    facts: EpisodeFacts
    places: str


@dataclass(slots=True)
class Census:
    """What was read so far."""

    episodes: dict[str, Seen] = field(default_factory=dict[str, Seen])
    groups: dict[str, tuple[str, GroupFacts, bool]] = field(default_factory=dict[str, tuple[str, GroupFacts, bool]])
    """Group id -> kind, record, whether it is in the ready queue."""

    def take(self, episodes: Iterable[Sequence[bytes]], groups: Iterable[Sequence[bytes]]) -> None:
        """Adds or replaces what a script read; what no structure knows any more is gone."""
        for row in episodes:
            name, kind, state, group, consumed, reason, places = (value.decode() for value in row)
            self.episodes[name] = Seen(kind, EpisodeFacts(name, state, group, consumed, reason), places)
            if not state and not places:
                del self.episodes[name]
        for row in groups:
            name, kind, state, size, finals, deliver, ready = (value.decode() for value in row)
            self.groups[name] = (kind, GroupFacts(name, state, int(size), int(finals), int(deliver)), ready == "1")
            if not state:
                del self.groups[name]

    def found_in(self, state: EpisodeState, kind: str | None = None) -> list[str]:
        """Episodes in the structure of a state."""
        letter = PLACES[state]
        return [name for name, seen in self.episodes.items() if letter in seen.places and kind in (None, seen.kind)]


class Audits:
    """Snapshots of one trial."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def snapshot(self) -> Snapshot:
        """Every record at one moment. Raises `Busy` where an audit of the trial runs already and does not end."""
        end = time.monotonic() + WAIT_S
        audit_id = new_id("audit")
        while not await self._database.run("audit_begin", audit_id):
            if time.monotonic() > end:
                raise Busy("another audit of this trial runs; come back", code="audit_runs", retry_after_s=5)
            await asyncio.sleep(LOOK_AGAIN_S)
        try:
            return await self._read(audit_id)
        except Interrupted as error:
            raise Busy("the audit took too long between two steps; ask again", code="audit_interrupted", retry_after_s=1) from error
        finally:
            await self._database.run("audit_end", audit_id)

    async def _read(self, audit_id: str) -> Snapshot:
        census = Census()
        for kind in Kind:
            await self._scan(audit_id, "episodes", kind, census)
            await self._scan(audit_id, "groups", kind, census)
        await self._scan(audit_id, "adhoc", "", census)
        totals: list[Any] = []
        while not totals:
            _, episodes, groups, totals = await self._step(audit_id, "changes", "", "0")
            census.take(episodes, groups)
        *kinds, completed = totals
        strangers = await self._strangers(audit_id, census, kinds, completed)
        return _snapshot(census, kinds, strangers)

    async def _scan(self, audit_id: str, what: str, kind: str, census: Census) -> None:
        cursor = "0"
        while True:
            raw, episodes, groups, _ = await self._step(audit_id, what, kind, cursor)
            census.take(episodes, groups)
            cursor = raw.decode()
            if cursor == "0":
                return

    async def _step(self, audit_id: str, what: str, kind: str, cursor: str) -> list[Any]:
        answer = await self._database.run("audit_step", audit_id, what, kind, cursor, AT_ONCE)
        if not answer:
            raise Interrupted
        return answer

    async def _strangers(self, audit_id: str, census: Census, kinds: Sequence[Any], completed: int) -> Mapping[tuple[str, str], list[str]]:
        """(structure, kind) -> ids in it that nothing else knows. Looked for only where a structure is larger than what was found in it."""
        found: dict[tuple[str, str], list[str]] = {}
        sizes = {(state, row[0].decode()): size for row in kinds for state, size in zip(LISTED, row[1:4], strict=True)}
        for (state, kind), size in sizes.items():
            if size != len(census.found_in(state, kind)):
                found[STRUCTURES[state], kind] = await self._unknown(audit_id, STRUCTURES[state], kind)
        if completed != len(census.found_in(EpisodeState.FINAL)):
            found["completed", ""] = await self._unknown(audit_id, "completed", "")
        return found

    async def _unknown(self, audit_id: str, structure: str, kind: str) -> list[str]:
        names: list[str] = []
        cursor = "0"
        while True:
            raw, rows, _, _ = await self._step(audit_id, structure, kind, cursor)
            names += [name.decode() for (name,) in rows]
            cursor = raw.decode()
            if cursor == "0":
                return names


def _snapshot(census: Census, kinds: Sequence[Any], strangers: Mapping[tuple[str, str], list[str]]) -> Snapshot:
    rows: list[KindSnapshot] = []
    for raw, _, _, _, counters, drops, retired in kinds:
        kind = raw.decode()
        rows.append(
            KindSnapshot(
                kind=kind,
                episodes=[seen.facts for seen in census.episodes.values() if seen.kind == kind and "e" in seen.places],
                members={state: census.found_in(state, kind) + strangers.get((STRUCTURES[state], kind), []) for state in LISTED},
                ready=[name for name, (of, _, ready) in census.groups.items() if of == kind and ready],
                groups=[facts for of, facts, _ in census.groups.values() if of == kind],
                counters=_numbers(counters),
                drops=_numbers(drops),
                retired=_numbers(retired),
            )
        )
    return Snapshot(
        kinds=rows,
        completed=census.found_in(EpisodeState.FINAL) + strangers.get(("completed", ""), []),
        adhoc=frozenset(name for name, seen in census.episodes.items() if "a" in seen.places),
    )


def _numbers(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in pairs(flat).items()}
