"""Optimisers of base networks.

Runs share one parameter tensor (B, D), so an optimiser must act on every number by itself; Adam and SGD do, and each
run is then trained as if it were alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RunOptimizer(ABC):
    """Makes the optimiser of a chunk of runs; init arguments are kept as attributes of the same name."""

    @abstractmethod
    def build(self, theta: Tensor) -> Optimizer:
        """An optimiser of ``theta`` (B, D) whose update of a number depends on that number's gradients alone."""


class Adam(RunOptimizer):
    """Adam (Kingma and Ba 2017).

    Args:
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the denominator.
        weight_decay: Added to the gradient, times the weights.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, tuple(betas), eps, weight_decay

    def build(self, theta: Tensor) -> Optimizer:
        """``torch.optim.Adam`` on (B, D)."""
        beta1, beta2 = self.betas
        return torch.optim.Adam([theta], self.lr, (beta1, beta2), self.eps, self.weight_decay, fused=True)


class SGD(RunOptimizer):
    """Stochastic gradient descent.

    Args:
        lr: Learning rate.
        momentum: Heavy-ball momentum.
        weight_decay: Added to the gradient, times the weights.
        nesterov: Nesterov's momentum instead.
    """

    def __init__(
        self, lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self.lr, self.momentum, self.weight_decay, self.nesterov = lr, momentum, weight_decay, nesterov

    def build(self, theta: Tensor) -> Optimizer:
        """``torch.optim.SGD`` on (B, D)."""
        return torch.optim.SGD([theta], self.lr, self.momentum, 0.0, self.weight_decay, self.nesterov, fused=True)


class CosineDecay(RunOptimizer):
    r"""Another optimiser whose learning rate falls along half a cosine.

    Step k = 0, 1, ... of S = ``steps`` takes :math:`f + (1 - f) (1 + \cos(\pi k / S)) / 2` times the learning rate,
    with f = ``final``, and every later step f times.

    Args:
        optimizer: Its learning rate is the highest one; Adam with 1e-3 by default.
        steps: S, the optimiser steps of a run.
        final: f, the fraction of the learning rate that is left at the end.

    Raises:
        ValueError: for fewer than one step, or a fraction outside [0, 1].
    """

    def __init__(self, optimizer: RunOptimizer | None = None, steps: int = 1000, final: float = 0.0) -> None:
        if steps < 1 or not 0 <= final <= 1:
            raise ValueError(f"steps must be at least 1 and final in [0, 1], got {steps} and {final}")
        self.optimizer, self.steps, self.final = optimizer if optimizer is not None else Adam(), steps, final

    def build(self, theta: Tensor) -> Optimizer:
        """The other optimiser on (B, D), its learning rate set before each step."""
        descent = self.optimizer.build(theta)
        rates, taken = [group["lr"] for group in descent.param_groups], 0

        def decay(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal taken
            falling = (1 + math.cos(math.pi * min(taken / self.steps, 1))) / 2
            for group, rate in zip(descent.param_groups, rates, strict=True):
                group["lr"] = rate * (self.final + (1 - self.final) * falling)
            taken += 1

        descent.register_step_pre_hook(decay)
        return descent
