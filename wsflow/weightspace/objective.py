"""Differentiable functions of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

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

    def attach(self, task: Any) -> None:  # noqa: B027 (most objectives leave it alone)
        """Take the base task (:class:`wsflow.tasks.BaseTask`), unless another was given; most objectives need none.

        Args:
            task: The task; None to make ready with the one that there is.

        Raises:
            ValueError: where one is needed and this is none.
        """


class WeightNorm(Objective):
    r"""Half the squared norm, :math:`\frac12 |\theta|^2`; its gradient is the weights: weight decay."""

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,)."""
        return theta.square().sum(1) / 2


class FunctionObjective(Objective):
    """A plain function of weights.

    Args:
        function: (B, D) -> (B,), differentiable; in a config its dotted path.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The function's values.

        Raises:
            ValueError: where these are not one number for each network.
        """
        values = self.function(theta)
        if values.shape != theta.shape[:1]:
            raise ValueError(f"the objective's function gives {tuple(values.shape)} for {len(theta)} networks")
        return values


class WeightedSum(Objective):
    """Several objectives at once.

    Args:
        objectives: At least one.
        weights: As many; all 1 by default.

    Raises:
        ValueError: for no objectives, or other numbers of weights.
    """

    def __init__(self, objectives: Sequence[Objective], weights: Sequence[float] | None = None) -> None:
        if not objectives or (weights is not None and len(weights) != len(objectives)):
            given = "no weights" if weights is None else f"{len(weights)} weights"
            raise ValueError(f"a weighted sum needs objectives and a weight for each; got {len(objectives)}, {given}")
        self.objectives, self.weights = list(objectives), None if weights is None else list(weights)

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,)."""
        weights = self.weights or [1.0] * len(self.objectives)
        values = [weight * one(theta, generator) for weight, one in zip(weights, self.objectives, strict=True)]
        return torch.stack(values).sum(0)

    def attach(self, task: Any) -> None:
        """Every objective takes it."""
        for one in self.objectives:
            one.attach(task)
