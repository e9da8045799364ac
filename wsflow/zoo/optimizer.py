"""Optimisers of base networks.

Runs share one parameter tensor (B, D), so an optimiser must act on every number by itself; Adam and SGD do, and each
run is then trained as if it were alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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
        return torch.optim.Adam([theta], self.lr, (beta1, beta2), self.eps, self.weight_decay)


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
        return torch.optim.SGD([theta], self.lr, self.momentum, 0.0, self.weight_decay, self.nesterov)
