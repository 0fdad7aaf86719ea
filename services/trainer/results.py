"""Owns the summary of an experiment: what ``results.json`` says and where each figure comes from."""

from typing import Any

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind
from services.common.wire.store import Stats
from services.trainer.state import Evaluation, Report, State


def results(config: ExperimentConfig, state: State, stats: Stats, steps: list[Report]) -> dict[str, Any]:
    """The content of ``results.json``.

    ``trajectories_in``, ``trained`` and ``dropped`` are the store's accounts of training episodes; evaluation and demonstration episodes
    are in ``other_kinds``. ``lost`` and ``duplicated`` are over all kinds. ``wall_s`` runs from the experiment's first start.
    """
    train = stats.kinds[Kind.TRAIN]
    before, after = state.evaluations.get("before"), state.evaluations.get("after")
    return {
        "experiment_name": config.experiment_name,
        "trial_name": config.trial_name,
        "seed": config.seed,
        "config_digest": state.config_digest,
        "reward_before": before.reward if before else None,
        "reward_after": after.reward if after else None,
        "greedy_before": before.greedy if before else None,
        "greedy_after": after.greedy if after else None,
        "pass_hat_before": before.pass_hat if before else {},
        "pass_hat_after": after.pass_hat if after else {},
        "eval_before": _evaluation(before),
        "eval_after": _evaluation(after),
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


def _evaluation(outcome: Evaluation | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "version": outcome.version,
        "n_tasks": outcome.n_tasks,
        "n_episodes": outcome.n_episodes,
        "failed": outcome.failed,
        "per_task": outcome.per_task,
        "wall_s": round(outcome.wall_s, 1),
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
