"""Owns the state machines of the store: which states an episode, a group and a batch have, and which edges exist between them.

The Lua scripts get these tables as text (`lua_edges`) and refuse every edge that is not here; the tests read the same tables.
"""

from collections.abc import Mapping
from enum import StrEnum


class EpisodeState(StrEnum):
    """Where an episode is."""

    NEW = ""
    """Not known to the store."""
    QUEUED = "queued"
    LEASED = "leased"
    """A worker plays it."""
    DELAYED = "delayed"
    """An attempt failed; the next one waits for its back-off."""
    FINAL = "final"
    """Its trajectory, or its last failure, is stored for good."""


class GroupState(StrEnum):
    """Where a group is."""

    NEW = ""
    OPEN = "open"
    """Not all members are final, and the deadline is not over or the quorum not reached."""
    READY = "ready"
    LEASED = "leased"
    """In a batch that is not acked."""
    DONE = "done"
    """Every member that was final when the group became ready is trained or dropped; later ones are dropped as late."""


class BatchState(StrEnum):
    """Where a batch is."""

    NEW = ""
    LEASED = "leased"
    ACKED = "acked"
    NACKED = "nacked"
    """Given back by its consumer."""
    EXPIRED = "expired"
    """Taken from its consumer after the time ran out."""


Edges = Mapping[StrEnum, frozenset[StrEnum]]

EPISODE_EDGES: Edges = {
    EpisodeState.NEW: frozenset({EpisodeState.QUEUED, EpisodeState.FINAL}),
    EpisodeState.QUEUED: frozenset({EpisodeState.LEASED, EpisodeState.FINAL}),
    EpisodeState.LEASED: frozenset({EpisodeState.QUEUED, EpisodeState.DELAYED, EpisodeState.FINAL}),
    EpisodeState.DELAYED: frozenset({EpisodeState.QUEUED, EpisodeState.FINAL}),
    EpisodeState.FINAL: frozenset(),
}
"""new → final is an ad-hoc episode; queued or delayed → final is an earlier attempt that reports late and wins, or a cancellation."""

GROUP_EDGES: Edges = {
    GroupState.NEW: frozenset({GroupState.OPEN}),
    GroupState.OPEN: frozenset({GroupState.READY, GroupState.DONE}),
    GroupState.READY: frozenset({GroupState.LEASED, GroupState.DONE}),
    GroupState.LEASED: frozenset({GroupState.READY, GroupState.DONE}),
    GroupState.DONE: frozenset(),
}

"""open → done is a group without a member to deliver (all cancelled); ready → done is one whose members are all too old."""

BATCH_EDGES: Edges = {
    BatchState.NEW: frozenset({BatchState.LEASED}),
    BatchState.LEASED: frozenset({BatchState.ACKED, BatchState.NACKED, BatchState.EXPIRED}),
    BatchState.ACKED: frozenset(),
    BatchState.NACKED: frozenset(),
    BatchState.EXPIRED: frozenset(),
}

MACHINES: Mapping[str, Edges] = {"episode": EPISODE_EDGES, "group": GROUP_EDGES, "batch": BATCH_EDGES}


def lua_edges() -> str:
    """The tables as a Lua statement: ``EDGES[machine][from][to]`` is true where the edge exists."""
    return f"local EDGES = {{{', '.join(f'{name} = {_lua_machine(edges)}' for name, edges in MACHINES.items())}}}"


def _lua_machine(edges: Edges) -> str:
    rows = (f"['{source}'] = {{{', '.join(f'{to} = true' for to in sorted(targets))}}}" for source, targets in edges.items())
    return f"{{{', '.join(rows)}}}"
