r"""How good a predictive is: scores of S ensembles at once, (S,) each.

For averaged probabilities p (N, C) and targets y, means over the N data points:

- negative log-likelihood :math:`-\log p_y`, and the Brier score :math:`\sum_c (p_c - [c = y])^2` of Brier (1950), from
  0 to 2: both proper;
- expected calibration error: :math:`\sum_k \frac{N_k}{N} |\mathrm{acc}_k - \mathrm{conf}_k|` over bins of equal width
  of the confidence :math:`\max_c p_c` (Naeini et al. 2015), and the reliability diagram that it sums up;
- area under the risk-coverage curve (Geifman and El-Yaniv 2017): keep the k data points that a measure of confidence
  ranks first; risk is the share of errors among them; the area is the mean over k.  Data points of equal confidence
  have their errors averaged, so that the order in which they come does not matter.

Regressions have the density of the mixture and the error of its mean.  What a predictive does not have is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.bayes.predictive import ClassPredictive, Predictive, ValuePredictive

BINS = 15
"""Bins of the calibration error and of reliability diagrams."""


class ScoreError(ValueError):
    """A score that a predictive does not have."""


def scores(predictive: Predictive) -> dict[str, Tensor]:
    """Every score that there is, (S,) each.

    Args:
        predictive: With targets.

    Returns:
        ``accuracy``, ``nll``, ``brier``, ``ece``, ``aurc``, ``entropy`` and ``mutual_information`` of classifiers;
        ``nll``, ``rmse`` and ``epistemic_std`` of regressions.
    """
    if isinstance(predictive, ValuePredictive):
        return {"nll": nll(predictive), "rmse": rmse(predictive), "epistemic_std": epistemic_std(predictive)}
    return {
        "accuracy": accuracy(predictive),
        "nll": nll(predictive),
        "brier": brier(predictive),
        "ece": ece(predictive),
        "aurc": aurc(predictive),
        "entropy": predictive.entropy.mean(1),
        "mutual_information": predictive.mutual_information.mean(1),
    }


def accuracy(predictive: Predictive) -> Tensor:
    """Share of data points whose most probable class is the target, (S,)."""
    found, targets = _classes(predictive, "accuracy")
    return (found.label == targets).double().mean(1)


def nll(predictive: Predictive) -> Tensor:
    """Negative log-likelihood of the mixture, in nats, (S,); per target number for regressions."""
    found = predictive.log_target if isinstance(predictive, ClassPredictive) else predictive.log_density
    if found is None:
        raise ScoreError("the likelihood needs targets; predict a split and not bare inputs")
    return -found.mean(1)


def brier(predictive: Predictive) -> Tensor:
    """Brier score, the sum over classes, from 0 to 2, (S,)."""
    found, targets = _classes(predictive, "the Brier score")
    p = found.probabilities
    index = targets.expand(p.shape[:2])[..., None]
    of_target = p.gather(-1, index).squeeze(-1)
    return (p.square().sum(-1) - 2 * of_target + 1).clamp(min=0).mean(1)


def ece(predictive: Predictive, bins: int = BINS) -> Tensor:
    """Expected calibration error of the most probable class, (S,).

    torchmetrics gives a confidence that single precision rounds to 1 a bin of its own, which the diagram has not.
    """
    _classes(predictive, "the calibration error")
    diagram = reliability(predictive, bins)
    gap = (diagram.accuracy - diagram.confidence).abs().where(diagram.count > 0, 0.0)
    return (gap * diagram.count).sum(1) / diagram.count.sum(1)


def rmse(predictive: Predictive) -> Tensor:
    """Root mean squared error of the averaged value, (S,)."""
    found, targets = _values(predictive, "the root mean squared error")
    return (found.mean - targets).square().mean((1, 2)).sqrt()


def epistemic_std(predictive: Predictive) -> Tensor:
    """Root of the mean variance of the members' values, (S,); 0 for an ensemble of one."""
    found, _ = _values(predictive, "the spread of values")
    return found.epistemic.mean((1, 2)).sqrt()


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows, of S ensembles; NaN where a bin is empty.

    Args:
        edges: (K + 1,), from 0 to 1.
        confidence: (S, K), mean confidence.
        accuracy: (S, K), share of right predictions.
        count: (S, K), data points.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability(predictive: Predictive, bins: int = BINS) -> Reliability:
    """Confidence and accuracy in bins of equal width of the confidence, closed below; the last one holds 1 too."""
    found, targets = _classes(predictive, "the reliability diagram")
    confidence, right = found.confidence, (found.label == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=bins - 1)
    none = confidence.new_zeros(len(confidence), bins)
    count = none.scatter_add(1, place, torch.ones_like(confidence))
    mean, share = (none.scatter_add(1, place, values) / count for values in (confidence, right))
    return Reliability(edges, mean, share, count)


def risk_coverage(predictive: Predictive, confidence: Tensor | None = None) -> Tensor:
    """Share of errors among the k most confident predictions, for k = 1, ..., N: (S, N).

    Args:
        predictive: With targets.
        confidence: (S, N), higher where a prediction is to be kept; the probability of the most probable class by
            default.
    """
    found, targets = _classes(predictive, "the risk-coverage curve")
    rank = found.confidence if confidence is None else confidence
    ordered, order = rank.sort(dim=1, descending=True)
    wrong = (found.label != targets).double().gather(1, order)
    kept = torch.arange(1, wrong.shape[1] + 1, dtype=torch.float64)
    return _averaged_over_ties(wrong, ordered).cumsum(1) / kept


def aurc(predictive: Predictive, confidence: Tensor | None = None) -> Tensor:
    """Area under the risk-coverage curve, (S,); lower is better, and the error rate is what no ranking gives."""
    return risk_coverage(predictive, confidence).mean(1)


def _averaged_over_ties(values: Tensor, ordered: Tensor) -> Tensor:
    """Values (S, N), each replaced by the mean of those with equal entries in ``ordered`` (S, N), which is sorted."""
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = new.long().cumsum(1) - 1
    sums, count = (torch.zeros_like(values).scatter_add(1, group, part) for part in (values, torch.ones_like(values)))
    return (sums / count.clamp(min=1)).gather(1, group)


def _classes(predictive: Predictive, what: str) -> tuple[ClassPredictive, Tensor]:
    if not isinstance(predictive, ClassPredictive):
        raise ScoreError(f"{what} needs class probabilities; a regression predicts values: use nll or rmse")
    if predictive.targets is None:
        raise ScoreError(f"{what} needs targets; predict a split and not bare inputs")
    return predictive, predictive.targets


def _values(predictive: Predictive, what: str) -> tuple[ValuePredictive, Tensor]:
    if not isinstance(predictive, ValuePredictive):
        raise ScoreError(f"{what} needs predicted values; a classifier predicts probabilities: use nll or brier")
    if predictive.targets is None:
        raise ScoreError(f"{what} needs targets; predict a split and not bare inputs")
    return predictive, predictive.targets
