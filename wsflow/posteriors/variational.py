r"""Mean-field variational inference, by the library ``posteriors``.

The Gaussian :math:`q = N(\mu, \mathrm{diag}(\sigma^2))` over weights that minimises

.. math:: \frac{1}{N} E_{\theta \sim q} \left[ T \log q(\theta) - \log p(\theta | D) \right]

with mini-batches (:mod:`wsflow.posteriors.target`), by Adam on :math:`\mu` and :math:`\log \sigma` and the
stick-the-landing gradient (Roeder et al. 2017).  T = 1 is the evidence lower bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from wsflow.posteriors.base import Draws, PosteriorMethod, extra
from wsflow.posteriors.langevin import library
from wsflow.posteriors.recipe import Recipe
from wsflow.posteriors.target import Target
from wsflow.tasks.base import BaseTask
from wsflow.zoo.train import steps_per_epoch


class MeanFieldVI(PosteriorMethod):
    r"""A Gaussian with independent weights.

    Args:
        recipe: The training that the means start from.
        epochs: Of the variational training.
        batch_size: Data points per step.
        lr: Adam's learning rate, falling to zero along half a cosine.
        samples: Weights drawn from q per step.
        initial_std: Where every :math:`\sigma` starts.
        temperature: T; below 1, a cold posterior.
        prior_std: Of the prior of every weight.
        loss_weight: :math:`\kappa` (:mod:`wsflow.posteriors.target`).

    Raises:
        ValueError: where a number is not positive.
    """

    def __init__(
        self,
        recipe: Recipe,
        epochs: int = 200,
        batch_size: int = 64,
        lr: float = 0.01,
        samples: int = 4,
        initial_std: float = 0.01,
        temperature: float = 1.0,
        prior_std: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        if min(epochs, batch_size, samples) < 1 or not min(lr, initial_std, temperature) > 0:
            raise ValueError("epochs, batch_size, samples, lr, initial_std and temperature must be positive")
        self.recipe, self.epochs, self.batch_size, self.lr = recipe, epochs, batch_size, lr
        self.samples, self.initial_std, self.temperature = samples, initial_std, temperature
        self.prior_std, self.loss_weight = prior_std, loss_weight

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Fit q and draw from it; a step counts as its part of an epoch, times ``samples``."""
        vi = library().vi.diag
        began, target = time.process_time(), Target(task, self.prior_std, self.loss_weight)

        def log_posterior(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return target.on_batch(theta[None], batch)[0] / target.count, torch.zeros(())

        transform = vi.build(
            log_posterior,
            extra("torchopt").adam(lr=self._rate(target)),
            temperature=self.temperature / target.count,
            n_samples=self.samples,
            init_log_sds=math.log(self.initial_std),
        )
        state = transform.init(self.recipe.train(task, 1, seed)[0])
        batches = target.batches(1, self.batch_size, seed + 1)
        with torch.random.fork_rng(devices=[]):  # the library draws from the global generator
            torch.default_generator.manual_seed(seed)
            for _ in range(self._steps(target)):
                state, _ = transform.update(state, next(batches), inplace=False)
            theta = vi.sample(state, torch.Size([n])).detach()
        evaluations = self.recipe.epochs + float(self.epochs * self.samples)
        return Draws(theta, seconds=time.process_time() - began, gradient_evaluations=evaluations)

    def _steps(self, target: Target) -> int:
        return steps_per_epoch(target.task, self.batch_size) * self.epochs

    def _rate(self, target: Target) -> Callable[[int], float]:
        steps = self._steps(target)
        return lambda step: self.lr * (1 + math.cos(math.pi * min(float(step) / steps, 1))) / 2
