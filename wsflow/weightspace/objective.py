"""Differentiable functions of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Objective(ABC):
    """A differentiable function of weights, such as a task's loss or a regulariser.

    Guidance, alignment and functional losses take one; tasks make them.
    """

    @abstractmethod
    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Value for each network.

        Args:
            theta: (B, D), raw weights (decoded).
            generator: Source of the objective's own randomness, such as which data a mini-batch holds.

        Returns:
            (B,), lower is better.
        """
