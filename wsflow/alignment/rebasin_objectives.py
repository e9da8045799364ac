r"""What Sinkhorn re-basin minimises (Peña et al. 2023; thesis eqs. 4.4 to 4.6).

With the reference :math:`\theta_A`, the softly permuted network :math:`\pi_P(\theta_B)` and a loss L,

.. math:: \mathcal L_{L2} = |\theta_A - \pi_P(\theta_B)|^2, \qquad
          \mathcal L_{Mid} = L(\tfrac12 (\theta_A + \pi_P(\theta_B))), \qquad
          \mathcal L_{Rnd} = L((1 - \lambda) \theta_A + \lambda \pi_P(\theta_B)), \quad \lambda \sim U(0, 1).

The search follows the gradient of an objective; the permutations it comes across are *judged* by a value without
randomness, which for the last is the mean over a grid of :math:`\lambda`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wsflow.weightspace import Objective


class RebasinObjective(ABC):
    """A differentiable function of softly permuted networks; keeps each constructor argument as an attribute.

    Attributes:
        needs_loss: Whether it looks at a loss.
    """

    needs_loss: bool = True

    @abstractmethod
    def __call__(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """What the search follows, (B,), lower is better.

        Args:
            reference: (B, D).
            moved: (B, D), the permuted networks.
            loss: A task's loss, on train data; None only where ``needs_loss`` is not set.
            generator: Of lambda, and of the loss's own randomness.
        """

    @abstractmethod
    def judge(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """What permutations are compared by, (B,); a function of the generator's state, always the same."""


class L2Objective(RebasinObjective):
    """The squared distance of the weights (thesis eq. 4.4); needs no data."""

    needs_loss = False

    def __call__(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Squared distances, (B,)."""
        return (reference - moved).square().sum(1)

    def judge(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Squared distances, (B,)."""
        return self(reference, moved, loss, generator)


class MidObjective(RebasinObjective):
    """The loss half way between the networks (thesis eq. 4.5)."""

    def __call__(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Losses of the midpoints, (B,)."""
        return _between(reference, moved, 0.5, loss, generator)

    def judge(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Losses of the midpoints, (B,)."""
        return self(reference, moved, loss, generator)


class RandomObjective(RebasinObjective):
    """The loss at random points between the networks (thesis eq. 4.6), the same ones for all networks.

    Args:
        points: Points of the grid that permutations are judged on: the middles of as many equal parts of the line.

    Raises:
        ValueError: for fewer than one point.
    """

    def __init__(self, points: int = 5) -> None:
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        self.points = points

    def __call__(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Losses at one random point, (B,)."""
        at = float(torch.rand((), generator=generator))
        return _between(reference, moved, at, loss, generator)

    def judge(self, reference: Tensor, moved: Tensor, loss: Objective | None, generator: torch.Generator) -> Tensor:
        """Mean losses over the grid, (B,)."""
        grid = [(i + 0.5) / self.points for i in range(self.points)]
        return torch.stack([_between(reference, moved, at, loss, generator) for at in grid]).mean(0)


def _between(reference: Tensor, moved: Tensor, at: float, loss: Objective | None, generator: torch.Generator) -> Tensor:
    assert loss is not None
    return loss(torch.lerp(reference, moved, at), generator)
