"""Owns one generation: the request, its states, what it produced and under which weights, and how it ended.

Refuses illegal state changes. Knows no tensors.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from services.policy_server.kv import Slot
from services.policy_server.sampling import SamplingParams
from services.policy_server.stops import Matcher
from services.policy_server.trunk import Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What a caller asks for. ``input_ids`` is the whole sequence so far."""

    input_ids: SequenceOf[int] | Ids
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rid: str | None = None
    notify: Callable[[], None] | None = None
    """Called in the engine's thread for each new token but the last."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Output tokens ``start`` to ``end`` (exclusive) were sampled under ``version``."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FinishReason:
    """SGLang's finish reason: ``stop`` with the matched token, ``length`` with the limit, ``abort`` with a message."""

    type: str
    detail: dict[str, Any]

    @classmethod
    def stop(cls, token: int) -> "FinishReason":
        return cls("stop", {"matched": token})

    @classmethod
    def stop_string(cls, matched: str) -> "FinishReason":
        return cls("stop", {"matched": matched})

    @classmethod
    def length(cls, limit: int) -> "FinishReason":
        return cls("length", {"length": limit})

    @classmethod
    def abort(cls, message: str) -> "FinishReason":
        return cls("abort", {"message": message})


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """A generation, or (``finish_reason`` None) as much as there is of one.

    ``logprobs[i]`` is that of ``output_ids[i]``; the stop token, if any, is the last of them.
    """

    rid: str
    output_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that needed no computing when the request was first scheduled."""
    weight_versions: list[VersionSpan]
    weight_version: str
    """The version at the end."""
    latency_s: float


class State(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.FINISHED}),
    State.PREFILL: frozenset({State.DECODE, State.WAITING, State.FINISHED}),
    State.DECODE: frozenset({State.WAITING, State.FINISHED}),
    State.FINISHED: frozenset(),
}


class Sequence:
    """A request and what became of it so far."""

    def __init__(
        self,
        rid: str,
        prompt: Ids,
        sampling: SamplingParams,
        seed: int,
        *,
        stops: Matcher | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.rid = rid
        self.sampling = sampling
        self.seed = seed
        self.state = State.WAITING
        self.slot: Slot | None = None
        self.cached_tokens: int | None = None
        self.output_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.notify = notify
        self._stops = stops
        self._prompt = prompt
        self._tokens = prompt
        self._spans: list[VersionSpan] = []
        self._started = time.perf_counter()

    @property
    def tokens(self) -> Ids:
        """Prompt and output so far."""
        if len(self._tokens) < self.length:
            done = len(self._tokens) - len(self._prompt)
            self._tokens = np.concatenate((self._tokens, np.array(self.output_ids[done:], np.int32)))
        return self._tokens

    @property
    def length(self) -> int:
        """Number of tokens, prompt and output."""
        return len(self._prompt) + len(self.output_ids)

    @property
    def running(self) -> bool:
        """Whether it holds a slot."""
        return self.state in (State.PREFILL, State.DECODE)

    def move(self, state: State) -> None:
        """Changes the state. Raises ValueError for a change that `TRANSITIONS` does not have."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"sequence {self.rid}: {self.state.value} cannot become {state.value}")
        self.state = state

    def pending(self) -> Ids:
        """Tokens whose keys and values are not in the tail yet."""
        assert self.slot is not None
        if self.slot.end == self.length - 1 and self.output_ids:
            return np.array(self.output_ids[-1:], np.int32)
        return self.tokens[self.slot.end :]

    def emit(self, token: int, logprob: float, version: str) -> None:
        """Takes a sampled token."""
        at = len(self.output_ids)
        self.output_ids.append(token)
        self.logprobs.append(logprob)
        if self._spans and self._spans[-1].version == version:
            self._spans[-1] = VersionSpan(version, self._spans[-1].start, at + 1)
        else:
            self._spans.append(VersionSpan(version, at, at + 1))

    def ending(self, eos: frozenset[int]) -> FinishReason | None:
        """Why the last token ends the sequence, or None."""
        last = self.output_ids[-1]
        if self._stops is not None and (matched := self._stops(self.output_ids)) is not None:
            return FinishReason.stop_string(matched)
        if last in self.sampling.stop_token_ids or (last in eos and not self.sampling.ignore_eos):
            return FinishReason.stop(last)
        if len(self.output_ids) >= self.sampling.max_new_tokens:
            return FinishReason.length(self.sampling.max_new_tokens)
        return None

    def result(self, version: str) -> GenerateResult:
        """What the caller gets, or may see of it meanwhile."""
        return GenerateResult(
            rid=self.rid,
            output_ids=self.output_ids,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self._prompt),
            cached_tokens=self.cached_tokens or 0,
            weight_versions=self._spans,
            weight_version=version,
            latency_s=time.perf_counter() - self._started,
        )
