"""Owns the weight-update transaction: pause, update, verify, commit, resume, on every server that is up.

Bounded by one deadline, after which the gate opens by itself. Whatever happens, servers are told to continue; one that failed is
quarantined and the others go on. A version is committed once a server is verified to have it. Refuses to go back to an older version.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from services.common.errors import Conflict, RemoteError, Unavailable
from services.common.wire.store import PolicyVersion
from services.policy_proxy.gate import Gate
from services.policy_proxy.servers import PolicyServer, ServerEvent, ServerPool, ServerState

log = logging.getLogger(__name__)

Step = Callable[[PolicyServer], Awaitable[None]]


class Phase(StrEnum):
    IDLE = "idle"
    PAUSING = "pausing"
    UPDATING = "updating"
    VERIFYING = "verifying"
    COMMITTED = "committed"
    RESUMING = "resuming"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.PAUSING}),
    Phase.PAUSING: frozenset({Phase.UPDATING, Phase.RESUMING}),
    Phase.UPDATING: frozenset({Phase.VERIFYING, Phase.RESUMING}),
    Phase.VERIFYING: frozenset({Phase.COMMITTED, Phase.RESUMING}),
    Phase.COMMITTED: frozenset({Phase.RESUMING}),
    Phase.RESUMING: frozenset({Phase.IDLE}),
}
"""Every phase may fall through to resuming; none may be skipped on the way to committed."""


@dataclass(frozen=True, slots=True)
class ServerResult:
    """How an update went on one server."""

    url: str
    ok: bool
    detail: str


class WeightUpdates:
    """Runs one update at a time."""

    def __init__(self, pool: ServerPool, gate: Gate) -> None:
        self._pool = pool
        self._gate = gate
        self._one_at_a_time = asyncio.Lock()
        self.phase = Phase.IDLE

    async def update(self, wanted: PolicyVersion, deadline_s: float) -> list[ServerResult]:
        """Brings the servers to ``wanted``. The version there is already is a success without work.

        Raises `Conflict` for an older version or another path of the same one, `Unavailable` where no server has it in the end.
        """
        async with self._one_at_a_time:
            current = self._pool.target
            if current is None:
                raise Unavailable("the newest policy version is not known yet, the store does not answer", retry_after_s=1.0)
            if wanted.version < current.version:
                raise Conflict(f"version: {wanted.version} is older than the current {current.version}", code="stale_version")
            if self._pool.supersedes(wanted):
                await self._transaction(wanted, deadline_s)
            elif wanted.path != current.path:
                raise Conflict(f"path: version {wanted.version} is {current.path} and cannot become another", code="version_exists")
            return self._results(wanted)

    async def follow(self, newest: PolicyVersion, deadline_s: float) -> None:
        """Takes over a version that others published, where it is newer than ours. Raises `Unavailable` where no server took it."""
        async with self._one_at_a_time:
            if not self._pool.supersedes(newest):
                return
            if self._pool.up():
                await self._transaction(newest, deadline_s)
            else:
                # Nobody to pause: servers get this version when they come up.
                self._pool.commit(newest)

    async def _transaction(self, wanted: PolicyVersion, deadline_s: float) -> None:
        servers = self._pool.up()
        self._enter(Phase.PAUSING)
        self._gate.close(deadline_s)
        for server in servers:
            self._pool.apply(server, ServerEvent.UPDATE, f"to version {wanted.version}")
        try:
            async with asyncio.timeout(deadline_s):
                await self._prepare(wanted, servers, deadline_s)
        except TimeoutError:
            log.warning("update to version %d ran into its deadline of %g s in phase %s", wanted.version, deadline_s, self.phase.value)
        finally:
            await self._resume(servers)
        if self._pool.target != wanted:
            raise self._nobody_has(wanted)
        log.info("policy version %d on %d of %d servers", wanted.version, len(self._pool.up()), len(self._pool.servers))

    async def _prepare(self, wanted: PolicyVersion, servers: list[PolicyServer], deadline_s: float) -> None:
        async def pause(server: PolicyServer) -> None:
            await server.api.pause()

        async def update(server: PolicyServer) -> None:
            await server.api.update(wanted, deadline_s)

        async def verify(server: PolicyServer) -> None:
            server.weights = await server.api.weights()
            if server.weights.label != str(wanted.version):
                self._fail(server, f"has version {server.weights.label} after the update")

        await self._each(servers, pause)
        self._enter(Phase.UPDATING)
        await self._each(servers, update)
        self._enter(Phase.VERIFYING)
        await self._each(servers, verify)
        if any(server.state is ServerState.UPDATING for server in servers):
            self._enter(Phase.COMMITTED)
            self._pool.commit(wanted)

    async def _resume(self, servers: list[PolicyServer]) -> None:
        committed = self.phase is Phase.COMMITTED
        self._enter(Phase.RESUMING)
        for server in servers:
            if not committed and server.state is ServerState.UPDATING:
                self._fail(server, "the update ended before it was verified")
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers:
                    group.create_task(self._continue(server))
        finally:
            self._gate.open()
            self._enter(Phase.IDLE)

    async def _continue(self, server: PolicyServer) -> None:
        """Continues even a quarantined server: nobody is left paused. The watcher repeats it where this fails."""
        try:
            await server.api.resume()
        except RemoteError as error:
            if server.state is ServerState.UPDATING:
                self._fail(server, str(error))
            return
        if server.state is ServerState.UPDATING and server.weights is not None:
            self._pool.verified(server, server.weights)

    async def _each(self, servers: list[PolicyServer], step: Step) -> None:
        """One step on all servers that have not failed yet, at once; a failure quarantines that server only."""

        async def guarded(server: PolicyServer) -> None:
            try:
                await step(server)
            except RemoteError as error:
                self._fail(server, str(error))

        async with asyncio.TaskGroup() as group:
            for server in servers:
                if server.state is ServerState.UPDATING:
                    group.create_task(guarded(server))

    def _fail(self, server: PolicyServer, detail: str) -> None:
        log.warning("%s is quarantined: %s", server.url, detail)
        self._pool.apply(server, ServerEvent.FAILED, detail)

    def _enter(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise RuntimeError(f"a weight update cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase

    def _results(self, wanted: PolicyVersion) -> list[ServerResult]:
        results = [
            ServerResult(server.url, server.state is ServerState.UP and server.version == wanted.version, server.detail)
            for server in self._pool.servers
        ]
        if not any(result.ok for result in results):
            raise self._nobody_has(wanted)
        return results

    def _nobody_has(self, wanted: PolicyVersion) -> Unavailable:
        details = "; ".join(f"{server.url} {server.state.value}: {server.detail}" for server in self._pool.servers)
        return Unavailable(f"no policy server has version {wanted.version} ({details})", code="update_failed", retry_after_s=1.0)
