r"""SWAG: the Gaussian that the iterates of stochastic gradient descent draw (Maddox et al. 2019).

A trained network goes on with a constant learning rate, and its weights are read every few steps:
:math:`\theta_1, \dots, \theta_S`, with running means :math:`\bar\theta_s`.  From the mean
:math:`\bar\theta = \bar\theta_S`, the variances :math:`\Sigma = \mathrm{diag}(\overline{\theta^2} - \bar\theta^2)` and
the deviations :math:`A = (\theta_s - \bar\theta_s)` of the last K iterates, networks are

.. math:: \theta = \bar\theta + \sqrt{c} \left( \frac{1}{\sqrt 2} \Sigma^{1/2} z_1
    + \frac{1}{\sqrt{2 (K - 1)}} A z_2 \right), \qquad z_1 \in R^D, z_2 \in R^K \text{ standard normal.}

Several chains from independent trainings give a mixture (MultiSWAG, Wilson and Izmailov 2020).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from wsflow.posteriors.base import Draws, PosteriorMethod
from wsflow.posteriors.recipe import Recipe
from wsflow.tasks.base import BaseTask
from wsflow.zoo.optimizer import SGD
from wsflow.zoo.train import DataOrder, steps_per_epoch, train_runs

AVERAGING = 1
"""Tells the data order of the averaging phase from that of the training: their seeds differ by it."""


class SWAG(PosteriorMethod):
    """Stochastic weight averaging, Gaussian; all chains run side by side.

    Args:
        recipe: The training that the chains start from.
        lr: Constant learning rate of the averaging phase (plain SGD).
        epochs: Of the averaging phase.
        interval: Steps between iterates that are read.
        rank: K, at least 2.
        scale: c.
        chains: Independent trainings; the networks are spread over them evenly.

    Raises:
        ValueError: for a number that is not positive, or a rank below 2.
    """

    def __init__(
        self,
        recipe: Recipe,
        lr: float = 0.05,
        epochs: int = 20,
        interval: int = 10,
        rank: int = 20,
        scale: float = 1.0,
        chains: int = 1,
    ) -> None:
        if rank < 2 or not lr > 0 or not scale > 0 or min(epochs, interval, chains) < 1:
            raise ValueError("rank must be at least 2, lr, epochs, interval, scale and chains positive")
        self.recipe, self.lr, self.epochs, self.interval = recipe, lr, epochs, interval
        self.rank, self.scale, self.chains = rank, scale, chains

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Train, average and draw; both phases count in gradient evaluations.

        Raises:
            ValueError: where the averaging phase reads fewer iterates than the rank.
        """
        began, chains = time.process_time(), min(self.chains, n)
        iterates = self._iterates(task, chains, seed)
        generator = torch.Generator().manual_seed(seed)
        theta = draw(iterates, -(-n // chains), self.rank, self.scale, generator)
        evaluations = float(chains * (self.recipe.epochs + self.epochs))
        return Draws(theta[:n], seconds=time.process_time() - began, gradient_evaluations=evaluations)

    def _iterates(self, task: BaseTask, chains: int, seed: int) -> Tensor:
        """(chains, S, D)."""
        size, runs = self.recipe.batch_size, range(chains)
        start = self.recipe.train(task, chains, seed)
        steps = steps_per_epoch(task, size) * self.epochs
        read = range(self.interval, steps + 1, self.interval)
        if len(read) < self.rank:
            raise ValueError(f"rank {self.rank} needs as many iterates; {steps} steps give {len(read)}")
        order = DataOrder(len(task.data("train")[0]), seed + AVERAGING, [chains + run for run in runs])
        return train_runs(task, start, order, SGD(self.lr), self.epochs, size, read).theta


def draw(iterates: Tensor, n: int, rank: int, scale: float, generator: torch.Generator) -> Tensor:
    """Draw n networks of every chain, those of different chains in turn.

    Args:
        iterates: (B, S, D), S at least ``rank``.
        n: Per chain.
        rank: K.
        scale: c.
        generator: Of the normal numbers.

    Returns:
        (n B, D).
    """
    chains, count, dim = iterates.shape
    running = iterates.cumsum(1) / torch.arange(1, count + 1)[:, None]
    mean, spread = running[:, -1], iterates.std(1, correction=0)
    deviations = (iterates - running)[:, -rank:]
    diagonal = torch.randn(n, chains, dim, generator=generator) * spread
    low_rank = torch.einsum("nbk,bkd->nbd", torch.randn(n, chains, rank, generator=generator), deviations)
    theta: Tensor = mean + (scale / 2) ** 0.5 * (diagonal + low_rank / (rank - 1) ** 0.5)
    return theta.flatten(0, 1)
