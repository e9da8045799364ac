r"""Hamiltonian Monte Carlo on the whole train split (Neal 2011), for small networks.

With momenta p ~ N(0, I) and the log posterior of :mod:`wsflow.posteriors.target`, one iteration takes L leapfrog steps

.. math:: p \leftarrow p + \tfrac{\epsilon}{2} \nabla \log p(\theta), \quad
    \theta \leftarrow \theta + \epsilon p, \quad p \leftarrow p + \tfrac{\epsilon}{2} \nabla \log p(\theta)

and accepts the end with probability :math:`\min(1, e^{H - H'})`, :math:`H = \frac{1}{2} |p|^2 - \log p(\theta)`.
During the warm-up each chain adapts its :math:`\epsilon` to a wanted acceptance by dual averaging (Hoffman and Gelman
2014, section 3.2).  All chains take their steps together, which libraries that run one chain after another do not.

Whether chains agree is said by the split R-hat (Gelman et al. 2013): :math:`\sqrt{V / W}`, W the mean variance within
half-chains and V = W (m - 1) / m + the variance of their means, m draws each.  Weights are no place to look, as hidden
neurons permute; it is taken of the log posterior and of the outputs on some validation inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.posteriors.base import Draws, PosteriorMethod
from wsflow.posteriors.recipe import Recipe
from wsflow.posteriors.target import Target
from wsflow.tasks.base import BaseTask

LogDensity = Callable[[Tensor], Tensor]
"""Weights (B, D) to the log posterior (B,)."""


class State(NamedTuple):
    """B chains: weights (B, D), their log posterior (B,) and its gradient (B, D)."""

    theta: Tensor
    log_density: Tensor
    gradient: Tensor


class Trace(NamedTuple):
    """What B chains leave behind: weights (S, B, D), log posterior (S, B), mean acceptance (B,), step sizes (B,)."""

    theta: Tensor
    log_density: Tensor
    acceptance: Tensor
    step_size: Tensor


class HMC(PosteriorMethod):
    r"""Hamiltonian Monte Carlo with batched chains.

    Args:
        recipe: The training that chains start from.
        chains: How many, at least 2.
        warmup: Iterations in which step sizes adapt; none of them is kept.
        iterations: Kept iterations of each chain; the networks are read from them at equal distances.
        leapfrog: L.
        step_size: Where the adaptation starts.
        acceptance: The wanted one.
        prior_std: Of the prior of every weight.
        loss_weight: :math:`\kappa` (:mod:`wsflow.posteriors.target`).

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        recipe: Recipe,
        chains: int = 10,
        warmup: int = 100,
        iterations: int = 100,
        leapfrog: int = 50,
        step_size: float = 0.005,
        acceptance: float = 0.8,
        prior_std: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        if chains < 2 or warmup < 1 or iterations < 4 or leapfrog < 1 or not step_size > 0 or not 0 < acceptance < 1:
            raise ValueError(
                "HMC needs at least 2 chains, 1 warm-up and 4 kept iterations, 1 leapfrog step, a positive step size "
                "and an acceptance between 0 and 1"
            )
        self.recipe, self.chains, self.warmup, self.iterations = recipe, chains, warmup, iterations
        self.leapfrog, self.step_size, self.acceptance = leapfrog, step_size, acceptance
        self.prior_std, self.loss_weight = prior_std, loss_weight

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Run all chains, whatever n; every gradient is one gradient evaluation.

        ``notes`` hold the mean acceptance, R-hat of the log posterior, and the largest and mean R-hat of the outputs
        on 32 validation inputs.

        Raises:
            ValueError: where n is larger than the number of kept iterations of all chains.
        """
        if n > self.iterations * self.chains:
            raise ValueError(f"{self.chains} chains of {self.iterations} iterations have fewer than {n} networks")
        began, target = time.process_time(), Target(task, self.prior_std, self.loss_weight)
        start = self.recipe.train(task, self.chains, seed)
        generator = torch.Generator().manual_seed(seed)
        adaptation = (self.warmup, self.step_size, self.acceptance)
        trace = run_chains(target, start, self.iterations, self.leapfrog, adaptation, generator)
        every = torch.linspace(self.iterations * self.chains - 1, 0, n).round().long().flip(0)
        theta = trace.theta.flatten(0, 1)[every]
        seconds = time.process_time() - began
        gradients = self.chains * (1 + (self.warmup + self.iterations) * self.leapfrog)
        evaluations = float(gradients + self.chains * self.recipe.epochs)
        return Draws(theta, None, seconds, evaluations, _notes(task, trace))


def run_chains(
    log_density: LogDensity,
    start: Tensor,
    iterations: int,
    leapfrog: int,
    adaptation: tuple[int, float, float],
    generator: torch.Generator,
) -> Trace:
    """Run B chains.

    Args:
        log_density: What to draw from, up to a constant.
        start: (B, D).
        iterations: Kept ones.
        leapfrog: L.
        adaptation: Iterations of the warm-up, the first step size, and the wanted acceptance.
        generator: Of momenta and acceptances.
    """
    warmup, first, wanted = adaptation
    state, step_size = _state(log_density, start), torch.full((len(start),), first, dtype=start.dtype)
    averaging = DualAveraging(step_size, wanted)
    for _ in range(warmup):
        state, accepted = _iterate(log_density, state, step_size, leapfrog, generator)
        step_size = averaging.update(accepted)
    step_size = averaging.final
    kept, acceptance = [], torch.zeros_like(step_size)
    for _ in range(iterations):
        state, accepted = _iterate(log_density, state, step_size, leapfrog, generator)
        kept.append(state)
        acceptance += accepted / iterations
    theta, log_densities = (torch.stack([getattr(one, name) for one in kept]) for name in ("theta", "log_density"))
    return Trace(theta, log_densities, acceptance, step_size)


class DualAveraging:
    """Step sizes (B,) that approach a wanted acceptance; constants as in Hoffman and Gelman (2014).

    Args:
        step_size: (B,), the first ones.
        wanted: The acceptance.
    """

    def __init__(self, step_size: Tensor, wanted: float) -> None:
        self._wanted, self._centre = wanted, (10 * step_size).log()
        self._error, self._average, self._count = torch.zeros_like(step_size), step_size.log(), 0.0

    def update(self, accepted: Tensor) -> Tensor:
        """The next step sizes, given the acceptance probabilities (B,) of the last iteration."""
        self._count += 1
        rate = 1 / (self._count + 10)
        self._error = (1 - rate) * self._error + rate * (self._wanted - accepted)
        log_step: Tensor = self._centre - self._count**0.5 / 0.05 * self._error
        weight = self._count**-0.75
        self._average = weight * log_step + (1 - weight) * self._average
        return log_step.exp()

    @property
    def final(self) -> Tensor:
        """The averaged step sizes (B,), for the iterations that count."""
        final: Tensor = self._average.exp()
        return final


def split_r_hat(values: Tensor) -> Tensor:
    """Split R-hat of draws (S, B, ...) of B chains, (...)."""
    half = len(values) // 2
    parts = torch.cat([values[:half], values[half : 2 * half]], dim=1).double()
    within, between = parts.var(0).mean(0), parts.mean(0).var(0)
    same = (within == 0) & (between == 0)  # outputs that saturate; nothing disagrees there
    ratio = ((within * (half - 1) / half + between) / within).sqrt()
    return torch.where(same, torch.ones_like(ratio), ratio)


def _state(log_density: LogDensity, theta: Tensor) -> State:
    theta = theta.detach().requires_grad_(True)
    value = log_density(theta)
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    return State(theta.detach(), value.detach(), gradient)


def _iterate(
    log_density: LogDensity, state: State, step_size: Tensor, leapfrog: int, generator: torch.Generator
) -> tuple[State, Tensor]:
    """The next state, and the probabilities (B,) with which proposals were accepted."""
    start = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype)
    jitter = 0.9 + 0.2 * torch.rand(len(step_size), generator=generator, dtype=step_size.dtype)
    size = (step_size * jitter)[:, None]
    new, momentum = state, start
    for _ in range(leapfrog):
        momentum = momentum + size / 2 * new.gradient
        new = _state(log_density, new.theta + size * momentum)
        momentum = momentum + size / 2 * new.gradient
    kinetic = (start.double().square().sum(1) - momentum.double().square().sum(1)) / 2
    change = kinetic + new.log_density.double() - state.log_density.double()
    probability = change.nan_to_num(nan=-torch.inf).clamp(max=0).exp().to(step_size.dtype)
    taken = torch.rand(len(step_size), generator=generator, dtype=step_size.dtype) < probability
    chosen = [torch.where(taken.view(-1, *[1] * (old.ndim - 1)), a, old) for a, old in zip(new, state, strict=True)]
    return State(*chosen), probability


@torch.no_grad()
def _notes(task: BaseTask, trace: Trace) -> dict[str, float]:
    inputs = task.probe(32).to(trace.theta)
    networks = (task.with_statistics(theta) for theta in trace.theta)
    r_hat = split_r_hat(torch.stack([task.predictions(task.space.forward(theta, inputs)) for theta in networks]))
    return {
        "acceptance": float(trace.acceptance.mean()),
        "r_hat.log_posterior": float(split_r_hat(trace.log_density)),
        "r_hat.outputs.mean": float(r_hat.mean()),
        "r_hat.outputs.max": float(r_hat.max()),
    }
