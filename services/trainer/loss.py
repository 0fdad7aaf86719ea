"""Owns the PPO loss: pure functions of log-probabilities and advantages. Refuses to know rows, trees or models.

Formulas are those of AReaL's ``areal/utils/functional/functional.py`` (decoupled PPO: arXiv 2505.24298, section 5.2).
Shape suffix: R generated tokens of all rows, one after the other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.common.config.experiment import ActorConfig, RejectionSamplingConfig


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What the loss of one batch is made of."""

    loss_R: Tensor
    """Per token, before averaging; 0 where the behaviour policy is too far away."""
    ratio_R: Tensor
    clipped_R: Tensor
    """bool: the clip was active."""
    behave_weight_R: Tensor
    rejected_R: Tensor
    """bool: masked out by rejection sampling."""


def clipped_surrogate(
    logp_R: Tensor, prox_logp_R: Tensor, advantage_R: Tensor, eps_low: float, eps_high: float, c_clip: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, ratio and clip mask of PPO's clipped surrogate (arXiv 1707.06347), with dual clip (arXiv 1912.09729) if ``c_clip`` is set."""
    ratio_R = (logp_R - prox_logp_R).exp()
    plain_R = -advantage_R * ratio_R
    clipped_R = -advantage_R * ratio_R.clamp(1.0 - eps_low, 1.0 + eps_high)
    loss_R = torch.maximum(plain_R, clipped_R)
    if c_clip is not None:
        loss_R = torch.minimum(loss_R, advantage_R.sign() * c_clip * advantage_R)
    return loss_R, ratio_R, clipped_R > plain_R


def behave_weight(prox_logp_R: Tensor, old_logp_R: Tensor, rule: RejectionSamplingConfig) -> tuple[Tensor, Tensor]:
    """Importance weight of the proximal over the behaviour policy, and which tokens are rejected.

    ``mask`` gives rejected tokens weight 0 (the denominator of the mean stays); ``clamp`` bounds the weight instead and rejects none.
    """
    weight_R = (prox_logp_R - old_logp_R).exp()
    lower = 0.0 if rule.lower is None else rule.lower
    if rule.action == "clamp":
        return weight_R.clamp(lower, rule.upper), torch.zeros_like(weight_R, dtype=torch.bool)
    rejected_R = (weight_R > rule.upper) | (weight_R < lower)
    return weight_R.masked_fill(rejected_R, 0.0), rejected_R


def ppo_loss(logp_R: Tensor, prox_logp_R: Tensor, old_logp_R: Tensor, advantage_R: Tensor, actor: ActorConfig) -> LossTerms:
    """The loss terms of a batch. ``logp_R`` carries the gradient, everything else is data.

    ``use_decoupled_loss`` without ``rejection_sampling`` applies the behaviour weight unbounded (AReaL applies none there).
    """
    eps_high = actor.eps_clip if actor.eps_clip_higher is None else actor.eps_clip_higher
    anchor_R = prox_logp_R if actor.use_decoupled_loss else old_logp_R
    loss_R, ratio_R, clipped_R = clipped_surrogate(logp_R, anchor_R, advantage_R, actor.eps_clip, eps_high, actor.c_clip)
    weight_R = torch.ones_like(old_logp_R)
    rejected_R = torch.zeros_like(old_logp_R, dtype=torch.bool)
    if actor.use_decoupled_loss:
        rule = actor.rejection_sampling or RejectionSamplingConfig(action="clamp", upper=float("inf"))
        weight_R, rejected_R = behave_weight(prox_logp_R, old_logp_R, rule)
    return LossTerms(loss_R * weight_R, ratio_R, clipped_R, weight_R, rejected_R)


def loss_stats(terms: LossTerms, logp_R: Tensor, prox_logp_R: Tensor, old_logp_R: Tensor) -> dict[str, float]:
    """AReaL's ``ppo_actor/update`` figures, averaged over tokens."""
    with torch.no_grad():
        gap_R = prox_logp_R - old_logp_R
        return {
            "ppo_actor/update/importance_weight/avg": terms.ratio_R.mean().item(),
            "ppo_actor/update/clip_ratio/avg": terms.clipped_R.float().mean().item(),
            "ppo_actor/update/behave_imp_weight/avg": terms.behave_weight_R.mean().item(),
            "ppo_actor/update/behave_approx_kl/avg": (old_logp_R - prox_logp_R).mean().item(),
            "ppo_actor/update/rs_filtered_fraction": terms.rejected_R.float().mean().item(),
            "ppo_actor/update/approx_kl/avg": (prox_logp_R - logp_R).mean().item(),
            "ppo_actor/update/new_logp/avg": logp_R.mean().item(),
            "ppo_actor/update/old_logp/avg": old_logp_R.mean().item(),
            "ppo_actor/update/logp_abs_diff/avg": gap_R.abs().mean().item(),
            "ppo_actor/update/logp_abs_diff/max": gap_R.abs().max().item(),
        }
