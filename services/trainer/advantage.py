"""Owns credit assignment: from episode rewards to one advantage a row. Pure numpy. Refuses to know tokens or models.

A group is the episodes of one task; its baseline is taken over episodes, not over rows, so an episode with many turns weighs as much as a
short one (AReaL normalises over rows). Steps and names follow AReaL's ``compute_advantages``; with discount = gae_lambda = 1, no critic
and kl_ctl = 0, GAE gives every token of a row the row's return.

Shape suffixes: S episodes, T turns (rows) of an episode.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.config.experiment import ActorConfig, NormConfig

Float = NDArray[np.float64]


def shaped_reward(reward_S: Float, actor: ActorConfig) -> Float:
    """(reward + bias) · scaling, clipped."""
    return np.clip((reward_S + actor.reward_bias) * actor.reward_scaling, -actor.reward_clip, actor.reward_clip)


def normalise(value_S: Float, groups_S: Sequence[str], norm: NormConfig | None, weight_S: Float | None = None) -> Float:
    """Subtracts the mean and divides by the standard deviation, each over the batch, over the group or not at all.

    ``weight_S`` weighs the batch statistics (tokens, for adv_norm). The standard deviation is unbiased; a group of one, or one without
    spread, is divided by 1 (plus eps), so a group without a signal gives exactly zero.
    """
    if norm is None:
        return value_S
    out_S = np.empty_like(value_S)
    weight_S = np.ones_like(value_S) if weight_S is None else weight_S
    names = np.asarray(groups_S)
    everyone = np.ones(len(value_S), bool)
    for name in dict.fromkeys(groups_S):
        mine = names == name
        mean = _level_mean(value_S, weight_S, mine, everyone, norm)
        std = _level_std(value_S, weight_S, mine, everyone, norm)
        out_S[mine] = (value_S[mine] - mean) / (std + norm.eps)
    return out_S


def _level_mean(value_S: Float, weight_S: Float, group: NDArray[np.bool_], batch: NDArray[np.bool_], norm: NormConfig) -> Float | float:
    if norm.mean_level is None:
        return 0.0
    members = group if norm.mean_level == "group" else batch
    total, count = (value_S * weight_S)[members].sum(), weight_S[members].sum()
    if not norm.mean_leave1out:
        return float(total / count)
    rest = count - weight_S[group]
    return np.where(rest > 0, (total - (value_S * weight_S)[group]) / np.maximum(rest, 1e-12), 0.0)


def _level_std(value_S: Float, weight_S: Float, group: NDArray[np.bool_], batch: NDArray[np.bool_], norm: NormConfig) -> float:
    if norm.std_level is None:
        return 1.0
    members = group if norm.std_level == "group" else batch
    value, weight = value_S[members], weight_S[members]
    if weight.sum() <= 1 or len(value) < 2:
        return 1.0
    mean = (value * weight).sum() / weight.sum()
    variance = (weight * (value - mean) ** 2).sum() / (weight.sum() - 1)
    return float(np.sqrt(variance)) if variance > 0 else 1.0


def turn_returns(advantage: float, n_turns: int, turn_discount: float, malformed_T: Sequence[bool], penalty: float) -> Float:
    """Return of each turn: the episode's advantage discounted per turn from the end, less the penalty where the tool call was malformed.

    r_i ← Σ_{j≥i} γ^{j−i} r_j with the episode's value on the last turn (AReaL's ``turn_discount``).
    """
    back_T = np.arange(n_turns - 1, -1, -1)
    return advantage * turn_discount**back_T - penalty * np.asarray(malformed_T, float)
