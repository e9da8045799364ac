r"""The posterior predictive, as an average over networks.

Thesis eq. 2.1, :math:`p(y | x, D) = \int p(y | x, \theta)\, p(\theta | D)\, d\theta`, with samples
:math:`\theta_b` of (an approximation of) the posterior and mixing weights :math:`W` (:mod:`wsflow.bayes.mixing`):

.. math:: p_s(y | x) = \sum_b W_{sb}\, p(y | x, \theta_b), \qquad s = 1, \ldots, S.

*Classification.*  Uncertainty is the entropy of the average, and splits into what members have on their own and what
they disagree on (Depeweg et al. 2018):
:math:`H[p_s] = \sum_b W_{sb} H[p(\cdot | x, \theta_b)] + I_s`, where the mutual information :math:`I_s \ge 0` of label
and weights is the epistemic part.  The log-probability of the target is averaged in log space.

*Regression.*  Member b is :math:`N(f_{\theta_b}(x), v_b)` with :math:`v_b` its mean squared error on train data (as in
:mod:`wsflow.tasks.regression`); the predictive is their mixture, with the variance :math:`\sum_b W_{sb} v_b` (noise)
plus that of the means (the epistemic part).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from wsflow.bayes.members import Members, Source, members
from wsflow.bayes.mixing import mixing
from wsflow.tasks import BaseTask, ClassificationTask, RegressionTask
from wsflow.tasks.regression import SMALLEST_VARIANCE

SMALL = 1e-280
"""Sums of exponentials below this have lost digits to underflow."""

LARGE = 1e300


@dataclass(frozen=True)
class ClassPredictive:
    """Predictions of S ensembles of classifiers for N data points; float64.

    Args:
        probabilities: (S, N, C), the averaged class probabilities.
        member_entropy: (S, N), the average entropy of members, in nats.
        log_target: (S, N), log of the averaged probability of the target; None without targets.
        targets: (N,), class indices; None where they are not known.
    """

    probabilities: Tensor
    member_entropy: Tensor
    log_target: Tensor | None = None
    targets: Tensor | None = None

    @property
    def entropy(self) -> Tensor:
        """(S, N), entropy of the averaged probabilities, in nats."""
        entropy: Tensor = torch.special.entr(self.probabilities).sum(-1)
        return entropy

    @property
    def mutual_information(self) -> Tensor:
        """(S, N), the epistemic part of the entropy; 0 for an ensemble of one."""
        return (self.entropy - self.member_entropy).clamp(min=0)

    @property
    def confidence(self) -> Tensor:
        """(S, N), the probability of the most probable class."""
        return self.probabilities.amax(-1)

    @property
    def label(self) -> Tensor:
        """(S, N), the most probable class."""
        return self.probabilities.argmax(-1)


@dataclass(frozen=True)
class ValuePredictive:
    """Predictions of S ensembles of regressions for N data points; float64.

    Args:
        mean: (S, N, C).
        epistemic: (S, N, C), variance of the members' means.
        noise: (S,), averaged noise variance of members.
        log_density: (S, N), of the mixture at the target, per target number; None without targets.
        targets: (N, C); None where they are not known.
    """

    mean: Tensor
    epistemic: Tensor
    noise: Tensor
    log_density: Tensor | None = None
    targets: Tensor | None = None


Predictive = ClassPredictive | ValuePredictive


@torch.no_grad()
def predictive(
    task: BaseTask,
    source: Source,
    split: str | None = None,
    inputs: Tensor | None = None,
    weights: Tensor | None = None,
) -> Predictive:
    """The predictive of S ensembles made of the same members, streamed within ``task.memory``.

    Args:
        task: The base task.
        source: Weights (n, D), or a function from inputs to predictions (n, N, C).
        split: Whose inputs and targets.
        inputs: Instead of a split: inputs (N, ...) without targets.
        weights: (S, n), mixing weights; one ensemble of all members, weighed alike, by default.

    Returns:
        On the CPU.

    Raises:
        ValueError: unless either split or inputs are given, and for no inputs, a task that is neither classification
            nor regression, and weights that do not fit.
    """
    if (split is None) == (inputs is None):
        raise ValueError("give either the split to predict or inputs")
    group = members(task, source)
    x, y = task.data(split) if split is not None else (inputs, None)
    assert x is not None
    if not len(x):
        raise ValueError("there are no inputs to predict")
    rows = mixing(group.count) if weights is None else _checked(weights, group.count)
    if isinstance(task, ClassificationTask):
        return _classes(group, x, y, rows)
    if isinstance(task, RegressionTask):
        return _values(group, x, y, rows)
    raise ValueError(f"task {task.name} is neither classification nor regression; its predictive is not defined")


def noise(group: Members) -> Tensor:
    """Noise variance of each member of a regression, (n,): its mean squared error on train data."""
    inputs, targets = group.task.data("train")
    total = torch.zeros(group.count, dtype=torch.float64)
    for columns, values in group.stream(inputs):
        total += (values.cpu() - targets[columns].double()).square().mean(-1).sum(1)
    return (total / len(inputs)).clamp(min=SMALLEST_VARIANCE)


def _classes(group: Members, inputs: Tensor, targets: Tensor | None, rows: Tensor) -> ClassPredictive:
    probabilities, entropies, of_target = [], [], []
    for columns, log_p in group.stream(inputs):
        given, p = rows.to(log_p.device), log_p.exp()
        probabilities.append(torch.tensordot(given, p, 1).clamp(max=1).cpu())
        entropies.append((given @ torch.special.entr(p).sum(-1)).cpu())
        if targets is not None:
            index = targets[columns].to(log_p.device).expand(log_p.shape[:2])[..., None]
            of_target.append(log_mixture(given, log_p.gather(-1, index).squeeze(-1), group.task.memory).cpu())
    log_target = torch.cat(of_target, 1) if targets is not None else None
    return ClassPredictive(torch.cat(probabilities, 1), torch.cat(entropies, 1), log_target, targets)


def _values(group: Members, inputs: Tensor, targets: Tensor | None, rows: Tensor) -> ValuePredictive:
    variance = noise(group)
    means, epistemic, densities = [], [], []
    for columns, values in group.stream(inputs):
        given, v = rows.to(values.device), variance.to(values.device)[:, None]
        mean = torch.tensordot(given, values, 1)
        centre = values.mean(0)  # variances of differences from it lose no digits
        second = torch.tensordot(given, (values - centre).square(), 1)
        means.append(mean.cpu())
        epistemic.append((second - (mean - centre).square()).clamp(min=0).cpu())
        if targets is not None:
            each = log_normal(values - targets[columns].to(values), v[..., None]).sum(-1)
            densities.append((log_mixture(given, each, group.task.memory) / values.shape[-1]).cpu())
    log_density = torch.cat(densities, 1) if targets is not None else None
    return ValuePredictive(torch.cat(means, 1), torch.cat(epistemic, 1), rows @ variance, log_density, targets)


def log_normal(error: Tensor, variance: Tensor) -> Tensor:
    """Log density of N(0, variance) at an error, elementwise."""
    return -0.5 * (log(2 * pi) + variance.log() + error.square() / variance)


def log_mixture(weights: Tensor, log_p: Tensor, memory: int) -> Tensor:
    """Log of averaged densities, (S, N), from mixing weights (S, n) and log densities (n, N).

    A product of matrices does it, but where the members of an ensemble are hundreds of nats below other members.
    """
    top = log_p.amax(0).clamp(min=-LARGE, max=LARGE)
    total = weights @ (log_p - top).exp()
    result = total.log() + top
    lost = (total < SMALL).any(0).nonzero().squeeze(1)
    for places in torch.split(lost, max(1, memory // (16 * weights.numel()))):
        result[:, places] = (weights.log()[..., None] + log_p[:, places]).logsumexp(1)
    return result


def _checked(weights: Tensor, count: int) -> Tensor:
    rows = weights.detach().cpu().double()
    if rows.ndim != 2 or rows.shape[1] != count:
        raise ValueError(f"mixing weights of {count} members have shape (S, {count}), got {tuple(rows.shape)}")
    if not ((rows >= 0).all() & ((rows.sum(1) - 1).abs() < 1e-6).all()):
        raise ValueError("mixing weights must be at least 0 and add up to 1 in each row")
    return rows
