"""Sampling: counter-based randomness, restriction by top_k and top_p, greedy, and what is reported."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.policy_server.sampling import SamplingParams, invert, sample, uniform

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))


def draw(n: int, **params: float) -> np.ndarray:
    """Shares of each token in ``n`` draws."""
    sampling = SamplingParams(**params)  # pyright: ignore[reportArgumentType]
    tokens, _ = sample(LOGITS.expand(n, -1), [sampling] * n, [uniform(7, i) for i in range(n)])
    return np.bincount(tokens, minlength=4) / n


def test_frequencies_are_the_probabilities() -> None:
    np.testing.assert_allclose(draw(40_000), [0.5, 0.25, 0.15, 0.1], atol=0.01)


def test_temperature() -> None:
    weights = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(draw(40_000, temperature=0.5), weights / weights.sum(), atol=0.01)


@pytest.mark.parametrize(("params", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"top_p": 0.8}, 3), ({"top_k": 1, "top_p": 0.9}, 1)])
def test_restriction(params: dict[str, float], kept: int) -> None:
    expected = np.array([0.5, 0.25, 0.15, 0.1])
    expected[kept:] = 0
    np.testing.assert_allclose(draw(40_000, **params), expected / expected.sum(), atol=0.01)


def test_reported_logprob_is_of_the_scaled_distribution_without_restriction() -> None:
    tokens, logprobs = sample(LOGITS, [SamplingParams(temperature=2.0, top_k=1)], [0.3])
    assert tokens == [0]
    assert logprobs[0] == pytest.approx(float(torch.log_softmax(LOGITS / 2, -1)[0, 0]), abs=1e-6)


def test_greedy_takes_the_most_likely_and_reports_it_unscaled() -> None:
    tokens, logprobs = sample(LOGITS, [SamplingParams(temperature=0.0)], [0.99])
    assert tokens == [0] and logprobs[0] == pytest.approx(math.log(0.5), abs=1e-6)


def test_rows_do_not_influence_each_other() -> None:
    mixed = [SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_p=0.5), SamplingParams(temperature=0.3)]
    uniforms = [0.6, 0.6, 0.6, 0.6]
    together = sample(LOGITS.expand(4, -1), mixed, uniforms)
    alone = [sample(LOGITS, [p], [u]) for p, u in zip(mixed, uniforms, strict=True)]
    assert together == ([ids[0] for ids, _ in alone], [logprobs[0] for _, logprobs in alone])


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_uniform_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    u = uniform(seed, position)
    assert 0 <= u < 1 and u == uniform(seed, position)
    assert u != uniform(seed, position + 1)


def test_uniform_is_uniform_over_seeds_and_positions() -> None:
    values = np.array([uniform(seed, position) for seed in range(200) for position in range(200)])
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # chi-square with 19 degrees of freedom, p < 1e-4
    grid = values.reshape(200, 200)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20).filter(lambda w: sum(w) > 0), st.floats(0, 1))
def test_a_token_without_weight_is_never_taken(weights: list[float], u: float) -> None:
    cumulative = torch.tensor([weights]).cumsum(-1)
    index = int(invert(cumulative, torch.tensor([[u]])))
    previous = float(cumulative[0, index - 1]) if index else 0.0
    assert float(cumulative[0, index]) > previous
