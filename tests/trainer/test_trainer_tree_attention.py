"""Attention over a packed tree against plain causal attention row by row: outputs and gradients."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from services.trainer.packing import build_tree
from services.trainer.tree_attention import TreeAttention, layout_of

H, K, E = 4, 2, 16


def batch_of(n: int, seed: int, prefix: int) -> list[np.ndarray]:
    rng = random.Random(seed)
    head = [rng.randrange(3) for _ in range(prefix)]
    return [np.asarray(head + [rng.randrange(3) for _ in range(rng.randint(1, 20))], np.int32) for _ in range(n)]


def row_by_row(q: Tensor, k: Tensor, v: Tensor, places: list[Tensor]) -> list[Tensor]:
    out: list[Tensor] = []
    for place in places:
        heads = [x[place].transpose(0, 1) for x in (q, k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1))]
        out.append(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1))
    return out


@pytest.mark.parametrize(("prefix", "block"), [(0, 512), (30, 512), (30, 7), (3, 1)])
def test_output_and_gradients_equal_those_of_single_rows(prefix: int, block: int) -> None:
    batch = batch_of(9, seed=prefix + block, prefix=prefix)
    tree = build_tree(batch)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tree.size, heads, E, generator=generator, requires_grad=True) for heads in (H, K, K))
    places = [torch.from_numpy(place) for place in tree.places]
    weights = [torch.randn(len(place), H, E, generator=generator) for place in places]

    packed = TreeAttention.apply(q, k, v, layout_of(tree, block))
    assert isinstance(packed, Tensor)
    plain = row_by_row(q, k, v, places)
    for place, expected in zip(places, plain, strict=True):
        torch.testing.assert_close(packed[place], expected, rtol=1e-5, atol=1e-6)

    ours = torch.autograd.grad(sum(((packed[p] * w).sum() for p, w in zip(places, weights, strict=True)), torch.zeros(())), (q, k, v))
    theirs = torch.autograd.grad(sum(((out * w).sum() for out, w in zip(plain, weights, strict=True)), torch.zeros(())), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 1e-5
