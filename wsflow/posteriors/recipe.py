"""How networks are trained where a method starts from trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsflow.tasks.base import BaseTask
from wsflow.weightspace import GaussianInitializer, Initializer
from wsflow.zoo.optimizer import Adam, RunOptimizer
from wsflow.zoo.train import DataOrder, draw_starts, steps_per_epoch, train_runs


class Recipe:
    """A training, as :class:`wsflow.zoo.Collector` has it.

    Args:
        epochs: Passes through the train data.
        batch_size: Data points per network and step.
        optimizer: Adam with learning rate 1e-3 by default.
        initializer: The law of the starts; N(0, 0.1) by default.
        together: Networks that train side by side.

    Raises:
        ValueError: where a number is not positive.
    """

    def __init__(
        self,
        epochs: int = 50,
        batch_size: int = 64,
        optimizer: RunOptimizer | None = None,
        initializer: Initializer | None = None,
        together: int = 32,
    ) -> None:
        if min(epochs, batch_size, together) < 1:
            raise ValueError(f"epochs, batch_size and together must be positive: {epochs}, {batch_size}, {together}")
        self.epochs, self.batch_size, self.together = epochs, batch_size, together
        self.optimizer = optimizer if optimizer is not None else Adam()
        self.initializer = initializer if initializer is not None else GaussianInitializer()

    def train(self, task: BaseTask, n: int, seed: int) -> Tensor:
        """Train n networks, (n, D); the i-th depends on (seed, i) alone, up to rounding."""
        runs = range(n)
        return torch.cat([self._chunk(task, runs[i : i + self.together], seed) for i in range(0, n, self.together)])

    def _chunk(self, task: BaseTask, runs: Sequence[int], seed: int) -> Tensor:
        order = DataOrder(len(task.data("train")[0]), seed, runs)
        start = draw_starts(task, self.initializer, seed, runs)
        last = [steps_per_epoch(task, self.batch_size) * self.epochs]
        return train_runs(task, start, order, self.optimizer, self.epochs, self.batch_size, last).theta[:, 0]
