"""Owns one PPO step over chosen groups: proximal log-probabilities, credit, minibatches, the engine's updates, the figures.

Runs in the engine's thread. Refuses to know stores, batches and files. Metric names are AReaL's where AReaL has one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.config import ExperimentConfig
from services.common.wire.calls import Row
from services.trainer.advantage import normalise, shaped_reward, turn_advantages
from services.trainer.batches import Chosen, version_tokens
from services.trainer.engine import Engine
from services.trainer.trust import divergence

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Rows in the order of groups and samples, with what credit assignment gave each."""

    rows: list[Row]
    sample_of_row: list[int]
    advantages: Float


def train_step(engine: Engine, groups: Sequence[Chosen], version: int, config: ExperimentConfig) -> dict[str, float]:
    """Trains ``engine`` once on ``groups``; returns the metrics. ``version`` is that of the weights before the step."""
    batch = credit(groups, config)
    temperature = 0.0 if config.gconfig.greedy else config.gconfig.temperature
    started = time.perf_counter()
    behaved = [_captured(row) for row in batch.rows]
    proximal = engine.logp(batch.rows, temperature) if config.actor.recompute_logprob else behaved
    recomputed = time.perf_counter()
    behaved_R, proximal_R = np.concatenate(behaved), np.concatenate(list(proximal))
    version_R = np.concatenate([row.versions for row in batch.rows])
    stale_R = version_R < version
    updates = [
        engine.ppo_step([batch.rows[i] for i in part], [float(batch.advantages[i]) for i in part], [proximal[i] for i in part], temperature)
        for part in minibatches(batch, config.actor.ppo_n_minibatches)
    ]
    return {
        **averaged(updates),
        **trained_stats(groups, batch, version),
        **logp_gap(behaved_R, proximal_R, version_R == version),
        "ppo_actor/behave_kl": divergence(proximal_R[stale_R], behaved_R[stale_R]),
        "timeperf/recompute_logp": recomputed - started,
        "timeperf/train_step": time.perf_counter() - recomputed,
    }


def credit(groups: Sequence[Chosen], config: ExperimentConfig) -> TrainBatch:
    """One advantage a row: the rewards of turns shaped, normalised by the episodes of the group, normalised again over tokens."""
    samples = [sample for group in groups for sample in group.samples]
    names = [group.group_id for group in groups for _ in group.samples]
    reward_S = shaped_reward(np.asarray([sample.reward for sample in samples], float), config.actor)
    turns = [
        shaped_reward(np.asarray(sample.turn_rewards or [sample.reward] * len(sample.rows), float), config.actor) for sample in samples
    ]
    rows = [row for sample in samples for row in sample.rows]
    sample_of_row = [index for index, sample in enumerate(samples) for _ in sample.rows]
    parts = turn_advantages(turns, reward_S, names, config.actor.reward_norm)
    tokens = np.asarray([row.n_output for row in rows], float)
    advantages = normalise(np.concatenate(parts), [names[index] for index in sample_of_row], config.actor.adv_norm, tokens)
    return TrainBatch(rows, sample_of_row, advantages)


def minibatches(batch: TrainBatch, n: int) -> list[list[int]]:
    """Row indices in at most ``n`` parts of about the same number of tokens; the rows of an episode stay together."""
    by_sample: dict[int, list[int]] = {}
    for index, sample in enumerate(batch.sample_of_row):
        by_sample.setdefault(sample, []).append(index)
    weight = {sample: sum(batch.rows[i].n_output for i in rows) for sample, rows in by_sample.items()}
    parts: list[list[int]] = [[] for _ in range(min(n, len(by_sample)))]
    loads = [0] * len(parts)
    for sample in sorted(by_sample, key=lambda sample: -weight[sample]):
        lightest = loads.index(min(loads))
        parts[lightest] += by_sample[sample]
        loads[lightest] += weight[sample]
    return [sorted(part) for part in parts]


def averaged(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of all minibatches: the largest of a maximum, the mean of everything else."""
    out: dict[str, float] = {}
    for name in updates[0]:
        values = [update[name] for update in updates]
        out[name] = max(values) if name.endswith("/max") else sum(values) / len(values)
    return out


def trained_stats(groups: Sequence[Chosen], batch: TrainBatch, version: int) -> dict[str, float]:
    """What was trained on, under ``ppo_actor/``."""
    samples = [sample for group in groups for sample in group.samples]
    rewards = np.asarray([sample.reward for sample in samples])
    weights = np.asarray([row.n_output for row in batch.rows], float)
    ages = version - np.concatenate([row.versions for row in batch.rows])
    stats = {
        "ppo_actor/n_groups": float(len(groups)),
        "ppo_actor/n_episodes": float(len(samples)),
        "ppo_actor/n_seqs": float(len(batch.rows)),
        "ppo_actor/n_tokens": float(sum(len(row.ids) for row in batch.rows)),
        "ppo_actor/n_valid_tokens": float(weights.sum()),
        "ppo_actor/correct_n_seqs": float(sum(len(sample.rows) for sample in samples if sample.reward > 0)),
        "ppo_actor/task_reward/avg": float(rewards.mean()),
        "ppo_actor/advantages/avg": float(np.average(batch.advantages, weights=weights)),
        "ppo_actor/advantages/max": float(batch.advantages.max()),
        "ppo_actor/advantages/min": float(batch.advantages.min()),
        "ppo_actor/malformed_rate": float(np.mean([row.malformed_tool_call for row in batch.rows])),
        "ppo_actor/update/version_stats/sample_staleness_theta_avg": float(ages.mean()),
        "ppo_actor/update/version_stats/sample_staleness_theta_max": float(ages.max()),
        "ppo_actor/update/version_stats/sample_staleness_theta_min": float(ages.min()),
    }
    for number, count in version_tokens(batch.rows).items():
        stats[f"ppo_actor/version_tokens/{number}"] = float(count)
    return stats


def logp_gap(behaved_R: Float32, proximal_R: Float32, current_R: NDArray[np.bool_]) -> dict[str, float]:
    """|recomputed − captured| log-probability, over all tokens and over those that the current weights generated (``current_R``).

    The second must be rounding alone: anything more means that server and trainer compute different models or different tokens.
    """
    gap_R = np.abs(proximal_R - behaved_R)
    stats = {"rollout/logp_abs_diff/avg": float(gap_R.mean()), "rollout/logp_abs_diff/max": float(gap_R.max())}
    current = gap_R[current_R]
    if len(current):
        stats["ppo_actor/behave_logp_diff_current/avg"] = float(current.mean())
        stats["ppo_actor/behave_logp_diff_current/max"] = float(current.max())
    return stats


def _captured(row: Row) -> Float32:
    if row.logprobs is None:
        raise ValueError(f"logprobs: call {row.call_id} was captured without log-probabilities; PPO needs them")
    return row.logprobs
