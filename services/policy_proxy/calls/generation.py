"""Owns getting one completion out of the pool: a place at a server, resubmission after an abort, and another server where one dies.

What a server had generated when it was interrupted is kept, and prompt plus partial output go out again, under the newer weights or to
another server. Refuses tokens older than the version pinned before the request left: such a server was restarted with other weights;
and tokens whose version nobody can tell.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from services.common.errors import BadRequest, DeadlineExceeded, RemoteError, UpstreamFailed
from services.common.wire.calls import Ids
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.servers.outputs import STALE, Listener, Piece, Segment, SegmentReader, Top
from services.policy_proxy.servers.pool import PolicyServer, ServerPool
from services.policy_proxy.servers.requests import Submission
from services.policy_proxy.servers.sglang import SglangServer
from services.policy_proxy.weights.gate import Gate

log = logging.getLogger(__name__)

MAX_SERVER_FAULTS = 3
"""Answers with an error status, or without sense, that one call puts up with before it fails."""
FAULT_PAUSE_S = 0.2
OVERLOADED = frozenset({429, 503})
REFUSED = frozenset({400, 413, 422})
ROUTED = "routed:"
"""Begins what stands for a server where a router chooses it: the key that the router keeps requests together by."""


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
    queued_s: float = 0.0
    """Seconds of them spent waiting for one."""
    top: list[Top] | None = None
    """One entry a token where top logprobs were asked for."""
    cached_tokens: int = 0
    """Prompt tokens that servers did not have to compute, as they reported them, summed over submissions."""
    matched_stop: str | int | None = None
    """The stop string or the stop token that ended it."""

    def append(self, segment: Segment) -> None:
        """Adds a segment, merging equal versions."""
        self.ids += segment.ids
        self.logprobs = [*(self.logprobs or ()), *segment.logprobs]
        if segment.top is not None:
            self.top = [*(self.top or ()), *segment.top]
        self.cached_tokens += segment.cached_tokens
        self.matched_stop = segment.matched_stop
        for version, count in segment.versions:
            if self.versions and self.versions[-1][0] == version:
                self.versions[-1] = (version, self.versions[-1][1] + count)
            else:
                self.versions.append((version, count))


@dataclass(slots=True)
class Call:
    """A completion on its way."""

    call_id: str
    prompt: Ids
    sampling: Sampling
    listener: Listener | None
    n_top: int
    trace_id: str
    done: Generated
    faults: int = 0
    avoid: set[str] = field(default_factory=set[str])
    """Servers that failed it."""

    @property
    def keeps_partial(self) -> bool:
        """A grammar begins anew with each request: what an interrupted one had said cannot be gone on from."""
        return not self.sampling.constrained

    def submission(self, pool: ServerPool, server: PolicyServer) -> Submission:
        """The next request for it: the prompt and what there is, for the rest."""
        n_done = len(self.done.ids)
        seed = None if self.sampling.seed is None else (self.sampling.seed + n_done) % 2**31
        return Submission(
            rid=f"{self.call_id}.{self.done.submissions}",
            input_ids=np.concatenate([self.prompt, np.asarray(self.done.ids, "<i4")]) if n_done else self.prompt,
            sampling=replace(self.sampling, max_new_tokens=self.sampling.max_new_tokens - n_done, seed=seed),
            pinned=server.version,
            n_top=self.n_top,
            mixed=lambda: pool.mixed,
            cache_key=f"v{server.version}" if pool.salted else "",
            routing_key=self.done.server.removeprefix(ROUTED) if pool.router else "",
            trace_id=self.trace_id,
        )


class Generator:
    """Runs completions on the pool."""

    def __init__(self, pool: ServerPool, gate: Gate, timeout_s: float) -> None:
        self._pool = pool
        self._gate = gate
        self._timeout_s = timeout_s

    def check_room(self) -> None:
        """Raises `Busy` where a call would be refused at once; for callers that want to know before they begin one."""
        self._pool.room.check()

    async def generate(
        self,
        call_id: str,
        prompt: Ids,
        sampling: Sampling,
        preferred: str,
        *,
        listener: Listener | None = None,
        n_top: int = 0,
        trace_id: str = "",
    ) -> Generated:
        """One completion. ``n_top``: how many of the likeliest tokens to report at each position.

        Raises `DeadlineExceeded`, `UpstreamFailed`, `Busy`, or `BadRequest` where the server refuses the request for what it is.
        """
        done = Generated(server=preferred or (f"{ROUTED}{call_id}" if self._pool.router else ""))
        call = Call(call_id, prompt, sampling, listener, n_top, trace_id, done)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._run(call)
        except TimeoutError:
            states = ", ".join(f"{server.url} {server.state.value}" for server in self._pool.servers)
            raise DeadlineExceeded(f"no completion within {self._timeout_s:g} s ({states})", retry_after_s=1.0) from None
        done.server_s = time.perf_counter() - started
        return done

    async def _run(self, call: Call) -> None:
        while not call.done.finish:
            server = await self._place(call)
            try:
                segment = await self._attempt(server, call)
            finally:
                self._pool.release(server)
            if segment is None:
                await asyncio.sleep(FAULT_PAUSE_S)
                continue
            self._keep(call, segment)
            if not call.done.finish and not segment.ids:
                # Paused by someone else than us: the gate is open, so without this the two of us would spin.
                await asyncio.sleep(FAULT_PAUSE_S)

    def _keep(self, call: Call, segment: Segment) -> None:
        done = call.done
        if segment.finish == "abort" and not call.keeps_partial:
            return
        done.append(segment)
        if segment.finish != "abort":
            done.finish = segment.finish
        elif len(done.ids) >= call.sampling.max_new_tokens:
            done.finish = "length"
        if done.finish and call.listener is not None and not self._streams(call):
            call.listener(Piece(done.ids, list(done.logprobs or ()), done.top))

    def _streams(self, call: Call) -> bool:
        return call.listener is not None and call.keeps_partial and self._pool.streams

    async def _place(self, call: Call) -> PolicyServer:
        """A place at a server, to be given back."""
        asked = time.perf_counter()
        await self._gate.wait()
        server = await self._pool.room.take(lambda: self._choose(call), under_way=call.done.submissions > 0)
        call.done.queued_s += time.perf_counter() - asked
        return server

    def _choose(self, call: Call) -> PolicyServer | None:
        if self._gate.closed:
            return None
        server = self._pool.choose(call.done.server, call.prompt, call.avoid)
        if server is not None and not self._pool.router:
            call.done.server = server.url
        return server

    async def _attempt(self, server: PolicyServer, call: Call) -> Segment | None:
        """One request: what it gave, None where it is to be made again. Raises `UpstreamFailed` or `BadRequest`."""
        submission = call.submission(self._pool, server)
        call.done.submissions += 1
        api = self._pool.router or server.api
        reader = SegmentReader(submission.pinned, submission.n_top, mixed=submission.mixed)
        try:
            if call.listener is not None and self._streams(call):
                return await api.stream(submission, self._timeout_s, reader, call.listener)
            return await api.generate(submission)
        except asyncio.CancelledError:
            await self._abort(server, submission.rid)
            raise
        except RemoteError as error:
            await self._blame(server, call, submission, error)
            return _salvaged(reader, error)

    async def _blame(self, server: PolicyServer, call: Call, submission: Submission, error: RemoteError) -> None:
        """Takes a server that is gone out of rotation, gives one that is full less, counts any other failure against the call."""
        if error.status in REFUSED:
            raise BadRequest(f"the policy server refuses this: {error.detail}", code=error.code or "refused") from error
        log.info("request %s failed at %s: %s", submission.rid, server.url, error)
        call.avoid.add(server.url)
        if error.code == "timeout":
            # It is there and says nothing: it must not go on with what another server gets now.
            await self._abort(server, submission.rid)
        if error.status in OVERLOADED:
            server.limit.refused()
            server.poked.set()
        elif self._pool.router is not None:
            self._look_at_all()
        elif error.status is None or error.code == STALE:
            self._pool.suspect(server, error.detail)
        if error.status is not None and error.status not in OVERLOADED and error.code != STALE:
            call.faults += 1
        if call.faults >= MAX_SERVER_FAULTS:
            raise UpstreamFailed(str(error)) from error

    def _look_at_all(self) -> None:
        """Which of its workers a router has asked is not known."""
        for server in self._pool.servers:
            server.poked.set()

    async def _abort(self, server: PolicyServer, rid: str) -> None:
        """Nobody waits for it any more: the server must not go on. Behind a router each is told; a rid nobody knows is ignored."""
        told = self._pool.up() if self._pool.router else [server]
        await asyncio.gather(*(_tell_to_abort(item.api, rid) for item in told))


async def _tell_to_abort(api: SglangServer, rid: str) -> None:
    try:
        await api.abort(rid)
    except RemoteError as error:
        log.warning("request %s may still run at %s: %s", rid, api.url, error)


def _salvaged(reader: SegmentReader, error: RemoteError) -> Segment | None:
    """What was heard of an answer that broke off. Raises `UpstreamFailed` where tokens were heard whose versions nobody can tell."""
    if not reader.n_tokens:
        return None
    segment = reader.salvaged()
    if segment is None:
        raise UpstreamFailed(f"the answer broke off after an update, its versions are lost: {error}") from error
    return segment
