"""Owns getting one completion out of the pool: waiting, resubmission after an abort, and another server where one dies.

A weight update aborts what is in flight; the partial output is kept and prompt plus partial go out again under the new version. A
server that dies has returned nothing, so the same input goes to another one. Refuses outputs labelled older than the version pinned
before the request left: such a server was restarted with other weights.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

import numpy as np

from services.common.errors import DeadlineExceeded, RemoteError, UpstreamFailed
from services.common.wire.calls import Ids
from services.policy_proxy.gate import Gate
from services.policy_proxy.servers import PolicyServer, ServerPool
from services.policy_proxy.sglang import Sampling, Segment

log = logging.getLogger(__name__)

MAX_SERVER_FAULTS = 3
"""Answers with an error status that one call puts up with before it fails."""
FAULT_PAUSE_S = 0.2


@dataclass(slots=True)
class Generated:
    """A completion, possibly made of several segments."""

    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] | None = None
    """None where nothing was sampled (demonstrations)."""
    versions: list[tuple[int, int]] = field(default_factory=list["tuple[int, int]"])
    """Run-length (policy version, tokens)."""
    finish: str = ""
    submissions: int = 0
    server: str = ""
    server_s: float = 0.0
    """Seconds spent in servers and waiting for one."""

    def append(self, segment: Segment) -> None:
        """Adds a segment, merging equal versions."""
        self.ids += segment.ids
        self.logprobs = [*(self.logprobs or ()), *segment.logprobs]
        for version, count in segment.versions:
            if self.versions and self.versions[-1][0] == version:
                self.versions[-1] = (version, self.versions[-1][1] + count)
            else:
                self.versions.append((version, count))


class Generator:
    """Runs completions on the pool."""

    def __init__(self, pool: ServerPool, gate: Gate, timeout_s: float) -> None:
        self._pool = pool
        self._gate = gate
        self._timeout_s = timeout_s

    async def generate(self, call_id: str, prompt: Ids, sampling: Sampling, preferred: str) -> Generated:
        """One completion. Raises `DeadlineExceeded` or `UpstreamFailed`."""
        done = Generated(server=preferred)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._run(call_id, prompt, sampling, done)
        except TimeoutError:
            states = ", ".join(f"{server.url} {server.state.value}" for server in self._pool.servers)
            raise DeadlineExceeded(f"no completion within {self._timeout_s:g} s ({states})", retry_after_s=1.0) from None
        done.server_s = time.perf_counter() - started
        return done

    async def _run(self, call_id: str, prompt: Ids, sampling: Sampling, done: Generated) -> None:
        faults = 0
        while not done.finish:
            server = await self._server(done.server)
            done.server = server.url
            pinned = server.version
            try:
                segment = await self._submit(server, pinned, call_id, prompt, sampling, done)
            except RemoteError as error:
                faults += self._blame(server, error)
                if faults >= MAX_SERVER_FAULTS:
                    raise UpstreamFailed(str(error)) from error
                await asyncio.sleep(FAULT_PAUSE_S)
                continue
            if any(version < pinned for version, _ in segment.versions):
                self._pool.suspect(server, "answered with older weights than it had")
                continue
            done.append(segment)
            if segment.finish != "abort":
                done.finish = segment.finish
            elif len(done.ids) >= sampling.max_new_tokens:
                done.finish = "length"
            elif not segment.ids:
                # Paused by someone else than us: the gate is open, so without this the two of us would spin.
                await asyncio.sleep(FAULT_PAUSE_S)

    async def _server(self, preferred: str) -> PolicyServer:
        while True:
            await self._gate.wait()
            server = self._pool.choose(preferred)
            if server is not None:
                return server
            await self._pool.changed()

    async def _submit(self, server: PolicyServer, pinned: int, call_id: str, prompt: Ids, sampling: Sampling, done: Generated) -> Segment:
        n_done = len(done.ids)
        rid = f"{call_id}.{done.submissions}"
        seed = None if sampling.seed is None else (sampling.seed + n_done) % 2**31
        rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - n_done, seed=seed)
        input_ids = np.concatenate([prompt, np.asarray(done.ids, "<i4")]) if n_done else prompt
        done.submissions += 1
        server.in_flight += 1
        try:
            return await server.api.generate(rid, input_ids, rest, pinned, self._timeout_s)
        except asyncio.CancelledError:
            await _abort(server, rid)
            raise
        finally:
            server.in_flight -= 1

    def _blame(self, server: PolicyServer, error: RemoteError) -> int:
        """Takes a server that is gone out of rotation (not the call's fault: 0), counts any other failure (1)."""
        if error.status is None or error.status == 503:
            self._pool.suspect(server, error.detail)
            return 0
        return 1


async def _abort(server: PolicyServer, rid: str) -> None:
    """The deadline has passed or the client has hung up: the server must not go on generating for nobody."""
    try:
        await server.api.abort(rid)
    except RemoteError as error:
        log.warning("request %s may still run at %s: %s", rid, server.url, error)
