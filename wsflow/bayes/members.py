r"""What the members of an ensemble answer, piece by piece within the task's memory.

An ensemble of n networks is given either by weights :math:`\theta` (n, D) or, where a method has no single vector of
weights (a Laplace approximation of the last layer, say), by a function from inputs (N, ...) to the predictions
(n, N, C) of its n members: class probabilities, or values of a regression.  Everything in this room takes both, so that
all methods are judged by the same code.

Answers are float64: log-probabilities :math:`\log p(y \mid x, \theta_b)` of classifiers, from logits where there are
any, so that confident networks do not underflow; plain values of regressions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsflow.tasks import BaseTask, ClassificationTask

WORKING = 32
"""Bytes for each number that a member puts out: the answer itself in float64 and what is computed of it."""


class Members(ABC):
    """The n members of an ensemble.

    Args:
        task: The base task.

    Attributes:
        count: n.
    """

    count: int

    def __init__(self, task: BaseTask) -> None:
        self.task = task

    @abstractmethod
    def answers(self, inputs: Tensor) -> Tensor:
        """Log-probabilities or values (n, N, C) in float64 of inputs (N, ...), all at once."""

    def stream(self, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Data points and the members' answers to them, (n, points, C) each.

        Args:
            inputs: (N, ...).
        """
        points = max(1, self.task.memory // (WORKING * self.count * self.task.layer_sizes[-1]))
        for first in range(0, len(inputs), points):
            columns = slice(first, min(first + points, len(inputs)))
            yield columns, self.answers(inputs[columns])


class WeightMembers(Members):
    """Members given by weights.

    Args:
        task: The base task.
        theta: (n, D), or extended by running statistics.

    Raises:
        ValueError: for weights of another space, none, or some that are not finite.
    """

    def __init__(self, task: BaseTask, theta: Tensor) -> None:
        super().__init__(task)
        task.space.check(theta)
        if theta.ndim != 2 or not len(theta):
            raise ValueError(f"an ensemble needs weights of shape (n, D) with n at least 1, got {tuple(theta.shape)}")
        if not (finite := theta.isfinite().all(1)).all():
            raise ValueError(
                f"{int((~finite).sum())} of {len(theta)} networks have weights that are not finite, the first is "
                f"number {int((~finite).nonzero()[0])}: leave them out, or look for what made the method diverge"
            )
        with torch.no_grad():
            self.theta = task.with_statistics(theta.detach())
        self.count = len(theta)

    @torch.no_grad()
    def answers(self, inputs: Tensor) -> Tensor:
        """Log-probabilities or values, (n, N, C)."""
        nets = max(1, self.task.memory // (4 * max(self.task.layer_sizes) * max(1, len(inputs))))
        placed = inputs.to(self.theta)
        parts = [self.task.space.forward(theta, placed).double() for theta in torch.split(self.theta, nets)]
        logits = torch.cat(parts)
        return logits.log_softmax(-1) if isinstance(self.task, ClassificationTask) else self.task.predictions(logits)


class PredictingMembers(Members):
    """Members given by a function of inputs.

    Args:
        task: The base task.
        predict: From inputs (N, ...) to probabilities, or values, (n, N, C).
    """

    def __init__(self, task: BaseTask, predict: Callable[[Tensor], Tensor]) -> None:
        super().__init__(task)
        self.predict = predict
        self.count = len(self.answers(task.probe(1)))

    @torch.no_grad()
    def answers(self, inputs: Tensor) -> Tensor:
        """Log-probabilities or values, (n, N, C).

        Raises:
            ValueError: where the function gives another shape, what is not finite, or probabilities that are none.
        """
        given = self.predict(inputs).detach().double()
        outputs = self.task.layer_sizes[-1]
        if given.ndim != 3 or given.shape[1:] != (len(inputs), outputs) or not len(given):
            wanted = f"(n, {len(inputs)}, C) with C = {outputs}"
            raise ValueError(f"predict must give {wanted} for {len(inputs)} inputs, not {tuple(given.shape)}")
        if not given.isfinite().all():
            raise ValueError("predict gives values that are not finite: look for what made the method diverge")
        if not isinstance(self.task, ClassificationTask):
            return given
        total = given.sum(-1, keepdim=True)
        if not ((given >= 0).all() & ((total - 1).abs() < 1e-3).all()):
            raise ValueError("predict must give class probabilities, at least 0 and with the sum 1: apply a softmax")
        return (given / total).log()


Source = Tensor | Callable[[Tensor], Tensor] | Members
"""An ensemble: weights (n, D), a function from inputs to predictions (n, N, C), or members made of either."""


def members(task: BaseTask, source: Source) -> Members:
    """The members that a source gives.

    Args:
        task: The base task.
        source: Weights, a function of inputs, or members.

    Raises:
        ValueError: for a task without data, and where weights or predictions do not fit the task.
    """
    if not task.has_data:
        raise ValueError(f"task {task.name} has no data to predict")
    if isinstance(source, Members):
        return source
    return WeightMembers(task, source) if isinstance(source, Tensor) else PredictingMembers(task, source)
