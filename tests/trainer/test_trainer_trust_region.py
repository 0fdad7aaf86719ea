"""How far an update may move the policy: the rule, its measure, and the engine that keeps to it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_helpers import random_rows

from services.common.config.experiment import ActorConfig, OptimizerConfig
from services.trainer.torch_engine import TorchEngine
from services.trainer.trust import allowed_share, divergence


@given(st.floats(0, 100), st.floats(1e-6, 1))
def test_a_share_is_taken_of_long_updates_alone(kl: float, max_kl: float) -> None:
    share = allowed_share(kl, max_kl)
    assert 0 < share <= 1
    assert share == 1 or share**2 * kl == pytest.approx(max_kl)


def test_the_divergence_is_that_of_two_known_distributions() -> None:
    rng = np.random.default_rng(0)
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.3, 0.1])
    drawn = rng.choice(3, 200_000, p=old)
    estimate = divergence(np.log(new)[drawn].astype(np.float32), np.log(old)[drawn].astype(np.float32))
    assert estimate == pytest.approx(float((old * np.log(old / new)).sum()), rel=0.05)
    assert divergence(np.zeros(0, np.float32), np.zeros(0, np.float32)) == 0.0


def moved(folder: Path, max_kl: float, lr: float) -> tuple[float, dict[str, float]]:
    """How far one update moves the policy, and what the engine says of it."""
    engine = TorchEngine(folder, ActorConfig(max_tokens_per_mb=80), OptimizerConfig(lr=lr, max_kl=max_kl), 10)
    rows = random_rows(8, seed=5)
    before = engine.logp(rows)
    advantages = [(-1.0) ** i for i in range(len(rows))]
    stats = engine.ppo_step(rows, advantages, before)
    return divergence(np.concatenate(engine.logp(rows)), np.concatenate(before)), stats


def test_the_engine_makes_the_share_of_an_update_that_is_allowed(model_folder: Path) -> None:
    free, unmeasured = moved(model_folder, 0.0, 2e-3)
    limit = free / 16
    bounded, stats = moved(model_folder, limit, 2e-3)
    assert "ppo_actor/update/kl" not in unmeasured
    assert stats["ppo_actor/update/kl"] == pytest.approx(free, rel=1e-3)
    assert stats["ppo_actor/update/share"] == pytest.approx(0.25, rel=1e-3)
    assert bounded == pytest.approx(limit, rel=0.5)
    wide, stats = moved(model_folder, 2 * free, 2e-3)
    assert (wide, stats["ppo_actor/update/share"]) == (pytest.approx(free), 1.0)
