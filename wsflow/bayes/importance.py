r"""Weights that turn networks from a law q into networks from the posterior.

For :math:`\theta_b \sim q`, the self-normalised importance weights

.. math:: w_b \propto p(D_{train} | \theta_b)^T\, p_0(\theta_b) / q(\theta_b)

make :math:`\sum_b w_b\, p(y | x, \theta_b)` an estimate of the predictive (thesis eq. 2.1) of the posterior that is
tempered by T: 1 is Bayes's, below 1 trusts the data less.  All three densities are over the same volume of weight
space; constants do not matter.

The effective sample size (Kong 1992) :math:`1 / \sum_b w_b^2`, of normalised weights, is n where all weights are equal
and 1 where one network carries all of it; then the estimate is one network's prediction, whatever n.  In many
dimensions that is the rule: log weights vary by tens or hundreds of nats unless q is very close.

An error of log q is one of log w: where q is itself estimated, with a standard error of s nats for each network,
weights are off by factors of about :math:`e^{\pm s}`, and those networks count most whose density was estimated too
low.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.bayes.members import WeightMembers
from wsflow.bayes.predictive import log_normal, noise
from wsflow.tasks import BaseTask, ClassificationTask, RegressionTask

COLLAPSED = 0.1
"""Effective sample size, as a share of n, below which importance weights have collapsed."""

NOISY = 0.5
"""Standard error of log densities, in nats, above which importance weights are noise in good part."""


class WeightsCollapsedWarning(UserWarning):
    """Few networks carry nearly all of the weight."""


class NoisyWeightsWarning(UserWarning):
    """Importance weights come from densities that are known too roughly."""


@dataclass(frozen=True)
class ImportanceWeights:
    """Normalised importance weights of n networks.

    Args:
        log_weights: (n,), float64; their exponentials add up to 1.
        effective: The effective sample size, from 1 to n.
        standard_error: Of the log densities that the weights divide by, in nats (root mean square over networks).
    """

    log_weights: Tensor
    effective: float
    standard_error: float = 0.0

    def __str__(self) -> str:
        rough = f", with a standard error of {self.standard_error:.3g} nats in log q" if self.standard_error else ""
        return f"effective sample size {self.effective:.3g} of {len(self.log_weights)} networks{rough}"


def importance_weights(
    log_likelihood: Tensor,
    log_prior: Tensor,
    log_density: Tensor,
    power: float = 1.0,
    standard_error: Tensor | None = None,
) -> ImportanceWeights:
    """Self-normalised weights of networks drawn from q, for the tempered posterior.

    Warns with :class:`WeightsCollapsedWarning` where the effective sample size of several networks is below a tenth of
    n, or below 1.5, and with :class:`NoisyWeightsWarning` where densities have a standard error above half a nat.

    Args:
        log_likelihood: (n,), of the train data, as :func:`log_likelihood` gives it.
        log_prior: (n,), log p0 of the networks.
        log_density: (n,), log q of the networks, such as a flow's ``log_prob``.
        power: T, the power of the likelihood; at least 0.
        standard_error: (n,), of ``log_density`` where that is an estimate.

    Raises:
        ValueError: for other shapes, a negative power, and densities that are NaN or that leave no network any weight.
    """
    parts = [part.detach().cpu().double() for part in (log_likelihood, log_prior, log_density)]
    if standard_error is not None:
        parts.append(standard_error.detach().cpu().double())
    if any(part.shape != parts[0].shape or part.ndim != 1 or not len(part) for part in parts):
        shapes = [tuple(part.shape) for part in parts]
        raise ValueError(
            f"likelihood, prior, density and its error must have one number per network each, got {shapes}"
        )
    if not power >= 0:
        raise ValueError(f"the power of the likelihood must be at least 0, got {power}")
    raw = power * parts[0] + parts[1] - parts[2]
    if raw.isnan().any() or not raw.amax().isfinite():
        raise ValueError("importance weights are not defined: a density is NaN, or no network has a finite weight")
    error = 0.0 if standard_error is None else float(standard_error.double().square().mean().sqrt())
    if len(raw) > 1 and not error <= NOISY:
        warnings.warn(
            f"log densities have a standard error of {error:.3g} nats, so that importance weights are off by factors "
            "of about its exponential and depend on the seed: take ExactTrace, or more probes (four times as many "
            "halve it)",
            NoisyWeightsWarning,
            stacklevel=2,
        )
    found = raw.log_softmax(0)
    effective = float(torch.exp(-(2 * found).logsumexp(0)))
    if len(raw) > 1 and effective < max(COLLAPSED * len(raw), 1.5):
        warnings.warn(
            f"importance weights have collapsed: the effective sample size is {effective:.3g} of {len(raw)} networks, "
            "so that a few carry the prediction; take more networks, a smaller power of the likelihood, or no weights",
            WeightsCollapsedWarning,
            stacklevel=2,
        )
    return ImportanceWeights(found, effective, error)


@torch.no_grad()
def log_likelihood(task: BaseTask, theta: Tensor, split: str = "train") -> Tensor:
    """Log-likelihood of all data points of a split under each network, (n,) in float64.

    Args:
        task: Classification, or regression, whose noise variance is each network's own on train data.
        theta: (n, D).
        split: Whose data; the posterior's is ``train``.

    Raises:
        ValueError: for a task that is neither.
    """
    group = WeightMembers(task, theta)
    inputs, targets = task.data(split)
    variance = noise(group) if isinstance(task, RegressionTask) else None
    total = torch.zeros(group.count, dtype=torch.float64)
    for columns, answers in group.stream(inputs):
        wanted = targets[columns].to(answers.device)
        if variance is not None:
            each = log_normal(answers - wanted, variance.to(answers)[:, None, None]).sum(-1)
        elif isinstance(task, ClassificationTask):
            each = answers.gather(-1, wanted.expand(answers.shape[:2])[..., None]).squeeze(-1)
        else:
            raise ValueError(f"task {task.name} is neither classification nor regression; it states no likelihood")
        total += each.sum(1).cpu()
    return total


def gaussian_log_prior(theta: Tensor, std: float) -> Tensor:
    """Log density (n,) of weights (n, D) that are independent N(0, std^2), up to a constant; float64.

    Raises:
        ValueError: unless std is positive.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    return -(theta.detach().double() / std).square().sum(1) / 2
