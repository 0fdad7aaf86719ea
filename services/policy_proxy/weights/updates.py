"""Owns the weight-update transaction: pause, update, verify, commit, resume, on every server that is up.

Bounded by one deadline, after which the gate opens by itself. Whatever happens, servers are told to continue; one that failed is
quarantined and the others go on. A version is committed once a server is verified to have it. Refuses to go back to an older version.
What is done at each server is `weight_steps`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from services.common.errors import Conflict, RemoteError, Unavailable
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.pool import PolicyServer, ServerEvent, ServerPool, ServerState
from services.policy_proxy.weights import steps
from services.policy_proxy.weights.gate import Gate
from services.policy_proxy.weights.group import WeightGroup
from services.policy_proxy.weights.steps import PauseMode, Plan

log = logging.getLogger(__name__)

Step = Callable[[PolicyServer, Plan], Awaitable[None]]
WAIT_SHARE = 0.5
"""Of the deadline, for running calls to finish in mode ``wait``; the rest is for the update itself."""
IDLE_EVERY_S = 0.02


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
    """Runs one update at a time. ``mode``: what becomes of running calls where an update does not say."""

    def __init__(self, pool: ServerPool, gate: Gate, group: WeightGroup, mode: PauseMode = "abort", *, controls: bool = True) -> None:
        self._pool = pool
        self._gate = gate
        self._group = group
        self._controls = controls
        self._one_at_a_time = asyncio.Lock()
        self.mode: PauseMode = mode
        self.phase = Phase.IDLE
        pool.mixed = mode in ("retract", "in_place")
        pool.salted = mode == "in_place"

    async def update(self, plan: Plan) -> list[ServerResult]:
        """Brings the servers to ``plan.wanted``. The version there is already is a success without work.

        Raises `Conflict` for an older version or another path of the same one, or where the group of a broadcast is not whole;
        `Unavailable` where no server has it in the end.
        """
        wanted = plan.wanted
        if not self._controls:
            raise Conflict("services.policy_proxy.controls_servers is false here; ask the proxy that has it true", code="not_in_control")
        async with self._one_at_a_time:
            current = self._pool.target
            if current is None:
                raise Unavailable("the newest policy version is not known yet, the store does not answer", retry_after_s=1.0)
            if wanted.version < current.version:
                raise Conflict(f"version: {wanted.version} is older than the current {current.version}", code="stale_version")
            if self._pool.supersedes(wanted):
                await self._transaction(plan)
            elif wanted.path != current.path:
                raise Conflict(f"path: version {wanted.version} is {current.path} and cannot become another", code="version_exists")
            return self._results(wanted)

    async def follow(self, newest: PolicyVersion, deadline_s: float) -> None:
        """Takes over a version that others published, where it is newer than ours. Raises `Unavailable` where no server took it."""
        async with self._one_at_a_time:
            if not self._pool.supersedes(newest):
                return
            if self._pool.up() and self._controls:
                await self._transaction(Plan(newest, deadline_s, self.mode))
            else:
                # Nobody to pause: servers get this version when they come up.
                self._pool.commit(newest)

    async def _transaction(self, plan: Plan) -> None:
        wanted, servers = plan.wanted, self._pool.up()
        if plan.broadcast is not None:
            self._group.check(plan.broadcast.group_name)
        self._pool.mixed |= plan.mixes
        self._pool.salted |= plan.mode == "in_place"
        self._enter(Phase.PAUSING)
        self._gate.close(plan.deadline_s)
        try:
            async with asyncio.timeout(plan.deadline_s):
                if plan.mode == "wait":
                    await self._calls_to_finish(servers, plan.deadline_s * WAIT_SHARE)
                for server in servers:
                    if server.state is ServerState.UP:
                        self._pool.apply(server, ServerEvent.UPDATE, f"to version {wanted.version}")
                await self._prepare(plan, servers)
        except TimeoutError:
            log.warning("update to version %d ran into its deadline of %g s in phase %s", wanted.version, plan.deadline_s, self.phase.value)
        finally:
            await self._resume(plan, servers)
        if self._pool.target != wanted:
            raise self._nobody_has(wanted)
        log.info("policy version %d on %d of %d servers", wanted.version, len(self._pool.up()), len(self._pool.servers))

    async def _calls_to_finish(self, servers: list[PolicyServer], budget_s: float) -> None:
        try:
            async with asyncio.timeout(budget_s):
                while any(server.in_flight for server in servers):  # noqa: ASYNC110 - counters of many servers, and this is rare
                    await asyncio.sleep(IDLE_EVERY_S)
        except TimeoutError:
            log.info("%d calls are still running after %g s and are ended", sum(server.in_flight for server in servers), budget_s)

    async def _prepare(self, plan: Plan, servers: list[PolicyServer]) -> None:
        async def unless_there(server: PolicyServer, plan: Plan) -> None:
            if await steps.has_them(server, plan):
                done.add(server.url)
            else:
                await steps.pause(server, plan)

        async def load(server: PolicyServer, plan: Plan) -> None:
            if plan.broadcast is not None and server not in self._group.servers:
                raise RemoteError("policy_proxy", 409, "not_in_group", "is not in the process group; gets these weights from disk")
            await steps.load(server, plan)

        done: set[str] = set()
        await self._each(servers, plan, unless_there)
        self._enter(Phase.UPDATING)
        await self._each([server for server in servers if server.url not in done], plan, load)
        self._enter(Phase.VERIFYING)
        await self._each([server for server in servers if server.url not in done], plan, steps.verify)
        if any(server.state is ServerState.UPDATING for server in servers):
            self._enter(Phase.COMMITTED)
            self._pool.commit(plan.wanted)

    async def _resume(self, plan: Plan, servers: list[PolicyServer]) -> None:
        committed = self.phase is Phase.COMMITTED
        self._enter(Phase.RESUMING)
        for server in servers:
            if not committed and server.state is ServerState.UPDATING:
                self._fail(server, "the update ended before it was verified")
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers:
                    group.create_task(self._continue(server, plan))
        finally:
            if plan.broadcast is not None and any(server.state is not ServerState.UP for server in self._group.servers):
                self._group.dissolve()
            self._gate.open()
            self._enter(Phase.IDLE)
            self._pool.room.wake()

    async def _continue(self, server: PolicyServer, plan: Plan) -> None:
        """Continues even a quarantined server: nobody is left paused. The watcher repeats it where this fails."""
        if server.state is ServerState.QUARANTINED and plan.mixes:
            await steps.give_up(server)
        try:
            await server.api.resume()
        except RemoteError as error:
            if server.state is ServerState.UPDATING:
                self._fail(server, str(error))
            return
        if server.state is ServerState.UPDATING and server.weights is not None:
            self._pool.verified(server, server.weights)

    async def _each(self, servers: list[PolicyServer], plan: Plan, step: Step) -> None:
        """One step on all servers that have not failed yet, at once; a failure quarantines that server only."""

        async def guarded(server: PolicyServer) -> None:
            try:
                await step(server, plan)
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
