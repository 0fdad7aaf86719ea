"""Owns credit assignment: from the rewards of episodes and turns to one advantage a row. Pure numpy. Refuses to know tokens or models.

A group is the episodes of one task; its baseline is taken over episodes, not over rows, so an episode with many turns weighs as much as a
short one (AReaL's ``reward_norm`` is over all rows of the group, so there it weighs more). Steps and names follow AReaL's
``compute_advantages``; with discount = gae_lambda = 1, no critic and kl_ctl = 0, GAE gives every token of a row the row's return.

Where the turns of an episode earned differently (``econfig.turn_discount``, ``econfig.invalid_format_penalty``; the agent runner works
them out), every turn is normalised by the same two numbers of its group: the centre is the mean over episodes of the episode's mean turn,
the scale is the spread of the episode rewards. So the advantages of a group still have mean zero with every episode weighing the same,
and a penalty keeps its size in units of reward instead of being blown up where it is all that differs.

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
    centre_S, scale_S = centre_and_scale(value_S, groups_S, norm, weight_S)
    return (value_S - centre_S) / (scale_S + norm.eps)


def centre_and_scale(value_S: Float, groups_S: Sequence[str], norm: NormConfig, weight_S: Float | None = None) -> tuple[Float, Float]:
    """The mean and the standard deviation that `normalise` uses, of each entry."""
    centre_S, scale_S = np.empty_like(value_S), np.empty_like(value_S)
    weight_S = np.ones_like(value_S) if weight_S is None else weight_S
    names = np.asarray(groups_S)
    everyone = np.ones(len(value_S), bool)
    for name in dict.fromkeys(groups_S):
        mine = names == name
        centre_S[mine] = _level_mean(value_S, weight_S, mine, everyone, norm)
        scale_S[mine] = _level_std(value_S, weight_S, mine, everyone, norm)
    return centre_S, scale_S


def turn_advantages(turn_rewards: Sequence[Float], reward_S: Float, groups_S: Sequence[str], norm: NormConfig | None) -> list[Float]:
    """The rewards of each episode's turns, normalised by the statistics of its group: one array [T] an episode.

    ``reward_S`` are the episode rewards. Where every turn has its episode's reward, this is `normalise` of them, repeated.
    """
    if norm is None:
        return list(turn_rewards)
    mean_S = np.asarray([_mean_turn(reward_T) for reward_T in turn_rewards])
    centre_S, _ = centre_and_scale(mean_S, groups_S, norm)
    _, scale_S = centre_and_scale(reward_S, groups_S, norm)
    return [(reward_T - centre_S[s]) / (scale_S[s] + norm.eps) for s, reward_T in enumerate(turn_rewards)]


def _mean_turn(reward_T: Float) -> float:
    """The mean; exactly the value of the turns where all have the same, which a sum need not give."""
    return float(reward_T[0] if (reward_T == reward_T[0]).all() else reward_T.mean())


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
