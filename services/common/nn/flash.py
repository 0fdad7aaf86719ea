"""Owns attention in parts: torch's CPU flash kernel with its log-sum-exp, and the exact merge of two parts of one softmax.

A query that sees a shared prefix and some keys of its own is computed as two kernel calls whose results are merged, so the prefix is
neither copied nor masked. The backward of a part uses the merged output and log-sum-exp, as in ring attention (arXiv 2310.01889).

Shape suffixes: N queries, M keys, H query heads, K key/value heads, G = H / K, E head dimension.
"""

from typing import cast

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

MASKED = -1e9
"""Added to a masked score. Finite, because a tile of nothing but -inf makes the kernel divide zero by zero."""


def fold(q_NHE: Tensor, n_kv: int) -> Tensor:
    """[N, H, E] -> [1, K, G·N, E]: the query heads of a key/value head become more queries of it."""
    n, h, e = q_NHE.shape
    return q_NHE.view(n, n_kv, h // n_kv, e).permute(1, 2, 0, 3).reshape(1, n_kv, (h // n_kv) * n, e)


def unfold(x_1KQE: Tensor, n: int) -> Tensor:
    """Inverse of `fold`."""
    _, k, q, e = x_1KQE.shape
    return x_1KQE.view(k, q // n, n, e).permute(2, 0, 1, 3).reshape(n, k * (q // n), e)


def attend_part(q_1KQE: Tensor, k_1KME: Tensor, v_1KME: Tensor, mask_QM: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output [1, K, Q, E] and log-sum-exp [1, K, Q] of folded queries over some of their keys. ``mask_QM`` is added to the scores."""
    out, lse = _forward(q_1KQE, k_1KME, v_1KME, 0.0, False, attn_mask=mask_QM)
    return cast(Tensor, out), cast(Tensor, lse)


def attend_causal(q_1HNE: Tensor, k_1HNE: Tensor, v_1HNE: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of causal self-attention, one key head a query head."""
    out, lse = _forward(q_1HNE, k_1HNE, v_1HNE, 0.0, True)
    return cast(Tensor, out), cast(Tensor, lse)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v for the keys of one part. ``out`` and ``lse`` are those of the whole softmax."""
    dq, dk, dv = _backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask)
    return cast(Tensor, dq), cast(Tensor, dk), cast(Tensor, dv)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over both key sets from the softmax over each."""
    lse = torch.logaddexp(lse_a, lse_b)
    out = out_a * (lse_a - lse).exp().unsqueeze(-1) + out_b * (lse_b - lse).exp().unsqueeze(-1)
    return out, lse
