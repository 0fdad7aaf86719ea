"""Owns one forward pass over new tokens of many sequences: which keys each of them sees, in as few kernel calls as possible.

The tokens of a step are one flat sequence. Every trunk segment is attended to by all its sequences in one call; tails of sequences that
add one token are attended to in place, a run of neighbouring slots at a time; tails of sequences that add more, one by one. The parts are
merged by their log-sum-exp, so the result is that of one softmax. Refuses to sample or to decide who is in the step.

Shape suffixes: N new tokens, H query heads, K key/value heads, G = H / K, E head dimension, R slots of a run, M keys, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.common.nn.flash import MASKED, attend_causal, attend_part, fold, merge, unfold
from services.common.nn.qwen3 import Qwen3
from services.policy_server.kv import KvCache, Slot
from services.policy_server.trunk import Ids, Segment

RUN_OVERHEAD_KEYS = 600
"""What one more kernel call costs, in keys of one row. Computing fewer rows and keys than that for nobody is cheaper than another call."""


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of one sequence; there is room for them in its tail."""

    slot: Slot
    tokens: Ids


@dataclass(frozen=True, slots=True)
class Run:
    """Single-token works on the slots ``low`` to ``high``, whose tokens are ``first`` to ``last`` of the step."""

    first: int
    last: int
    low: int
    high: int
    keys: int
    mask_R11M: Tensor
    rows: Tensor | None
    """Places of the works among the slots, None where every slot has one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A work of several tokens, ``first`` to ``last`` of the step, that sees ``keys`` keys of its tail, itself included."""

    first: int
    last: int
    slot: int
    keys: int
    mask_QM: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a step that is the same in each layer."""

    ids_N: Tensor
    positions_N: Tensor
    tail_rows: Tensor
    """Where the new keys go: indices into a layer's tails seen as [S·K·T, E]."""
    segments: list[tuple[Segment, Tensor | None]]
    """Segment and which tokens see it, None for all."""
    runs: list[Run]
    pieces: list[Piece]
    last_tokens: Tensor
    """The last token of each work."""


def run_step(model: Qwen3, cache: KvCache, works: list[Work]) -> tuple[list[Work], Tensor]:
    """Computes the works, writes their keys and values, and returns them in the order of the logits of their last tokens, [works, V]."""
    ordered = sorted(works, key=lambda work: (len(work.tokens) > 1, work.slot.index))
    plan = make_plan(cache, ordered, model.config.num_attention_heads // model.config.num_key_value_heads)
    hidden_ND = model(plan.ids_N, plan.positions_N, StepAttention(cache, plan, model.config.num_key_value_heads))
    for work in ordered:
        cache.append(work.slot, work.tokens)
    return ordered, model.logits(hidden_ND[plan.last_tokens])


def make_plan(cache: KvCache, works: list[Work], group: int) -> Plan:
    """The plan of ``works``, which are ordered: single tokens first, by slot."""
    sizes = np.array([len(work.tokens) for work in works])
    ends = sizes.cumsum()
    owner_N = np.repeat(np.arange(len(works)), sizes)
    offset_N = np.arange(int(ends[-1])) - (ends - sizes)[owner_N]
    slot_N = np.array([work.slot.index for work in works])[owner_N]
    tail_N = np.array([work.slot.length for work in works])[owner_N] + offset_N
    start_N = np.array([work.slot.node.end for work in works])[owner_N]
    heads = np.arange(cache.k_SKTE[0].shape[1])
    rows_NK = (slot_N[:, None] * len(heads) + heads) * cache.max_tail + tail_N[:, None]
    singles = int((sizes == 1).sum())
    return Plan(
        ids_N=torch.from_numpy(np.concatenate([work.tokens for work in works]).astype(np.int64)),
        positions_N=torch.from_numpy(start_N + tail_N),
        tail_rows=torch.from_numpy(rows_NK.reshape(-1)),
        segments=_segments(works, owner_N),
        runs=plan_runs([work.slot for work in works[:singles]]),
        pieces=[_piece(work, int(end), group) for work, end in zip(works[singles:], ends[singles:], strict=True)],
        last_tokens=torch.from_numpy(ends - 1),
    )


def _segments(works: list[Work], owner_N: np.ndarray) -> list[tuple[Segment, Tensor | None]]:
    seen: dict[int, tuple[Segment, list[int]]] = {}
    for index, work in enumerate(works):
        for segment in work.slot.node.path():
            seen.setdefault(id(segment), (segment, []))[1].append(index)
    return [
        (segment, None if len(members) == len(works) else torch.from_numpy(np.flatnonzero(np.isin(owner_N, members))))
        for segment, members in seen.values()
    ]


def plan_runs(slots: list[Slot]) -> list[Run]:
    """Cuts single-token works, in the order of their slots, into runs. A run pays for all its rows up to its longest tail."""
    runs: list[Run] = []
    first = longest = 0
    for index, slot in enumerate(slots):
        keys = slot.length + 1
        rows = slots[index - 1].index - slots[first].index + 1
        joined = (slot.index - slots[first].index + 1) * max(longest, keys)
        if index > first and joined > rows * longest + RUN_OVERHEAD_KEYS + keys:
            runs.append(_run(slots, first, index))
            first, longest = index, 0
        longest = max(longest, keys)
    return [*runs, _run(slots, first, len(slots))] if slots else []


def _run(slots: list[Slot], first: int, last: int) -> Run:
    members = slots[first:last]
    low, high = members[0].index, members[-1].index + 1
    lengths = np.zeros(high - low, np.int64)
    places = np.array([slot.index - low for slot in members])
    lengths[places] = [slot.length + 1 for slot in members]
    keys = int(lengths.max())
    mask_RM = np.where(np.arange(keys) < lengths[:, None], np.float32(0), np.float32(MASKED))
    rows = torch.from_numpy(places) if high - low > len(members) else None
    return Run(first, last, low, high, keys, torch.from_numpy(mask_RM)[:, None, None], rows)


def _piece(work: Work, end: int, group: int) -> Piece:
    n, old = len(work.tokens), work.slot.length
    mask_nM = np.where(np.arange(old + n) <= old + np.arange(n)[:, None], np.float32(0), np.float32(MASKED))
    return Piece(end - n, end, work.slot.index, old + n, torch.from_numpy(np.tile(mask_nM, (group, 1))))


class StepAttention:
    """The `Attend` of one step."""

    def __init__(self, cache: KvCache, plan: Plan, n_kv: int) -> None:
        self._cache = cache
        self._plan = plan
        self._n_kv = n_kv

    def __call__(self, layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        k_SKTE, v_SKTE = self._cache.k_SKTE[layer], self._cache.v_SKTE[layer]
        head_dim = k_NKE.shape[-1]
        k_SKTE.view(-1, head_dim).index_copy_(0, self._plan.tail_rows, k_NKE.reshape(-1, head_dim))
        v_SKTE.view(-1, head_dim).index_copy_(0, self._plan.tail_rows, v_NKE.reshape(-1, head_dim))
        out_NHE = torch.empty_like(q_NHE, memory_format=torch.contiguous_format)
        lse_NH = q_NHE.new_empty(q_NHE.shape[:2])
        for run in self._plan.runs:
            part, lse = self._run(run, q_NHE, k_SKTE, v_SKTE)
            out_NHE[run.first : run.last], lse_NH[run.first : run.last] = part, lse
        for piece in self._plan.pieces:
            part, lse = self._piece(piece, q_NHE, k_SKTE, v_SKTE)
            out_NHE[piece.first : piece.last], lse_NH[piece.first : piece.last] = part, lse
        for segment, members in self._plan.segments:
            k_1KnE, v_1KnE = segment.k_1KnE[layer], segment.v_1KnE[layer]
            if members is None:
                out_NHE, lse_NH = merge(out_NHE, lse_NH, *attend_folded(q_NHE, k_1KnE, v_1KnE))
                continue
            part = attend_folded(q_NHE[members], k_1KnE, v_1KnE)
            out_NHE[members], lse_NH[members] = merge(out_NHE[members], lse_NH[members], *part)
        return out_NHE

    def _run(self, run: Run, q_NHE: Tensor, k_SKTE: Tensor, v_SKTE: Tensor) -> tuple[Tensor, Tensor]:
        n, h, e = run.last - run.first, *q_NHE.shape[1:]
        q_RKGE = q_NHE[run.first : run.last].view(n, self._n_kv, h // self._n_kv, e)
        if run.rows is not None:
            q_RKGE = q_RKGE.new_zeros(run.high - run.low, *q_RKGE.shape[1:]).index_copy_(0, run.rows, q_RKGE)
        keys_RKME, values_RKME = (x[run.low : run.high, :, : run.keys] for x in (k_SKTE, v_SKTE))
        out_RKGE, lse_RKG = attend_part(q_RKGE, keys_RKME, values_RKME, run.mask_R11M)
        if run.rows is not None:
            out_RKGE, lse_RKG = out_RKGE[run.rows], lse_RKG[run.rows]
        return out_RKGE.reshape(n, h, e), lse_RKG.reshape(n, h)

    def _piece(self, piece: Piece, q_NHE: Tensor, k_SKTE: Tensor, v_SKTE: Tensor) -> tuple[Tensor, Tensor]:
        keys_1KME, values_1KME = (x[piece.slot : piece.slot + 1, :, : piece.keys] for x in (k_SKTE, v_SKTE))
        return attend_folded(q_NHE[piece.first : piece.last], keys_1KME, values_1KME, piece.mask_QM)


def attend_folded(q_NHE: Tensor, k_1KME: Tensor, v_1KME: Tensor, mask_QM: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output [N, H, E] and log-sum-exp [N, H] of queries that all see the same keys, but for the mask over folded queries."""
    n, h, _ = q_NHE.shape
    n_kv = k_1KME.shape[1]
    out_1KQE, lse_1KQ = attend_part(fold(q_NHE, n_kv), k_1KME, v_1KME, mask_QM)
    return unfold(out_1KQE, n), lse_1KQ.view(n_kv, h // n_kv, n).permute(2, 0, 1).reshape(n, h)


def build_chunk(model: Qwen3, segment: Segment, done: int, n: int) -> None:
    """Computes the keys and values of tokens ``done`` to ``done + n`` of a segment whose earlier ones are there."""
    assert segment.parent is not None
    ids_N = torch.from_numpy(segment.tokens[done : done + n].astype(np.int64))
    positions_N = torch.arange(segment.start + done, segment.start + done + n)
    model(ids_N, positions_N, BuildAttention(segment, segment.parent.path(), done))


class BuildAttention:
    """The `Attend` of a chunk of trunk."""

    def __init__(self, segment: Segment, path: list[Segment], done: int) -> None:
        self._segment = segment
        self._path = path
        self._done = done

    def __call__(self, layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        n, heads, _ = q_NHE.shape
        group = heads // k_NKE.shape[1]
        k_1KnE, v_1KnE = self._segment.k_1KnE[layer], self._segment.v_1KnE[layer]
        k_1KnE[0, :, self._done : self._done + n] = k_NKE.transpose(0, 1)
        v_1KnE[0, :, self._done : self._done + n] = v_NKE.transpose(0, 1)
        q_1HNE, k_1HNE, v_1HNE = (
            x.transpose(0, 1)[None] for x in (q_NHE, k_NKE.repeat_interleave(group, 1), v_NKE.repeat_interleave(group, 1))
        )
        out_1HNE, lse_1HN = attend_causal(q_1HNE, k_1HNE, v_1HNE)
        out_NHE, lse_NH = out_1HNE[0].transpose(0, 1), lse_1HN[0].transpose(0, 1)
        if self._done:
            part = attend_folded(q_NHE, k_1KnE[:, :, : self._done], v_1KnE[:, :, : self._done])
            out_NHE, lse_NH = merge(out_NHE, lse_NH, *part)
        for segment in self._path:
            out_NHE, lse_NH = merge(out_NHE, lse_NH, *attend_folded(q_NHE, segment.k_1KnE[layer], segment.v_1KnE[layer]))
        return out_NHE
