"""Owns the engine as others use it: one worker thread that computes, and calls that may come from any thread or event loop.

The worker owns the scheduler and everything in it; a caller hands it a closure and gets a future, so nothing is locked. A step that fails
fails the requests in it, drops the cache and the engine goes on. This is a stand-in for SGLang on laptops and in tests, not a production
engine. Refuses a request beyond the bounded queue, and one that cannot fit the model's context.
"""

import asyncio
import logging
import queue
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from services.common.errors import BadRequest, ServiceError, Unavailable
from services.common.ids import new_id
from services.policy_server.scheduler import PauseMode, Scheduler, Totals
from services.policy_server.sequences import GenerateRequest, GenerateResult, Sequence
from services.policy_server.settings import EngineSettings
from services.policy_server.stops import StopStrings
from services.policy_server.weights import Weights, load_weights

log = logging.getLogger(__name__)
T = TypeVar("T")

JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class UpdateOutcome:
    """Whether new weights are served now, and if not, why the old ones still are."""

    success: bool
    message: str


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot for people and metrics."""

    running: int
    waiting: int
    paused: bool
    kv_tokens: int
    trunk_tokens: int
    totals: Totals


class Engine:
    """Generates with one policy. ``start`` loads nothing: the weights are loaded by the constructor."""

    def __init__(self, model_dir: Path, settings: EngineSettings | None = None, version: str = "0") -> None:
        self.settings = settings or EngineSettings()
        self._scheduler = Scheduler(load_weights(model_dir, version), self.settings, self._deliver)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stops = StopStrings(str(model_dir))
        self._inflight: dict[str, Future[GenerateResult]] = {}
        self._thread = threading.Thread(target=self._work, name="policy-engine", daemon=True)
        self._stopping = False

    @property
    def weights(self) -> Weights:
        """What is served."""
        return self._scheduler.weights

    def start(self) -> None:
        """Starts the worker thread."""
        self._thread.start()

    def stop(self) -> None:
        """Aborts what runs and ends the worker thread."""
        self.call(self._stop)
        self._thread.join(JOIN_TIMEOUT_S)

    def call(self, command: Callable[[], T]) -> Future[T]:
        """Runs ``command`` in the worker thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(command())
            except Exception as error:  # noqa: BLE001 - the boundary between threads: the caller gets the error
                future.set_exception(error)

        self._commands.put(run)
        return future

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Generates; cancelling aborts the request. Raises BadRequest, or Unavailable where the queue is full."""
        sequence, future = self.submit(request)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self.abort(sequence.rid, "the caller went away")
            raise

    def submit(self, request: GenerateRequest) -> tuple[Sequence, Future[GenerateResult]]:
        """Queues a request and returns what it is in the engine, to be read only, and its future result. Raises as `generate`."""
        if self._stopping:
            raise Unavailable("the server is stopping", code="stopping")
        sequence = self._sequence(request)
        limit = self.settings.max_running_requests + self.settings.max_queued_requests
        if len(self._inflight) >= limit:
            raise Unavailable(f"{limit} requests are running or waiting, try again later", code="queue_full", retry_after_s=1.0)
        if sequence.rid in self._inflight:
            raise BadRequest(f"rid: {sequence.rid!r} is already in flight, choose another", param="rid")
        future: Future[GenerateResult] = Future()
        self._inflight[sequence.rid] = future
        self._commands.put(lambda: self._scheduler.submit(sequence))
        return sequence, future

    def snapshot(self, sequence: Sequence) -> GenerateResult:
        """What there is of a generation at this moment; readable from any thread. Its label is never older than its last token."""
        n = len(sequence.logprobs)
        result = sequence.result("")
        return replace(
            result, output_ids=result.output_ids[:n], logprobs=result.logprobs[:n], weight_versions=[], weight_version=self.weights.version
        )

    def abort(self, rid: str | None, message: str = "aborted by request") -> Future[int]:
        """Ends one request, or all where ``rid`` is None, with what they have."""
        return self.call(lambda: self._scheduler.abort(rid, message))

    def pause(self, mode: PauseMode) -> Future[None]:
        """Stops computing until `resume`; see `Scheduler.pause`."""
        return self.call(lambda: self._scheduler.pause(mode))

    def resume(self) -> Future[None]:
        """Goes on after a pause."""
        return self.call(self._scheduler.resume)

    def flush(self) -> Future[bool]:
        """Empties the cache; False where requests are running."""
        return self.call(self._scheduler.flush)

    def update_weights(self, folder: Path, version: str | None = None, *, abort_all: bool = False) -> Future[UpdateOutcome]:
        """Serves the weights in ``folder`` from the next token on; on failure the old ones stay. Order with `generate` calls is kept."""
        return self.call(lambda: self._update(folder, version, abort_all))

    def load(self) -> Load:
        """Numbers of this moment; readable from any thread."""
        scheduler = self._scheduler
        return Load(
            running=len(scheduler.active),
            waiting=len(scheduler.waiting),
            paused=scheduler.paused,
            kv_tokens=scheduler.cache.cached_tokens,
            trunk_tokens=scheduler.cache.trunk.tokens,
            totals=Totals(**asdict(scheduler.totals)),
        )

    def _sequence(self, request: GenerateRequest) -> Sequence:
        prompt = np.asarray(request.input_ids, np.int32)
        config = self.weights.model.config
        if prompt.ndim != 1 or not len(prompt):
            raise BadRequest("input_ids: send a non-empty list of token ids", param="input_ids")
        if prompt.min() < 0 or prompt.max() >= config.vocab_size:
            raise BadRequest(f"input_ids: ids must be in 0..{config.vocab_size - 1}", param="input_ids")
        total = len(prompt) + request.sampling.max_new_tokens
        if total > config.max_position_embeddings:
            raise BadRequest(
                f"{len(prompt)} prompt tokens and max_new_tokens {request.sampling.max_new_tokens} exceed "
                f"the model's context of {config.max_position_embeddings} tokens",
                code="context_length_exceeded",
                param="input_ids",
            )
        sampling = request.sampling
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        stops = self._stops.matcher(sampling.stop) if sampling.stop else None
        return Sequence(request.rid or new_id("gen"), prompt, sampling, seed, stops=stops, notify=request.notify)

    def _deliver(self, sequence: Sequence) -> None:
        future = self._inflight.pop(sequence.rid)
        if future.set_running_or_notify_cancel():
            future.set_result(sequence.result(self.weights.version))

    def _update(self, folder: Path, version: str | None, abort_all: bool) -> UpdateOutcome:
        try:
            weights = load_weights(folder, version or self.weights.version)
        except ValueError as error:
            log.warning("weights not loaded, version %s stays: %s", self.weights.version, error)
            return UpdateOutcome(False, f"weights not loaded, version {self.weights.version} stays: {error}")
        if abort_all:
            self._scheduler.abort(None, "aborted for a weight update")
        self._scheduler.swap(weights)
        return UpdateOutcome(True, f"serving version {weights.version} from {folder}")

    def _stop(self) -> None:
        self._stopping = True
        self._scheduler.abort(None, "the server is stopping")

    def _work(self) -> None:
        torch.set_num_threads(self.settings.threads)
        with torch.inference_mode():
            while not self._stopping:
                self._run_commands()
                try:
                    self._scheduler.step()
                except Exception:
                    log.exception("a step failed; its requests fail and the cache is dropped")
                    self._fail_all()

    def _run_commands(self) -> None:
        """Takes every command that waits; with nothing to compute, waits for one."""
        if self._scheduler.idle:
            self._commands.get()()
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                return

    def _fail_all(self) -> None:
        for rid, future in list(self._inflight.items()):
            del self._inflight[rid]
            if future.set_running_or_notify_cancel():
                future.set_exception(ServiceError("the engine failed on this request, see its log"))
        self._scheduler = Scheduler(self.weights, self.settings, self._deliver)
