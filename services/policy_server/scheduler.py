"""Owns who computes what next: admission, the trunk that is being built, steps, pause, abort and the change of weights.

One `step` takes newly arrived prompts and one token of every running sequence together (continuous batching). A prompt that shares a long
start with others waits until that start is trunk, so it is computed once however many arrive together. Refuses to know threads and HTTP:
it is driven from one thread, and reports each finished sequence to ``on_finish``.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.policy_server.forward import Work, build_chunk, run_step
from services.policy_server.kv import KvCache, Match
from services.policy_server.sampling import sample, uniform
from services.policy_server.sequences import FinishReason, Sequence, State
from services.policy_server.settings import EngineSettings
from services.policy_server.trunk import Segment, common_prefix
from services.policy_server.weights import Weights

PauseMode = Literal["abort", "retract", "in_place"]
WORTH_WAITING = 32
"""Tokens that a sequence being prefilled must share beyond the cache to make another wait for it."""


@dataclass(slots=True)
class Totals:
    """Counters since start, in tokens, requests and seconds."""

    generated_tokens: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    finished: int = 0
    aborted: int = 0
    retracted: int = 0
    weight_updates: int = 0


@dataclass(slots=True)
class Build:
    """A trunk segment of which the first ``done`` tokens are computed."""

    segment: Segment
    done: int = 0


class Scheduler:
    """All sequences of one engine."""

    def __init__(self, weights: Weights, settings: EngineSettings, on_finish: Callable[[Sequence], None]) -> None:
        self.weights = weights
        self.settings = settings
        self.totals = Totals()
        self.paused = False
        self.waiting: list[Sequence] = []
        self.active: list[Sequence] = []
        self.cache = KvCache(weights.model.config, settings)
        self._on_finish = on_finish
        self._build: Build | None = None

    @property
    def idle(self) -> bool:
        """Whether `step` would do nothing."""
        return self.paused or not (self.waiting or self.active)

    def submit(self, sequence: Sequence) -> None:
        """Adds a waiting sequence."""
        self.waiting.append(sequence)
        self.totals.prompt_tokens += sequence.length

    def step(self) -> None:
        """One iteration: admit, build a chunk of trunk, compute new prompt tokens and one token of each running sequence."""
        if self.idle:
            return
        started = time.perf_counter()
        self._admit()
        self._advance_build()
        works = self._works()
        if works:
            self._compute(works)
        self.totals.steps += 1
        self.totals.step_seconds += time.perf_counter() - started

    def abort(self, rid: str | None, message: str) -> int:
        """Ends one sequence, or all where ``rid`` is None, with what they have. Returns how many."""
        hit = [s for s in (*self.active, *self.waiting) if rid is None or s.rid == rid]
        for sequence in hit:
            self._finish(sequence, FinishReason.abort(message))
        return len(hit)

    def pause(self, mode: PauseMode) -> None:
        """Stops computing. Sequences are ended with what they have, sent back to wait, or kept as they are."""
        self.paused = True
        if mode == "abort":
            self.abort(None, "generation was paused")
        elif mode == "retract":
            self.retract()

    def resume(self) -> None:
        """Goes on after a pause."""
        self.paused = False

    def retract(self) -> None:
        """Sends running sequences back to wait, with the tokens they have."""
        for sequence in self.active:
            sequence.move(State.WAITING)
            self._release(sequence)
        self.totals.retracted += len(self.active)
        self.waiting[:0] = self.active
        self.active = []

    def swap(self, weights: Weights) -> None:
        """Serves other weights from the next token on. Everything cached belongs to the old ones and is dropped."""
        self.retract()
        self.weights = weights
        self.totals.weight_updates += 1
        self.flush()

    def flush(self) -> bool:
        """Empties the cache; False where sequences are running."""
        if self.active:
            return False
        self._build = None
        self.cache = KvCache(self.weights.model.config, self.settings)
        return True

    def _admit(self) -> None:
        for sequence in list(self.waiting):
            if len(self.active) >= self.settings.max_running_requests:
                return
            match = self._cover(sequence)
            if match is None:
                continue
            if sequence.cached_tokens is None:
                self._count_cached(sequence, match.covered)
            sequence.slot = self.cache.seat(match)
            sequence.move(State.PREFILL)
            self.waiting.remove(sequence)
            self.active.append(sequence)

    def _cover(self, sequence: Sequence) -> Match | None:
        """What the cache has for a sequence, or None where it should wait for something that is being computed."""
        tokens = sequence.tokens
        match = self.cache.find(tokens)
        while self.cache.share(match):
            match = self.cache.find(tokens)
        worth = match.covered + WORTH_WAITING
        if any(s.state is State.PREFILL and common_prefix(s.tokens, tokens[:-1]) >= worth for s in self.active):
            return None
        goal = self._trunk_goal(sequence, match)
        if goal is None:
            return match
        if self._build is None:
            self._count_cached(sequence, match.node.end)
            self._build = Build(self.cache.new_segment(match.node, tokens[match.node.end : goal].copy()))
        return None

    def _trunk_goal(self, sequence: Sequence, match: Match) -> int | None:
        """Up to which token new trunk is needed first: what all share that share much with it, or else all that no tail can hold."""
        tokens = sequence.tokens
        least = match.covered + self.settings.min_trunk_tokens
        if len(tokens) <= least:
            return None
        shared = [n for s in self.waiting if s is not sequence and (n := common_prefix(s.tokens, tokens[:-1])) >= least]
        if shared:
            return min(shared)
        return len(tokens) - 1 if len(tokens) - match.node.end > self.settings.max_tail_tokens else None

    def _count_cached(self, sequence: Sequence, covered: int) -> None:
        if sequence.cached_tokens is None:
            sequence.cached_tokens = covered
            self.totals.cached_tokens += covered

    def _advance_build(self) -> None:
        build = self._build
        if build is None:
            return
        n = min(self.settings.build_tokens_per_step, len(build.segment.tokens) - build.done)
        build_chunk(self.weights.model, build.segment, build.done, n)
        build.done += n
        self.totals.prefill_tokens += n
        if build.done == len(build.segment.tokens):
            self.cache.attach(build.segment)
            self._build = None

    def _works(self) -> list[tuple[Sequence, Work]]:
        """One token of each decoding sequence, and prompt tokens in order of arrival up to the budget of a step."""
        budget = self.settings.prefill_tokens_per_step
        works: list[tuple[Sequence, Work]] = []
        for sequence in self.active:
            assert sequence.slot is not None
            room = self.cache.room(sequence.slot)
            if sequence.state is State.PREFILL:
                room = min(room, budget)
            if room == 0:
                continue
            tokens = sequence.pending()[:room]
            if sequence.state is State.PREFILL:
                budget -= len(tokens)
                self.totals.prefill_tokens += len(tokens)
            works.append((sequence, Work(sequence.slot, tokens)))
        return works

    def _compute(self, works: list[tuple[Sequence, Work]]) -> None:
        owner = {id(work): sequence for sequence, work in works}
        ordered, logits_BV = run_step(self.weights.model, self.cache, [work for _, work in works])
        sequences = [owner[id(work)] for work in ordered]
        rows = [row for row, s in enumerate(sequences) if s.slot is not None and s.slot.end == s.length]
        if not rows:
            return
        ready = [sequences[row] for row in rows]
        uniforms = [uniform(s.seed, s.length) for s in ready]
        logits = logits_BV if len(rows) == len(sequences) else logits_BV[rows]
        ids, logprobs = sample(logits, [s.sampling for s in ready], uniforms)
        self.totals.generated_tokens += len(ids)
        for sequence, token, logprob in zip(ready, ids, logprobs, strict=True):
            if sequence.state is State.PREFILL:
                sequence.move(State.DECODE)
            sequence.emit(token, logprob, self.weights.version)
            if reason := sequence.ending(self.weights.eos):
                self._finish(sequence, reason)
            elif sequence.notify is not None:
                sequence.notify()

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        (self.active if sequence.running else self.waiting).remove(sequence)
        if sequence.running:
            self._release(sequence)
        sequence.move(State.FINISHED)
        sequence.finish_reason = reason
        self.totals.finished += 1
        self.totals.aborted += reason.type == "abort"
        self._on_finish(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.cache.release(sequence.slot)
        sequence.slot = None
