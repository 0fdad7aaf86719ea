"""Owns the pool of policy servers: the state of each, the version they should have, and places for calls at them.

Refuses to send a call to a server whose weights are not known to be the current ones. Who brings a server up to date: `weights` in an
update, `watch` at any other time. Who comes and goes: `fleet`.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from services.common.transitions import following
from services.common.wire.calls import Ids
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.load import ConcurrencyLimit
from services.policy_proxy.servers.requests import APIS, ServerApi
from services.policy_proxy.servers.routing import PrefixTable, block_keys, pick, stays
from services.policy_proxy.servers.sglang import SILENCE_S, ServerKeys, SglangServer
from services.policy_proxy.servers.versions import UNKNOWN, Weights, holds, version_of
from services.policy_proxy.servers.waiting_room import WaitingRoom


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


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What all servers of a pool have in common; see services.policy_proxy."""

    keys: ServerKeys = field(default_factory=lambda: ServerKeys({}, {}))
    api: ServerApi = "generate"
    router_url: str | None = None
    ceiling: int = 512
    max_waiting: int = 4096
    silence_s: float = SILENCE_S


@dataclass(slots=True, eq=False)
class PolicyServer:
    """One server of the pool."""

    api: SglangServer
    limit: ConcurrencyLimit
    state: ServerState = ServerState.DOWN
    version: int = UNKNOWN
    """The version verified last; what a call is pinned to."""
    weights: Weights | None = None
    """What it said when it was verified. A restart shows in it also where the version number is the same."""
    tainted: bool = False
    """An update has begun and was not verified: whatever it says, only a reload tells what it has."""
    cordoned: bool = False
    """Is drained by an operator: gets updates, but no calls."""
    removed: bool = False
    in_flight: int = 0
    epoch: int = 0
    """Counts transitions, so that an answer from before one is told apart."""
    losses: int = 0
    """How often it was lost; a server that was lost is no longer in the process group it joined."""
    detail: str = "not asked yet"
    poked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the watcher should look now."""

    @property
    def url(self) -> str:
        return self.api.url

    @property
    def load(self) -> int:
        """Calls there: ours now, those of others as of its last report."""
        return self.in_flight + self.limit.others

    @property
    def has_room(self) -> bool:
        """Whether it may be given another call."""
        return self.in_flight < self.limit.value

    def view(self) -> dict[str, Any]:
        """For ``/v1/admin/state``."""
        figures = self.limit.figures
        return {
            "url": self.url,
            "state": self.state.value,
            "cordoned": self.cordoned,
            "version": self.version,
            "in_flight": self.in_flight,
            "limit": self.limit.value,
            "reported": None if figures is None else {"running": figures.running, "queued": figures.queued, "usage": figures.token_usage},
            "detail": self.detail,
        }


class ServerPool:
    """All policy servers, and the version they should have."""

    def __init__(self, urls: Sequence[str], settings: PoolSettings | None = None) -> None:
        self._settings = settings or PoolSettings()
        self.servers: list[PolicyServer] = []
        for url in urls:
            self.add(url)
        self.router = None if self._settings.router_url is None else self._client(self._settings.router_url)
        self.target: PolicyVersion | None = None
        """The committed policy version; None until the store has been asked."""
        self.provisional = False
        """Nothing was published yet: the target is the initial model, which the first publication of version 0 replaces."""
        self.mixed = False
        """An update has let running calls go on: an output may be of several versions."""
        self.salted = False
        """An update has kept the keys and values of older weights: they are shared within a version only."""
        self.room = WaitingRoom(self._settings.max_waiting)
        self._known = PrefixTable()

    @property
    def policy_version(self) -> int:
        """The committed version, -1 while unknown."""
        return UNKNOWN if self.target is None else self.target.version

    @property
    def streams(self) -> bool:
        """Whether servers give tokens as they come."""
        return APIS[self._settings.api].streams

    def add(self, url: str) -> PolicyServer:
        """Takes in a server, down until it has been looked at."""
        server = PolicyServer(self._client(url.rstrip("/")), ConcurrencyLimit(self._settings.ceiling))
        self.servers.append(server)
        return server

    def find(self, url: str) -> PolicyServer | None:
        """The server at ``url``."""
        return next((server for server in self.servers if server.url == url.rstrip("/")), None)

    def up(self) -> list[PolicyServer]:
        """Servers with the current weights, those being drained included."""
        return [server for server in self.servers if server.state is ServerState.UP]

    def count(self, state: ServerState) -> int:
        """Servers in a state."""
        return sum(server.state is state for server in self.servers)

    def apply(self, server: PolicyServer, event: ServerEvent, detail: str = "") -> None:
        """Moves a server along `TRANSITIONS`. Raises `IllegalTransition`."""
        server.state = following(TRANSITIONS, server.state, event)
        server.detail = detail
        server.epoch += 1
        server.losses += event is ServerEvent.LOST
        self.room.wake()

    def verified(self, server: PolicyServer, weights: Weights) -> None:
        """The server says which weights it has: into rotation where they are the committed ones, into quarantine otherwise."""
        if version_of(weights.label) == self.policy_version:
            server.version = self.policy_version
            server.weights = weights
            server.tainted = False
            self.apply(server, ServerEvent.VERIFIED)
        else:
            self.apply(server, ServerEvent.FAILED, f"has version {weights.label}, not {self.policy_version}")

    def is_current(self, server: PolicyServer, weights: Weights) -> bool:
        """Whether a server that says ``weights`` has the committed ones, as when it was verified or by the label alone."""
        if self.target is None or server.tainted:
            return False
        as_verified = weights == server.weights and version_of(weights.label) == self.target.version
        return as_verified or holds(weights, self.target)

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
        self._known.clear()
        for server in self.servers:
            server.poked.set()

    def choose(self, preferred: str, prompt: Ids, avoid: Collection[str] = ()) -> PolicyServer | None:
        """A place at a server, to be given back with `release`; None where no server has one.

        The session's server where that is not overloaded, else the one with most of the prompt; one of ``avoid`` only where no other is.
        """
        open_to_calls = [server for server in self.up() if server.has_room and not server.cordoned]
        candidates = [server for server in open_to_calls if server.url not in avoid] or open_to_calls
        if not candidates:
            return None
        server = stays(preferred, candidates)
        if server is None:
            keys = block_keys(prompt)
            server = pick(keys, candidates, self._known)
            self._known.remember(keys, server.url)
        server.in_flight += 1
        return server

    def release(self, server: PolicyServer) -> None:
        """Gives a place back."""
        server.in_flight -= 1
        self.room.wake()

    async def close(self) -> None:
        """Closes the connections to all servers."""
        for api in [server.api for server in self.servers] + ([self.router] if self.router else []):
            await api.close()

    def _client(self, url: str) -> SglangServer:
        return SglangServer(url, self._settings.keys, APIS[self._settings.api], self._settings.silence_s)
