"""The optimizer against torch's."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from services.common.config.experiment import OptimizerConfig
from services.trainer.adamw import AdamW

SHAPES = [(5, 3), (7,), (2, 3, 4), (130, 67)]


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def set_gradients(tensors: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for index, tensor in enumerate(tensors):
        # One parameter gets its first gradient later than the others, as an unused one would.
        grad = torch.randn(tensor.shape, generator=generator) * 10.0 ** (step % 5 - 3)
        tensor.grad = None if index == 1 and step < 3 else grad


def theirs(tensors: list[torch.Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(tensors, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("beta2", [0.98, 0.99, 0.999])
def test_steps_are_those_of_torch_to_the_bit(weight_decay: float, beta2: float) -> None:
    config = OptimizerConfig(weight_decay=weight_decay, beta2=beta2)
    mine, other = parameters(), parameters()
    ours, reference = AdamW(mine, config), theirs(other, config)
    for step in range(60):
        lr = 4e-3 * (1 - step / 80)
        set_gradients(mine, step)
        set_gradients(other, step)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        ours.step(lr)
        ours.zero_grad()
        assert all(tensor.grad is None for tensor in mine)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True)), step


def test_a_checkpoint_of_either_is_continued_to_the_bit() -> None:
    config = OptimizerConfig(weight_decay=0.05)
    for make in (AdamW, theirs):
        mine = parameters()
        first: Any = make(mine, config)
        for step in range(5):
            set_gradients(mine, step)
            first.step(config.lr) if make is AdamW else first.step()
        copies = [tensor.detach().clone().requires_grad_() for tensor in mine]
        second = AdamW(copies, config)
        second.load_state_dict(first.state_dict())
        for step in range(5, 9):
            set_gradients(mine, step)
            set_gradients(copies, step)
            first.step(config.lr) if make is AdamW else first.step()
            second.step(config.lr)
        assert all(torch.equal(a, b) for a, b in zip(mine, copies, strict=True))


def test_the_engine_starts_without_the_compiler_of_torch() -> None:
    code = (
        "import sys, torch\n"
        "from services.common.config.experiment import OptimizerConfig\n"
        "from services.trainer.adamw import AdamW\n"
        "import services.trainer.torch_engine\n"
        "weight = torch.ones(3, requires_grad=True)\n"
        "weight.sum().backward()\n"
        "torch.nn.utils.clip_grad_norm_([weight], 1.0)\n"
        "AdamW([weight], OptimizerConfig()).step(0.1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
