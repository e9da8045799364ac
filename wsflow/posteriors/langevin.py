r"""Stochastic gradient Markov chains, by the library ``posteriors``: SGLD and SGHMC.

Both follow the gradient of :math:`\frac{1}{N} \log p(\theta | D)` on mini-batches (:mod:`wsflow.posteriors.target`) at
the temperature T / N, so that learning rates are those of a mean loss.  SGLD (Welling and Teh 2011) is

.. math:: \theta' = \theta + \epsilon g + \sqrt{2 \epsilon T / N}\, z,

SGHMC (Chen et al. 2014) has a momentum with friction :math:`\alpha`,

.. math:: \theta' = \theta + \epsilon m, \qquad m' = m + \epsilon g - \epsilon \alpha m
    + \sqrt{2 \epsilon \alpha T / N}\, z.

Chains start from trained networks and run side by side: they are one tensor (B, D) to the library, whose steps act on
every number by itself.  The networks are read after a burn-in, every so many steps, from all chains in turn.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from wsflow.posteriors.base import Draws, PosteriorMethod, extra
from wsflow.posteriors.recipe import Recipe
from wsflow.posteriors.target import Target
from wsflow.tasks.base import BaseTask


@dataclass(frozen=True)
class Schedule:
    """How long chains run.

    Args:
        chains: How many; no more are run than networks are asked for.
        burn_in: Steps before the first network is read.
        interval: Steps from one network of a chain to the next.
        batch_size: Data points per chain and step.

    Raises:
        ValueError: where a number is not positive; the burn-in may be 0.
    """

    chains: int = 10
    burn_in: int = 500
    interval: int = 100
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.chains, self.interval, self.batch_size) < 1 or self.burn_in < 0:
            raise ValueError(f"chains, interval and batch_size must be positive, burn_in not negative: {self}")


class SGLD(PosteriorMethod):
    r"""Stochastic gradient Langevin dynamics.

    Args:
        recipe: The training that chains start from.
        schedule: How long chains run.
        lr: :math:`\epsilon`.
        temperature: T; below 1, a cold posterior.
        prior_std: Of the prior of every weight.
        loss_weight: :math:`\kappa` (:mod:`wsflow.posteriors.target`).
    """

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule | None = None,
        lr: float = 0.01,
        temperature: float = 1.0,
        prior_std: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        self.recipe, self.schedule = recipe, schedule or Schedule()
        self.lr, self.temperature, self.prior_std, self.loss_weight = lr, temperature, prior_std, loss_weight

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Run the chains; a step counts as its part of an epoch."""

        def build(log_posterior: Any, count: int) -> Any:
            return library().sgmcmc.sgld.build(log_posterior, self.lr, temperature=self.temperature / count)

        target = Target(task, self.prior_std, self.loss_weight)
        return run_chains(target, build, self.recipe, self.schedule, n, seed)


class SGHMC(PosteriorMethod):
    r"""Stochastic gradient Hamiltonian Monte Carlo.

    Args:
        recipe: The training that chains start from.
        schedule: How long chains run.
        lr: :math:`\epsilon`, of the weights as of the momentum.
        friction: :math:`\alpha`.
        temperature: T; below 1, a cold posterior.
        prior_std: Of the prior of every weight.
        loss_weight: :math:`\kappa` (:mod:`wsflow.posteriors.target`).
    """

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule | None = None,
        lr: float = 0.1,
        friction: float = 1.0,
        temperature: float = 1.0,
        prior_std: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        self.recipe, self.schedule, self.friction = recipe, schedule or Schedule(), friction
        self.lr, self.temperature, self.prior_std, self.loss_weight = lr, temperature, prior_std, loss_weight

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Run the chains; a step counts as its part of an epoch."""

        def build(log_posterior: Any, count: int) -> Any:
            return library().sgmcmc.sghmc.build(
                log_posterior, self.lr, alpha=self.friction, temperature=self.temperature / count, momenta=0.0
            )

        target = Target(task, self.prior_std, self.loss_weight)
        return run_chains(target, build, self.recipe, self.schedule, n, seed)


def library() -> ModuleType:
    """The package ``posteriors``.

    Raises:
        MissingExtraError: where it is not installed.
    """
    with warnings.catch_warnings():
        # posteriors 0.1 declares tensors as defaults of its states' fields, which tensordict 0.15 warns of.
        warnings.filterwarnings("ignore", "The Tensor default of the field", FutureWarning)
        return extra("posteriors")


def run_chains(
    target: Target, build: Callable[[Any, int], Any], recipe: Recipe, schedule: Schedule, n: int, seed: int
) -> Draws:
    """Networks that chains of the library pass.

    Args:
        target: The log posterior.
        build: Makes the library's transform from the mean log posterior and N.
        recipe: The training that chains start from.
        schedule: How long they run.
        n: Networks.
        seed: Of trainings, data orders and noise.

    Raises:
        ValueError: where a chain leaves the finite numbers.
    """
    library()
    began, chains = time.process_time(), min(schedule.chains, n)

    def log_posterior(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return target.on_batch(theta, batch).sum() / target.count, torch.zeros(())

    transform, kept, seen = build(log_posterior, target.count), [], 0
    state = transform.init(recipe.train(target.task, chains, seed))
    steps = schedule.burn_in + schedule.interval * -(-n // chains)
    batches = target.batches(chains, schedule.batch_size, seed + 1)
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator
        torch.default_generator.manual_seed(seed)
        for step in range(1, steps + 1):
            batch = next(batches)
            state, _ = transform.update(state, batch, inplace=False)
            seen += batch[1].shape[1]
            if step > schedule.burn_in and (step - schedule.burn_in) % schedule.interval == 0:
                kept.append(state.params)
    theta = torch.cat(kept)[:n]
    epochs = recipe.epochs + seen / target.count
    return Draws(theta, seconds=time.process_time() - began, gradient_evaluations=chains * epochs)
