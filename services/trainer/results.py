"""Owns the summary of an experiment: what ``results.json`` says and where each figure comes from."""

from typing import Any

import msgspec

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind
from services.common.wire.store import Stats
from services.trainer.state import Evaluation, Report, State


def results(config: ExperimentConfig, state: State, stats: Stats, steps: list[Report]) -> dict[str, Any]:
    """The content of ``results.json``.

    ``trajectories_in``, ``trained`` and ``dropped`` are the store's accounts of training episodes; evaluation and demonstration episodes
    are in ``other_kinds``. ``lost`` and ``duplicated`` are over all kinds. ``wall_s`` runs from the experiment's first start.
    ``sources`` are the back ends whose rewards these are.
    """
    train = stats.kinds[Kind.TRAIN]
    before, after = state.evaluations.get("before"), state.evaluations.get("after")
    return {
        "experiment_name": config.experiment_name,
        "trial_name": config.trial_name,
        "seed": config.seed,
        "config_digest": state.config_digest,
        "sources": state.sources,
        **_headline("before", before),
        **_headline("after", after),
        "eval_before": scores(before) | {"per_task": before.per_task} if before else None,
        "eval_after": scores(after) | {"per_task": after.per_task} if after else None,
        "ppo_steps": state.step,
        "sft_steps": state.sft_step,
        "policy_version": stats.policy_version,
        "wall_s": round(state.finished_at - state.started_at, 1),
        "trajectories_in": train.trajectories_in,
        "trained": train.trained,
        "dropped": train.dropped,
        "drops": train.drops,
        "lost": stats.total.lost,
        "duplicated": stats.total.duplicated,
        "retries": stats.total.retries,
        "other_kinds": {str(kind): counts.model_dump(mode="json") for kind, counts in stats.kinds.items() if kind is not Kind.TRAIN},
        "steps": [_step(report) for report in steps],
    }


def _headline(name: str, outcome: Evaluation | None) -> dict[str, Any]:
    """The figures of a pass that people look for first, without their intervals."""
    total = outcome.total if outcome else None
    return {
        f"reward_{name}": total.reward.value if total else None,
        f"greedy_{name}": total.greedy.value if total and total.greedy else None,
        f"pass_hat_{name}": {k: estimate.value for k, estimate in total.pass_hat.items()} if total else {},
    }


def scores(outcome: Evaluation) -> dict[str, Any]:
    """A pass as JSON: the figures over all datasets, then those of each. An estimate is ``{"value", "low", "high"}`` (95 %)."""
    return {
        "version": outcome.version,
        "wall_s": round(outcome.wall_s, 1),
        **msgspec.to_builtins(outcome.total),
        "datasets": {name: msgspec.to_builtins(score) for name, score in outcome.datasets.items()},
    }


def _step(report: Report) -> dict[str, Any]:
    """The figures of a PPO step that a plot needs."""
    values = report.values
    return {
        "step": report.step,
        "at": report.at,
        "reward": values.get("rollout/reward"),
        "reward_trained": values.get("ppo_actor/task_reward/avg"),
        "episodes": values.get("ppo_actor/n_episodes"),
        "rows": values.get("ppo_actor/n_seqs"),
        "tokens": values.get("ppo_actor/n_valid_tokens"),
        "staleness_max": values.get("ppo_actor/update/version_stats/sample_staleness_theta_max"),
        "logp_diff_current": values.get("ppo_actor/behave_logp_diff_current/avg"),
        "train_s": values.get("timeperf/train_step"),
    }
