"""The torch engine against Hugging Face's Qwen3, against autograd on single rows, and across a checkpoint."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_helpers import PREFIX, make_row, random_rows
from transformers import AutoModelForCausalLM

from services.common.config.experiment import ActorConfig, OptimizerConfig
from services.common.wire.calls import Row
from services.trainer.engine import check_backend, open_engine, read_engine_state, write_engine_state
from services.trainer.loss import ppo_loss
from services.trainer.torch_engine import TorchEngine, schedule

ACTOR = ActorConfig(max_tokens_per_mb=80)
"""Small enough that a batch is split over several trees."""


def engine_of(folder: Path, actor: ActorConfig = ACTOR, optimizer: OptimizerConfig | None = None) -> TorchEngine:
    return TorchEngine(folder, actor, optimizer or OptimizerConfig(lr=1e-2), 10)


def hf_logp(model: torch.nn.Module, row: Row, temperature: float = 1.0) -> torch.Tensor:
    ids = torch.from_numpy(row.ids.astype(np.int64))
    logp = torch.log_softmax(model(ids[None]).logits[0] / temperature, -1)
    start = len(row.ids) - row.n_output
    return logp[start - 1 : -1].gather(1, ids[start:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_transformers(model_folder: Path, temperature: float) -> None:
    rows = random_rows(8)
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        for row, ours in zip(rows, engine_of(model_folder).logp(rows, temperature), strict=True):
            np.testing.assert_allclose(ours, hf_logp(reference, row, temperature).numpy(), atol=1e-5)


def test_branches_that_do_not_extend_each_other_are_rows_of_their_own(model_folder: Path) -> None:
    rows = [make_row([*PREFIX, 1, 2, 3], 2), make_row([*PREFIX, 1, 9, 3, 4], 3), make_row([5, 6, 7], 1)]
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        for row, ours in zip(rows, engine_of(model_folder).logp(rows), strict=True):
            np.testing.assert_allclose(ours, hf_logp(reference, row).numpy(), atol=1e-5)


def test_a_ppo_step_on_packed_trees_is_one_on_single_rows(model_folder: Path) -> None:
    rows = random_rows(6, seed=3)
    advantages = [(-1.0) ** i * (0.5 + i) for i in range(len(rows))]
    engine = engine_of(model_folder, optimizer=OptimizerConfig(lr=1e-2, gradient_clipping=1e9))
    proximal = engine.logp(rows)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokens = sum(row.n_output for row in rows)
    for row, prox, advantage in zip(rows, proximal, advantages, strict=True):
        assert row.logprobs is not None
        old = torch.from_numpy(row.logprobs)
        terms = ppo_loss(hf_logp(model, row), torch.from_numpy(prox), old, torch.full_like(old, advantage), ACTOR)
        (terms.loss_R.sum() / tokens).backward()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    adam.step()

    metrics = engine.ppo_step(rows, advantages, proximal)
    assert metrics["ppo_actor/update/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["ppo_actor/tree_token_ratio"] < 0.8
    ours = dict(engine.model.named_parameters())
    for name, expected in model.named_parameters():
        assert (ours[name] - expected).norm() / expected.norm() < 1e-4, name


def test_sft_lowers_the_loss(model_folder: Path) -> None:
    engine, rows = engine_of(model_folder), random_rows(4)
    losses = [engine.sft_step(rows)["sft/loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_a_run_resumed_from_a_checkpoint_goes_on_to_the_bit(model_folder: Path, tmp_path: Path) -> None:
    rows, first = random_rows(4), engine_of(model_folder)
    first.sft_step(rows)
    write_engine_state(first, tmp_path / "engine.pt")
    second = engine_of(model_folder)
    read_engine_state(second, tmp_path / "engine.pt")
    for engine in (first, second):
        engine.sft_step(rows)
    assert first.steps_done == second.steps_done == 2
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_infinite_gradient_skips_the_step(model_folder: Path) -> None:
    engine, rows = engine_of(model_folder), random_rows(2)
    before = [parameter.clone() for parameter in engine.model.parameters()]
    metrics = engine.ppo_step(rows, [float("inf")] * len(rows), engine.logp(rows))
    assert metrics["ppo_actor/update/update_successful"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_rows_without_captured_log_probabilities_are_refused(model_folder: Path) -> None:
    rows = [make_row([*PREFIX, 1], 1, logprobs=False)]
    engine = engine_of(model_folder)
    with pytest.raises(ValueError, match="PPO needs them"):
        engine.ppo_step(rows, [1.0], engine.logp(rows))


def test_saved_weights_load_again(model_folder: Path, tmp_path: Path) -> None:
    engine, rows = engine_of(model_folder), random_rows(3)
    engine.sft_step(rows)
    (tmp_path / "v1").mkdir()
    engine.save_hf(tmp_path / "v1")
    for a, b in zip(engine.logp(rows), engine_of(tmp_path / "v1").logp(rows), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_back_ends_of_this_build_open(model_folder: Path) -> None:
    check_backend(ActorConfig())
    with pytest.raises(ValueError, match="'megatron:d1' is not in this build"):
        open_engine(model_folder, ActorConfig(backend="megatron:d1"), OptimizerConfig(), 1)


def test_the_schedule_warms_up_and_decays_to_its_floor() -> None:
    linear = OptimizerConfig(lr_scheduler_type="linear", warmup_steps_proportion=0.2, min_lr_ratio=0.1)
    factors = [schedule(step, 10, linear) for step in range(12)]
    assert factors[0] < factors[1] < factors[2] == 1.0
    assert all(a > b for a, b in pairwise(factors[2:11]))
    assert factors[10] == factors[11] == pytest.approx(0.1)
    assert schedule(5, 10, OptimizerConfig()) == 1.0
