"""Thinned prefixes: what is kept, at which positions, with which weight in the softmax."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from trainer_helpers import make_row, random_rows

from services.common.config.experiment import ActorConfig, OptimizerConfig
from services.common.config.laptop import SftConfig
from services.trainer.packing import build_tree
from services.trainer.thinning import Thinning, log_weight, shared_prefix, thinning_of
from services.trainer.torch_engine import TorchEngine
from services.trainer.tree_attention import TreeAttention, layout_of

SFT = SftConfig(steps=20, full_prefix_steps=4, prefix_tokens=128)


def test_only_early_steps_over_a_long_prefix_are_thinned() -> None:
    assert thinning_of(0, 1000, SFT, 1) and thinning_of(15, 1000, SFT, 1)
    assert thinning_of(16, 1000, SFT, 1) is None and thinning_of(0, 128, SFT, 1) is None
    assert thinning_of(0, 1000, SftConfig(), 1) is None


@given(st.integers(129, 2000), st.integers(0, 15))
def test_whole_chunks_are_kept_and_each_step_draws_its_own(shared: int, step: int) -> None:
    thinning = thinning_of(step, shared, SFT, seed=3)
    assert thinning is not None and len(thinning.kept_T) == 128
    assert (np.diff(thinning.kept_T) > 0).all() and thinning.kept_T[-1] < shared
    again = thinning_of(step, shared, SFT, seed=3)
    assert again is not None and (again.kept_T == thinning.kept_T).all()


def test_the_weight_rises_to_what_the_kept_keys_stand_for() -> None:
    weights = [log_weight(progress / 10, full=8.0) for progress in range(11)]
    assert weights[0] == weights[3] == -4.0 and weights == sorted(weights)
    assert weights[7] == weights[10] == pytest.approx(math.log(8.0))


@given(st.integers(129, 400), st.integers(1, 30))
def test_every_token_stays_at_its_true_position(shared: int, tail: int) -> None:
    thinning = thinning_of(0, shared, SFT, seed=5)
    assert thinning is not None
    ids = np.arange(shared + tail, dtype=np.int32)
    thinned = thinning.apply(make_row(ids.tolist(), 1))
    # The ids are the positions.
    np.testing.assert_array_equal(thinning.positions(np.arange(len(thinned.ids))), thinned.ids)


def test_the_shared_prefix_holds_no_generated_token() -> None:
    rows = [make_row([1, 2, 3, 4], 1), make_row([1, 2, 3, 4, 5], 3)]
    assert shared_prefix(rows) == 2


def test_keeping_everything_at_its_own_weight_changes_nothing(model_folder: Path) -> None:
    rows = random_rows(5)
    shared = shared_prefix(rows)
    losses = [
        TorchEngine(model_folder, ActorConfig(), OptimizerConfig(), 1).sft_step(rows, thinning)["sft/loss"]
        for thinning in (None, Thinning(shared, np.arange(shared), 0.0))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("weight", [-4.0, 1.5])
def test_weighted_trunk_keys_equal_a_bias_on_their_scores(weight: float) -> None:
    batch = [np.asarray([0] * 10 + [n, n % 3, n % 2, 1], np.int32) for n in range(1, 6)]
    tree = build_tree(batch)
    trunk = 8
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(tree.size, heads, 16, generator=generator, requires_grad=True) for heads in (2, 1, 1))
    packed = TreeAttention.apply(q, k, v, layout_of(tree, trunk=trunk, log_weight=weight))
    assert isinstance(packed, Tensor)
    total, reference = torch.zeros(()), torch.zeros(())
    for index in tree.places:
        place = torch.from_numpy(index)
        bias = torch.full((len(place), len(place)), -torch.inf).triu(1)
        bias[trunk:, :trunk] += weight
        heads = [x[place].transpose(0, 1) for x in (q, k.expand_as(q), v.expand_as(q))]
        plain = F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(0, 1)
        torch.testing.assert_close(packed[place], plain, rtol=1e-5, atol=1e-5)
        total, reference = total + (packed[place] ** 2).sum(), reference + (plain**2).sum()
    for ours, theirs in zip(torch.autograd.grad(total, (q, k, v)), torch.autograd.grad(reference, (q, k, v)), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5
