"""Owns the process group over which the trainer broadcasts weights: who is in it, with which ranks, and whether it is still whole.

Rank 0 is the trainer's; each server's ranks follow in the order of the pool (NCCL and gloo groups are fixed when they are formed, so a
server that was lost, added or removed since makes a new one necessary). Refuses to form a group of another size than the trainer expects.
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.errors import Conflict, RemoteError, Unavailable
from services.policy_proxy.servers.pool import PolicyServer, ServerPool

TRAINER_RANKS = 1


class GroupState(StrEnum):
    ABSENT = "absent"
    JOINING = "joining"
    READY = "ready"
    BROKEN = "broken"
    """A member was lost since."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Where the trainer's rank 0 listens, and how the group is called. ``world_size``: ranks that the trainer expects, its own included."""

    master_address: str
    master_port: int
    world_size: int
    group_name: str = "weight_update_group"
    backend: str = "nccl"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A server in the group: its first rank, how many it has, and how often it had been lost when it joined."""

    server: PolicyServer
    rank_offset: int
    ranks: int
    losses: int


class WeightGroup:
    """The one group of this proxy's servers."""

    def __init__(self, pool: ServerPool) -> None:
        self._pool = pool
        self._lock = asyncio.Lock()
        self._joining = False
        self._members: list[Member] = []
        self._name = ""

    @property
    def state(self) -> GroupState:
        """Where it is."""
        if self._joining:
            return GroupState.JOINING
        if not self._members:
            return GroupState.ABSENT
        whole = all(not member.server.removed and member.server.losses == member.losses for member in self._members)
        return GroupState.READY if whole else GroupState.BROKEN

    @property
    def servers(self) -> list[PolicyServer]:
        """The members."""
        return [member.server for member in self._members]

    def check(self, group_name: str) -> None:
        """Raises `Conflict` where nothing can be broadcast over this group."""
        if self.state is not GroupState.READY or group_name != self._name:
            raise Conflict(
                f"group_name: {group_name} is {self.state.value}; form it with POST /v1/admin/weight_group", code="no_weight_group"
            )

    def dissolve(self) -> None:
        """A broadcast went wrong at a member: the ranks no longer agree on what comes next."""
        self._members = []

    async def plan(self) -> dict[str, Any]:
        """The group as it is, or would be with the servers that are up now."""
        members = self._members if self.state is GroupState.READY else await self._arrange()
        return self._view(members)

    async def form(self, spec: GroupSpec, deadline_s: float) -> dict[str, Any]:
        """Makes every server that is up join; returns when all have, which needs the trainer to join as rank 0 meanwhile.

        Raises `Conflict` where the servers are not as many ranks as the trainer expects, `Unavailable` where one cannot join.
        """
        async with self._lock:
            members = await self._arrange()
            world_size = _world_size(members)
            if spec.world_size != world_size:
                raise Conflict(f"world_size: the servers that are up make it {world_size}, not {spec.world_size}", code="world_size")
            self._joining, self._members = True, []
            try:
                async with asyncio.timeout(deadline_s):
                    await self._join(members, spec, deadline_s)
            except TimeoutError:
                raise Unavailable(f"the group was not complete within {deadline_s:g} s", code="join_failed", retry_after_s=1.0) from None
            finally:
                self._joining = False
            self._members, self._name = members, spec.group_name
            return self._view(members)

    async def _arrange(self) -> list[Member]:
        members: list[Member] = []
        offset = TRAINER_RANKS
        for server in self._pool.up():
            try:
                ranks = await server.api.ranks()
            except RemoteError as error:
                raise Unavailable(f"{server.url}: {error.detail}", code="join_failed", retry_after_s=1.0) from error
            members.append(Member(server, offset, ranks, server.losses))
            offset += ranks
        return members

    async def _join(self, members: list[Member], spec: GroupSpec, deadline_s: float) -> None:
        async def join(member: Member) -> None:
            body = {"master_address": spec.master_address, "master_port": spec.master_port, "world_size": spec.world_size}
            body |= {"rank_offset": member.rank_offset, "group_name": spec.group_name, "backend": spec.backend}
            await member.server.api.leave_group(spec.group_name)
            await member.server.api.join_group(body, deadline_s)

        try:
            async with asyncio.TaskGroup() as group:
                for member in members:
                    group.create_task(join(member))
        except* RemoteError as failed:
            details = "; ".join(str(error) for error in failed.exceptions)
            raise Unavailable(f"not every server joined: {details}", code="join_failed", retry_after_s=1.0) from failed

    def _view(self, members: list[Member]) -> dict[str, Any]:
        listed = [{"url": member.server.url, "rank_offset": member.rank_offset, "ranks": member.ranks} for member in members]
        return {"state": self.state.value, "group_name": self._name, "world_size": _world_size(members), "members": listed}


def _world_size(members: list[Member]) -> int:
    return TRAINER_RANKS + sum(member.ranks for member in members)
