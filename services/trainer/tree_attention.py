"""Owns attention over a packed prefix tree, forward and backward, without a mask over the whole tree.

The trunk (the chain every sequence starts with) is plain causal attention. What follows sees the whole trunk, one unmasked kernel call
for all of it, and its own ancestors, one small masked call a block of queries; both are merged exactly (services/common/nn/flash.py).

Shape suffixes as in services/common/nn/flash.py; T trunk tokens, B queries of a block, M gathered keys of a block.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.common.nn import flash
from services.trainer.packing import Tree

BLOCK = 512
"""Queries a masked call takes: large enough to feed the kernel, small enough that few foreign keys are gathered."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some queries behind the trunk and the keys behind the trunk that at least one of them sees."""

    start: int
    stop: int
    keys_M: Tensor
    mask_BM: Tensor
    """0 where visible, `flash.MASKED` elsewhere."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What attention needs to know of a tree."""

    trunk: int
    blocks: list[Block]
    log_weight: float = 0.0
    """Added to the log-sum-exp over the trunk: log(r) where each of its keys stands for r keys (`services/trainer/thinning.py`)."""


def layout_of(tree: Tree, block: int = BLOCK, trunk: int | None = None, log_weight: float = 0.0) -> Layout:
    """The blocks of a tree. ``trunk`` may be shorter than the chain that all sequences share."""
    trunk = tree.trunk if trunk is None else trunk
    blocks: list[Block] = []
    for start in range(trunk, tree.size, block):
        stop = min(start + block, tree.size)
        above = np.flatnonzero(tree.end_N[trunk:start] > start) + trunk
        keys_M = np.concatenate([above, np.arange(start, stop)])
        query_B1 = np.arange(start, stop)[:, None]
        visible_BM = (keys_M <= query_B1) & (query_B1 < tree.end_N[keys_M])
        mask_BM = torch.from_numpy(np.where(visible_BM, 0.0, flash.MASKED).astype(np.float32))
        blocks.append(Block(start, stop, torch.from_numpy(keys_M), mask_BM))
    return Layout(trunk, blocks, log_weight)


class TreeAttention(torch.autograd.Function):
    """``apply(q_NHE, k_NKE, v_NKE, layout) -> out_NHE``."""

    @staticmethod
    def forward(ctx: Any, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, layout: Layout) -> Tensor:
        n_kv = k_NKE.shape[1]
        t = layout.trunk
        k_1KNE, v_1KNE = heads_first(k_NKE), heads_first(v_NKE)
        out_NHE = torch.empty_like(q_NHE)
        trunk_out = trunk_lse = torch.empty(0)
        if t:
            trunk_out, trunk_lse = flash.attend_causal(
                heads_first(q_NHE[:t]), grouped(k_1KNE[:, :, :t], q_NHE), grouped(v_1KNE[:, :, :t], q_NHE)
            )
            out_NHE[:t] = trunk_out[0].transpose(0, 1)
        saved: list[Tensor] = []
        for block in layout.blocks:
            q_1KQE = flash.fold(q_NHE[block.start : block.stop], n_kv)
            out, lse = flash.attend_part(q_1KQE, k_1KNE[:, :, block.keys_M], v_1KNE[:, :, block.keys_M], folded_mask(block, q_NHE, n_kv))
            if t:
                prefix_out, prefix_lse = flash.attend_part(q_1KQE, k_1KNE[:, :, :t], v_1KNE[:, :, :t])
                out, lse = flash.merge(prefix_out, prefix_lse + layout.log_weight, out, lse)
            out_NHE[block.start : block.stop] = flash.unfold(out, block.stop - block.start)
            saved += [out, lse]
        ctx.save_for_backward(q_NHE, k_1KNE, v_1KNE, trunk_out, trunk_lse, *saved)
        ctx.layout = layout
        return out_NHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_NHE = grads[0]
        q_NHE, k_1KNE, v_1KNE, trunk_out, trunk_lse, *saved = ctx.saved_tensors
        layout: Layout = ctx.layout
        dq_NHE = torch.empty_like(q_NHE)
        dk_1KNE, dv_1KNE = torch.zeros_like(k_1KNE), torch.zeros_like(v_1KNE)
        if layout.trunk:
            _trunk_backward(layout.trunk, grad_NHE, q_NHE, k_1KNE, v_1KNE, trunk_out, trunk_lse, dq_NHE, dk_1KNE, dv_1KNE)
        for block, out, lse in zip(layout.blocks, saved[::2], saved[1::2], strict=True):
            _block_backward(layout, block, grad_NHE, q_NHE, k_1KNE, v_1KNE, out, lse, dq_NHE, dk_1KNE, dv_1KNE)
        return dq_NHE, dk_1KNE[0].transpose(0, 1), dv_1KNE[0].transpose(0, 1), None


def _trunk_backward(
    t: int,
    grad_NHE: Tensor,
    q_NHE: Tensor,
    k_1KNE: Tensor,
    v_1KNE: Tensor,
    out: Tensor,
    lse: Tensor,
    dq_NHE: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    q, grad = heads_first(q_NHE[:t]), heads_first(grad_NHE[:t])
    k, v = grouped(k_1KNE[:, :, :t], q_NHE), grouped(v_1KNE[:, :, :t], q_NHE)
    dq_1HTE, dk_1HTE, dv_1HTE = flash.attend_backward(grad, q, k, v, out, lse, causal=True)
    dq_NHE[:t] = dq_1HTE[0].transpose(0, 1)
    dk[:, :, :t] += summed(dk_1HTE, dk.shape[1])
    dv[:, :, :t] += summed(dv_1HTE, dv.shape[1])


def _block_backward(
    layout: Layout,
    block: Block,
    grad_NHE: Tensor,
    q_NHE: Tensor,
    k_1KNE: Tensor,
    v_1KNE: Tensor,
    out: Tensor,
    lse: Tensor,
    dq_NHE: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    n_kv, t = k_1KNE.shape[1], layout.trunk
    q = flash.fold(q_NHE[block.start : block.stop], n_kv)
    grad = flash.fold(grad_NHE[block.start : block.stop], n_kv)
    k, v = k_1KNE[:, :, block.keys_M], v_1KNE[:, :, block.keys_M]
    dq, dk_M, dv_M = flash.attend_backward(grad, q, k, v, out, lse, mask=folded_mask(block, q_NHE, n_kv))
    dk.index_add_(2, block.keys_M, dk_M)
    dv.index_add_(2, block.keys_M, dv_M)
    if t:
        dq_t, dk_t, dv_t = flash.attend_backward(grad, q, k_1KNE[:, :, :t], v_1KNE[:, :, :t], out, lse - layout.log_weight)
        dq = dq + dq_t
        dk[:, :, :t] += dk_t
        dv[:, :, :t] += dv_t
    dq_NHE[block.start : block.stop] = flash.unfold(dq, block.stop - block.start)


def heads_first(x_NHE: Tensor) -> Tensor:
    """[N, H, E] -> [1, H, N, E], contiguous."""
    return x_NHE.transpose(0, 1).contiguous().unsqueeze(0)


def grouped(x_1KNE: Tensor, q_NHE: Tensor) -> Tensor:
    """Repeats each key/value head for the query heads that use it."""
    return x_1KNE.repeat_interleave(q_NHE.shape[1] // x_1KNE.shape[1], 1)


def summed(x_1HNE: Tensor, n_kv: int) -> Tensor:
    """Backward of `grouped`."""
    _, h, n, e = x_1HNE.shape
    return x_1HNE.view(1, n_kv, h // n_kv, n, e).sum(2)


def folded_mask(block: Block, q_NHE: Tensor, n_kv: int) -> Tensor:
    """The block's mask for folded queries."""
    return block.mask_BM.repeat(q_NHE.shape[1] // n_kv, 1)
