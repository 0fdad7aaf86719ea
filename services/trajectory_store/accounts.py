"""Owns the sums: the counts of a kind from what the structures hold, and the audit that recounts them from the records.

Pure functions. The identities are ``in = trained + dropped + waiting + leased`` and ``enqueued = queued + running + in``.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from services.common.wire.store import Counts
from services.trajectory_store.states import EpisodeState, GroupState

EXAMPLES_PER_REASON = 5
"""Episodes that the drop ledger names for each reason."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Sizes of the structures and the counters of one kind."""

    enqueued: int
    queued: int
    """Delayed ones included."""
    running: int
    ready_groups: int
    counters: Mapping[str, int]
    """final, leased, trained, dropped, retries, superseded, duplicates_refused, duplicated."""
    drops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EpisodeFacts:
    """What the record of one enqueued episode says."""

    episode_id: str
    state: str
    group: str
    consumed: str
    """"", trained or dropped."""
    reason: str


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What the record of one group says."""

    group_id: str
    state: str
    size: int
    finals: int
    deliver: int
    """Members that its batch hands out, once it is ready."""


@dataclass(frozen=True, slots=True)
class KindSnapshot:
    """Everything of one kind at one moment."""

    kind: str
    episodes: list[EpisodeFacts]
    members: Mapping[EpisodeState, list[str]]
    """Episode ids per structure: queue, delayed, leases."""
    ready: list[str]
    groups: list[GroupFacts]
    counters: Mapping[str, int]
    drops: Mapping[str, int]
    retired: Mapping[str, int]
    """trained and ``dropped:<reason>`` of episodes whose records are gone."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the audit needs."""

    kinds: list[KindSnapshot]
    completed: list[str]
    adhoc: frozenset[str]


@dataclass(slots=True)
class Audit:
    """The verdict."""

    problems: list[str] = field(default_factory=list[str])

    @property
    def balanced(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def counts_of(tally: Tally) -> Counts:
    """The wire form. ``lost`` and ``waiting`` are what is left over, so that an error anywhere shows in them."""
    counter = tally.counters.get
    final = counter("final", 0)
    trained, dropped, leased = counter("trained", 0), counter("dropped", 0), counter("leased", 0)
    return Counts(
        queued=tally.queued,
        running=tally.running,
        trajectories_in=final,
        trained=trained,
        dropped=dropped,
        waiting=final - trained - dropped - leased,
        leased=leased,
        ready_groups=tally.ready_groups,
        lost=tally.enqueued - tally.queued - tally.running - final,
        duplicated=counter("duplicated", 0),
        drops=dict(tally.drops),
        retries=counter("retries", 0),
        superseded=counter("superseded", 0),
        duplicates_refused=counter("duplicates_refused", 0),
    )


def total_of(kinds: Iterable[Counts]) -> Counts:
    """The sum over kinds."""
    numbers: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    for counts in kinds:
        numbers.update(counts.model_dump(exclude={"drops"}))
        drops.update(counts.drops)
    fields = [name for name in Counts.model_fields if name != "drops"]
    return Counts(**{name: numbers[name] for name in fields}, drops=dict(drops))


def audit(snapshot: Snapshot, limit: int = 100) -> Audit:
    """Recounts everything from the records. At most ``limit`` problems are named."""
    problems: list[str] = []
    known: set[str] = set(snapshot.adhoc)
    completed = set(snapshot.completed)
    for kind in snapshot.kinds:
        known.update(episode.episode_id for episode in kind.episodes)
        for check in (_episode_problems, _group_problems, _counter_problems):
            problems += [f"{kind.kind}: {problem}" for problem in check(kind, completed)]
    problems += [f"{episode_id} is listed as completed and was never enqueued nor stored" for episode_id in sorted(completed - known)]
    problems += [f"{episode_id} was stored ad hoc and is not listed" for episode_id in sorted(snapshot.adhoc - completed)]
    return Audit(problems[:limit])


def _episode_problems(kind: KindSnapshot, completed: set[str]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for state, ids in kind.members.items():
        for episode_id in ids:
            places.setdefault(episode_id, []).append(str(state))
    for episode in kind.episodes:
        found = places.pop(episode.episode_id, [])
        if episode.episode_id in completed:
            found.append(str(EpisodeState.FINAL))
        if found != [episode.state]:
            yield f"{episode.episode_id} is {episode.state or 'lost'} by its record and found in {found or 'no structure'}"
        if episode.consumed and episode.state != EpisodeState.FINAL:
            yield f"{episode.episode_id} was {episode.consumed} without being final"
    for episode_id, found in places.items():
        yield f"{episode_id} is found in {found} and was never enqueued"


def _group_problems(kind: KindSnapshot, _completed: set[str]) -> Iterator[str]:
    finals = Counter(episode.group for episode in kind.episodes if episode.state == EpisodeState.FINAL)
    waiting = Counter(episode.group for episode in kind.episodes if episode.state == EpisodeState.FINAL and not episode.consumed)
    ready = set(kind.ready)
    for group in kind.groups:
        if group.finals != finals[group.group_id]:
            yield f"group {group.group_id} counts {group.finals} final members of {finals[group.group_id]}"
        if group.state == GroupState.OPEN and group.finals == group.size:
            yield f"group {group.group_id} is open with {group.finals} of {group.size} members final"
        if (group.state == GroupState.READY) != (group.group_id in ready):
            yield f"group {group.group_id} is {group.state} and {'is' if group.group_id in ready else 'is not'} in the ready queue"
        unsettled = 0 if group.state == GroupState.DONE else group.deliver
        if group.state != GroupState.OPEN and waiting[group.group_id] != unsettled:
            yield f"group {group.group_id} is {group.state} with {waiting[group.group_id]} members neither trained nor dropped"


def _counter_problems(kind: KindSnapshot, _completed: set[str]) -> Iterator[str]:
    drops = Counter(episode.reason for episode in kind.episodes if episode.consumed == "dropped")
    for name, count in kind.retired.items():
        if name.startswith("dropped:"):
            drops[name.removeprefix("dropped:")] += count
    trained = sum(episode.consumed == "trained" for episode in kind.episodes) + kind.retired.get("trained", 0)
    retired = sum(count for name, count in kind.retired.items() if name != "adhoc")
    recount = {
        "final": sum(episode.state == EpisodeState.FINAL for episode in kind.episodes) + retired,
        "trained": trained,
        "dropped": drops.total(),
        "leased": sum(group.deliver for group in kind.groups if group.state == GroupState.LEASED),
        "duplicated": 0,
    }
    for name, value in recount.items():
        if kind.counters.get(name, 0) != value:
            yield f"the counter {name} says {kind.counters.get(name, 0)}, the records say {value}"
    if dict(drops) != dict(kind.drops):
        yield f"the drop ledger says {dict(kind.drops)}, the records say {dict(drops)}"
