"""Owns the choice of the next token. Pure functions; randomness is a counter, so a request's tokens do not depend on the batch it is in.

The log-probability that is reported is that of the temperature-scaled distribution; top_p, top_k and min_p restrict the choice but do not
renormalise it (as in SGLang). At temperature 0 the most likely token is taken and reported with its log-probability at temperature 1.

Shape suffixes: B sequences, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request samples."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1 for no limit."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are excluded."""
    max_new_tokens: int = 128
    stop_token_ids: frozenset[int] = field(default_factory=lambda: frozenset[int]())
    seed: int | None = None
    """None = a fresh one."""
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    """Strings; the token that completes one is the last."""

    @property
    def restricted(self) -> bool:
        """Whether some tokens are excluded."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: SplitMix64 (Steele et al. 2014) of the seed, then of the position."""
    state = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    return (state >> 11) / (1 << 53)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """Token ids and their log-probabilities, one a row."""
    if any(p.temperature not in (0.0, 1.0) for p in params):
        logits_BV = logits_BV / torch.tensor([[p.temperature or 1.0] for p in params])
    logp_BV = torch.log_softmax(logits_BV, -1)
    u_B1 = torch.tensor(uniforms).unsqueeze(-1)
    cumulative_BV = logp_BV.exp().cumsum(-1)
    ids_B = invert(cumulative_BV, u_B1)
    greedy = [row for row, p in enumerate(params) if p.temperature == 0]
    if greedy:
        ids_B[greedy] = logits_BV[greedy].argmax(-1)
    restricted = [row for row, p in enumerate(params) if p.restricted]
    if restricted:
        ids_B[restricted] = sample_restricted(logp_BV[restricted].exp(), [params[row] for row in restricted], u_B1[restricted])
    logp_B = logp_BV.gather(-1, ids_B.unsqueeze(-1)).squeeze(-1)
    return cast("list[int]", ids_B.tolist()), cast("list[float]", logp_B.tolist())


def invert(cumulative_BV: Tensor, u_B1: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds ``u`` of the total, [B]. An index without weight is never chosen."""
    total_B1 = cumulative_BV[:, -1:]
    # u may round to 1 in fp32; below the total there is always a token that has weight.
    target_B1 = torch.minimum(u_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def sample_restricted(p_BV: Tensor, params: Sequence[SamplingParams], u_B1: Tensor) -> Tensor:
    """Sampling from the ``top_k`` likeliest tokens, of those the fewest that reach ``top_p``, and only over ``min_p``, [B]."""
    order_BV = p_BV.argsort(dim=-1, descending=True, stable=True)
    sorted_BV = p_BV.gather(-1, order_BV)
    rank_V = torch.arange(p_BV.shape[-1])
    top_k_B1 = torch.tensor([[p.top_k if p.top_k > 0 else p_BV.shape[-1]] for p in params])
    top_p_B1 = torch.tensor([[p.top_p] for p in params])
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    least_B1 = sorted_BV[:, :1] * torch.tensor([[p.min_p] for p in params])
    kept_BV = sorted_BV.masked_fill((rank_V >= top_k_B1) | (before_BV > top_p_B1) | (sorted_BV < least_B1), 0.0)
    picks_B = invert(kept_BV.cumsum(-1), u_B1)
    return order_BV.gather(-1, picks_B.unsqueeze(-1)).squeeze(-1)
