r"""One temperature for an averaged prediction, fitted on validation data.

Averages of networks that are each calibrated are too cautious: averaging spreads probabilities more than it loses
accuracy (Rahaman and Thiery 2021).  A geometry that fixes the scale of the last layer takes confidence away altogether.
Both are mended by one number for each ensemble, as Guo et al. (2017) do for single networks: the average is replaced by

.. math:: p_\beta(y | x) \propto p(y | x)^\beta,

with the inverse temperature :math:`\beta` that has the least negative log-likelihood on validation data.  That is
convex in :math:`\beta`; its derivative, :math:`E_n[E_{p_\beta} \log p - \log p_{y_n}]`, grows with it and is bisected.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wsflow.bayes.predictive import ClassPredictive, Predictive
from wsflow.bayes.scores import ScoreError

RANGE = (-4.0, 4.0)
"""Logarithms of the inverse temperatures considered."""

HALVINGS = 24

TINY = 1e-300


def inverse_temperature(predictive: Predictive) -> Tensor:
    """The inverse temperature of least negative log-likelihood, (S,).

    Args:
        predictive: Of validation data, with targets.

    Returns:
        Between exp(-4) and exp(4); the upper end where every prediction is right.

    Raises:
        ScoreError: for a regression, and without targets.
    """
    if not isinstance(predictive, ClassPredictive) or predictive.targets is None:
        raise ScoreError("a temperature is fitted to class probabilities and targets; a regression has none")
    log_p = predictive.probabilities.clamp(min=TINY).log()
    of_target = log_p.gather(-1, predictive.targets.expand(log_p.shape[:2])[..., None]).squeeze(-1).mean(1)
    low, high = (torch.full_like(of_target, end) for end in RANGE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = (middle.exp()[:, None, None] * log_p).softmax(-1)
        above = (p * log_p).sum(-1).mean(1) > of_target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return ((low + high) / 2).exp()


def tempered(predictive: Predictive, beta: Tensor) -> ClassPredictive:
    """Predictions with another temperature; what members disagree on, the mutual information, stays.

    Args:
        predictive: Of any data.
        beta: (S,), inverse temperatures.

    Raises:
        ScoreError: for a regression.
    """
    if not isinstance(predictive, ClassPredictive):
        raise ScoreError("a temperature needs class probabilities; a regression predicts values")
    log_p = (beta[:, None, None] * predictive.probabilities.clamp(min=TINY).log()).log_softmax(-1)
    p, targets, log_target = log_p.exp(), predictive.targets, None
    if targets is not None:
        log_target = log_p.gather(-1, targets.expand(p.shape[:2])[..., None]).squeeze(-1)
    own = torch.special.entr(p).sum(-1) - predictive.mutual_information
    return replace(predictive, probabilities=p, member_entropy=own, log_target=log_target)
