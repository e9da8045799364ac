r"""The posterior that samplers and variational inference aim at.

With the prior :math:`N(0, s^2 I)` and the N points of the train split,

.. math:: \log p(\theta | D) = -\kappa \sum_{i=1}^{N} \ell(f_\theta(x_i), y_i) - \frac{|\theta|^2}{2 s^2} + const,

where :math:`\ell` is the task's loss.  For cross-entropy :math:`\kappa = 1`.  For the mean squared error over C
outputs and Gaussian noise of standard deviation :math:`\sigma`, :math:`\kappa = C / (2 \sigma^2)`.  A mini-batch of b
points stands for the sum by N / b times its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wsflow.tasks.base import BaseTask
from wsflow.zoo.train import DataOrder


class Target:
    r"""The log posterior of a task's weights, up to a constant.

    Args:
        task: Data, network and loss.
        prior_std: s, of every weight.
        loss_weight: :math:`\kappa`.

    Raises:
        ValueError: unless both numbers are positive.
    """

    def __init__(self, task: BaseTask, prior_std: float = 1.0, loss_weight: float = 1.0) -> None:
        if not prior_std > 0 or not loss_weight > 0:
            raise ValueError(f"prior_std and loss_weight must be positive, got {prior_std} and {loss_weight}")
        self.task, self.prior_std, self.loss_weight = task, prior_std, loss_weight
        inputs, self._targets = task.data("train")
        self.count, self._shape = len(inputs), inputs.shape[1:]
        self._rows = inputs.reshape(self.count, -1)  # whole rows are gathered faster than images

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, b, ...) and targets (B, b, ...) of the points ``index`` (B, b)."""
        return self._rows[index].view(*index.shape, *self._shape), self._targets[index]

    def batches(self, chains: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Mini-batches without end, each chain in its own order; the last, smaller one of an epoch is kept."""
        order = DataOrder(self.count, seed, range(chains))
        while True:
            yield from map(self.batch, torch.split(order.epoch(), size, dim=1))

    def prior(self, theta: Tensor) -> Tensor:
        """Log density (B,) of the prior, up to a constant."""
        return -theta.square().sum(-1) / (2 * self.prior_std**2)

    def on_batch(self, theta: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The log posterior (B,) of weights (B, D), estimated on a mini-batch of each network."""
        inputs, targets = batch
        logits = self.task.space.forward(self.task.with_statistics(theta), inputs.to(theta), per_network=True)
        return self.prior(theta) - self.loss_weight * self.count * self.task.loss(logits, targets)

    def __call__(self, theta: Tensor) -> Tensor:
        """The log posterior (B,) of weights (B, D) on the whole train split."""
        inputs = self._rows.view(self.count, *self._shape).to(theta)
        logits = self.task.space.forward(self.task.with_statistics(theta), inputs)
        return self.prior(theta) - self.loss_weight * self.count * self.task.loss(logits, self._targets)
