"""The learning rate follows how far the last updates moved the policy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.trust import FACTOR, LOWEST, TrustRegion, divergence


def test_the_rate_falls_after_large_moves_and_rises_after_small_ones() -> None:
    trust = TrustRegion(target_kl=0.01)
    for kl, scale in ((0.03, 1 / FACTOR), (0.012, 1 / FACTOR), (0.004, 1.0), (0.001, 1.0)):
        trust.observe(kl)
        assert trust.scale == pytest.approx(scale)


def test_nothing_measured_and_no_target_change_nothing() -> None:
    trust, off = TrustRegion(target_kl=0.01), TrustRegion(target_kl=0.0)
    trust.observe(0.0)
    off.observe(5.0)
    assert (trust.scale, off.scale) == (1.0, 1.0)


@given(st.lists(st.floats(0, 10), max_size=60))
def test_the_scale_stays_within_its_bounds(kls: list[float]) -> None:
    trust = TrustRegion(target_kl=0.01)
    for kl in kls:
        trust.observe(kl)
        assert LOWEST <= trust.scale <= 1.0


def test_the_divergence_is_that_of_two_known_distributions() -> None:
    rng = np.random.default_rng(0)
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.3, 0.1])
    drawn = rng.choice(3, 200_000, p=old)
    estimate = divergence(np.log(new)[drawn].astype(np.float32), np.log(old)[drawn].astype(np.float32))
    assert estimate == pytest.approx(float((old * np.log(old / new)).sum()), rel=0.05)
    assert divergence(np.zeros(0, np.float32), np.zeros(0, np.float32)) == 0.0
