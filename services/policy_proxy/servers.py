"""Owns the pool of policy servers: the state of each, and which one a call goes to.

Refuses to send a call to a server whose weights are not known to be the current ones. Who brings a server up to date: `weights` in an
update, `watch` at any other time.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from services.common.wire.store import PolicyVersion
from services.policy_proxy.sglang import SglangServer, Weights

AFFINITY_SLACK = 8
"""A session stays with its server (its prefix is cached there) until that has this many more calls than the least loaded one."""


class ServerState(StrEnum):
    DOWN = "down"
    """Does not answer, or was never asked."""
    UPDATING = "updating"
    """Is being brought to the current version."""
    UP = "up"
    """Has the current version and takes calls."""
    QUARANTINED = "quarantined"
    """Answers, but an update failed on it; is tried again later."""


class ServerEvent(StrEnum):
    UPDATE = "update"
    VERIFIED = "verified"
    FAILED = "failed"
    LOST = "lost"


TRANSITIONS: dict[tuple[ServerState, ServerEvent], ServerState] = {
    (ServerState.DOWN, ServerEvent.UPDATE): ServerState.UPDATING,
    (ServerState.DOWN, ServerEvent.LOST): ServerState.DOWN,
    (ServerState.UP, ServerEvent.UPDATE): ServerState.UPDATING,
    (ServerState.UP, ServerEvent.LOST): ServerState.DOWN,
    (ServerState.UPDATING, ServerEvent.VERIFIED): ServerState.UP,
    (ServerState.UPDATING, ServerEvent.FAILED): ServerState.QUARANTINED,
    (ServerState.QUARANTINED, ServerEvent.UPDATE): ServerState.UPDATING,
    (ServerState.QUARANTINED, ServerEvent.LOST): ServerState.DOWN,
}


class IllegalTransition(Exception):
    """An event that a server in this state cannot have; always our own fault."""


@dataclass(slots=True, eq=False)
class PolicyServer:
    """One server of the pool."""

    api: SglangServer
    state: ServerState = ServerState.DOWN
    version: int = -1
    """The version verified last; what a call is pinned to."""
    weights: Weights | None = None
    """What it said when it was verified. A restart shows in it also where the version number is the same."""
    in_flight: int = 0
    epoch: int = 0
    """Counts transitions, so that an answer from before one is told apart."""
    detail: str = "not asked yet"
    poked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the watcher should look now."""

    @property
    def url(self) -> str:
        return self.api.url

    def view(self) -> dict[str, Any]:
        """For ``/v1/admin/state``."""
        return {
            "url": self.url,
            "state": self.state.value,
            "version": self.version,
            "in_flight": self.in_flight,
            "detail": self.detail,
        }


class ServerPool:
    """All policy servers, and the version they should have."""

    def __init__(self, urls: Sequence[str], control_headers: Mapping[str, str]) -> None:
        self.servers = [PolicyServer(SglangServer(url, control_headers)) for url in urls]
        self.target: PolicyVersion | None = None
        """The committed policy version; None until the store has been asked."""
        self.provisional = False
        """Nothing was published yet: the target is the initial model, which the first publication of version 0 replaces."""
        self._changed = asyncio.Event()

    @property
    def policy_version(self) -> int:
        """The committed version, -1 while unknown."""
        return -1 if self.target is None else self.target.version

    def up(self) -> list[PolicyServer]:
        """Servers that take calls."""
        return [server for server in self.servers if server.state is ServerState.UP]

    def count(self, state: ServerState) -> int:
        """Servers in a state."""
        return sum(server.state is state for server in self.servers)

    def apply(self, server: PolicyServer, event: ServerEvent, detail: str = "") -> None:
        """Moves a server along `TRANSITIONS`. Raises `IllegalTransition`."""
        following = TRANSITIONS.get((server.state, event))
        if following is None:
            raise IllegalTransition(f"{server.url} is {server.state.value}: {event.value} is not possible")
        server.state = following
        server.detail = detail
        server.epoch += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def verified(self, server: PolicyServer, weights: Weights) -> None:
        """The server says which weights it has: into rotation where they are the committed ones, into quarantine otherwise."""
        if weights.label == str(self.policy_version):
            server.version = self.policy_version
            server.weights = weights
            self.apply(server, ServerEvent.VERIFIED)
        else:
            self.apply(server, ServerEvent.FAILED, f"has version {weights.label}, not {self.policy_version}")

    def suspect(self, server: PolicyServer, detail: str) -> None:
        """A call found the server gone or stale: out of rotation until the watcher has looked at it."""
        if server.state is ServerState.UP:
            self.apply(server, ServerEvent.LOST, detail)
        server.poked.set()

    def supersedes(self, wanted: PolicyVersion) -> bool:
        """Whether ``wanted`` is to take the place of the committed version."""
        if self.target is None or wanted.version > self.target.version:
            return True
        return self.provisional and wanted.version == self.target.version and wanted.path != self.target.path

    def commit(self, version: PolicyVersion, *, provisional: bool = False) -> None:
        """Makes ``version`` the one that servers must have."""
        self.target = version
        self.provisional = provisional
        for server in self.servers:
            server.poked.set()

    def choose(self, preferred: str) -> PolicyServer | None:
        """The session's server while it is up and not overloaded, else the least loaded one; None where none is up."""
        candidates = self.up()
        if not candidates:
            return None
        least = min(candidates, key=lambda server: server.in_flight)
        sticky = next((server for server in candidates if server.url == preferred), least)
        return sticky if sticky.in_flight <= least.in_flight + AFFINITY_SLACK else least

    async def changed(self) -> None:
        """Waits for the next transition of any server; the caller bounds it."""
        await self._changed.wait()

    async def close(self) -> None:
        """Closes the connections to all servers."""
        for server in self.servers:
            await server.api.close()
