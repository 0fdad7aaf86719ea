"""Owns the optimizer step of the torch engine: AdamW in plain tensor operations, to the bit what ``torch.optim.AdamW`` computes on a CPU.

Torch's own imports torch._dynamo when it is built, several CPU seconds at every start for a compiler that nobody here uses. The state has
the layout of torch's, so checkpoints that were written with that one are read, too.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from services.common.config.experiment import OptimizerConfig


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101) over fixed parameters. The learning rate is given with each step."""

    def __init__(self, parameters: Iterable[Tensor], config: OptimizerConfig) -> None:
        self._parameters = list(parameters)
        self._config = config
        self._moments: dict[int, dict[str, Tensor]] = {}
        """By the index of the parameter, from its first gradient on: ``step`` and the averages of gradient and squared gradient."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Moves every parameter that has a gradient."""
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._move(parameter, parameter.grad, self._moments_of(index, parameter), lr)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, by reference."""
        return {"state": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. The tensors are copied."""
        self._moments = {index: {name: value.clone() for name, value in kept.items()} for index, kept in state["state"].items()}

    def _moments_of(self, index: int, parameter: Tensor) -> dict[str, Tensor]:
        if index not in self._moments:
            zeros = torch.zeros_like(parameter)
            self._moments[index] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        return self._moments[index]

    def _move(self, parameter: Tensor, grad: Tensor, moments: dict[str, Tensor], lr: float) -> None:
        config, average, square = self._config, moments["exp_avg"], moments["exp_avg_sq"]
        moments["step"] += 1
        step = moments["step"].item()
        if config.weight_decay:
            parameter.mul_(1 - lr * config.weight_decay)
        average.lerp_(grad, 1 - config.beta1)
        square.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
        # Both averages start at 0; dividing by 1 - β^t takes that bias out.
        scale = (1 - config.beta2**step) ** 0.5
        parameter.addcdiv_(average, (square.sqrt() / scale).add_(config.eps), value=-lr / (1 - config.beta1**step))
