"""Owns what one weight update does at one server: pause, new weights from disk or from the trainer's memory, verification, continuing.

Refuses nothing: each step is a request or a few, and a failure is the `RemoteError` of the one that failed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.common.errors import RemoteError
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.outputs import bad_answer
from services.policy_proxy.servers.pool import PolicyServer
from services.policy_proxy.servers.sglang import Bucket, ServerPause
from services.policy_proxy.servers.versions import holds, memory_label, receiving_label

log = logging.getLogger(__name__)

PauseMode = Literal["abort", "wait", "retract", "in_place"]
SERVER_PAUSE: dict[PauseMode, ServerPause] = {"abort": "abort", "wait": "abort", "retract": "retract", "in_place": "in_place"}


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Weights that the trainer broadcasts over a process group, bucket after bucket."""

    group_name: str
    buckets: Sequence[Bucket]


@dataclass(frozen=True, slots=True)
class Plan:
    """One update: what to, how long it may take, what becomes of running requests, and where the weights come from (None: from disk)."""

    wanted: PolicyVersion
    deadline_s: float
    mode: PauseMode = "abort"
    broadcast: Broadcast | None = None

    @property
    def pause(self) -> ServerPause:
        """What servers are told."""
        return SERVER_PAUSE[self.mode]

    @property
    def mixes(self) -> bool:
        """Whether requests that run now go on under the new weights."""
        return self.pause != "abort"


async def pause(server: PolicyServer, plan: Plan) -> None:
    """Stops generation at the server."""
    await server.api.pause(plan.pause, plan.deadline_s)


async def load(server: PolicyServer, plan: Plan) -> None:
    """Puts the new weights there. From now on only `verify` or a reload tells what the server has."""
    server.tainted = True
    if plan.broadcast is None:
        await server.api.update(plan.wanted, plan.deadline_s, plan.pause)
    else:
        await _receive(server, plan, plan.broadcast)


async def verify(server: PolicyServer, plan: Plan) -> None:
    """Takes down what the server says it has. Raises `RemoteError` where that is not what it was given."""
    weights = await server.api.weights()
    expected = memory_label(plan.wanted) if plan.broadcast else str(plan.wanted.version)
    if weights.label != expected:
        raise bad_answer(f"has version {weights.label} after the update, not {expected}")
    server.weights = weights


async def has_them(server: PolicyServer, plan: Plan) -> bool:
    """Whether the server has the new weights already: another proxy was faster. Raises `RemoteError`."""
    if server.tainted:
        return False
    weights = await server.api.weights()
    if holds(weights, plan.wanted):
        server.weights = weights
        return True
    return False


async def give_up(server: PolicyServer) -> None:
    """After a failure: requests that were to go on under the new weights must not go on under whatever is there now."""
    try:
        await server.api.abort_all()
    except RemoteError as error:
        log.warning("requests may still run at %s: %s", server.url, error)


async def _receive(server: PolicyServer, plan: Plan, broadcast: Broadcast) -> None:
    # Labelled first: between the first and the last bucket the weights are a mixture, and a crash must not leave them passing for either.
    await server.api.relabel(receiving_label(plan.wanted))
    await server.api.begin_receiving()
    last = len(broadcast.buckets) - 1
    for index, bucket in enumerate(broadcast.buckets):
        flush = index == last and plan.pause != "in_place"
        try:
            await server.api.receive(bucket, broadcast.group_name, plan.deadline_s, flush=flush)
        except RemoteError as error:
            raise RemoteError(error.service, error.status, error.code, f"bucket {index}: {error.detail}") from error
    await server.api.end_receiving()
    await server.api.relabel(memory_label(plan.wanted))
