r"""Regression: squared error and Gaussian likelihood.

The loss of a data point is its squared error, averaged over outputs.  The likelihood of network b is
:math:`N(y; f_{\theta_b}(x), s_b^2)`, where :math:`s_b^2` is the network's mean squared error on the train split (the
maximum-likelihood noise).  The averaged prediction has the mixture :math:`\frac{1}{B} \sum_b N(y; f_{\theta_b}(x),
s_b^2)` as its density and :math:`\frac{1}{B} \sum_b f_{\theta_b}(x)` as its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log, pi

import torch
from torch import Tensor

from wsflow.tasks.base import BaseTask

SMALLEST_VARIANCE = 1e-12


class RegressionTask(BaseTask):
    """A task whose targets are numbers (N, C); give ``network`` (output activation ``identity``) and ``load``."""

    def predictions(self, logits: Tensor) -> Tensor:
        """The values themselves, (B, N, C)."""
        return logits

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error of every data point, averaged over outputs, (B, N).

        Raises:
            ValueError: for targets without their axis C, which would be compared point with point.
        """
        if targets.shape[-2:] != logits.shape[-2:]:
            raise ValueError(
                f"task {self.name}: targets of a regression are (N, C) as the network's outputs are, here "
                f"{tuple(logits.shape[-2:])}, not {tuple(targets.shape)}; 'load' gives one column by targets[:, None]"
            )
        return (logits - targets).square().mean(-1)

    def scores(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``mse``: the squared error, (B, N)."""
        return {"mse": self.losses(logits, targets)}

    def derived(self, theta: Tensor, split: str, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``nll``: negative log-likelihood per target number, (B,)."""
        variance = self._noise(theta) if split != "train" else means["mse"].clamp(min=SMALLEST_VARIANCE)
        return {"nll": 0.5 * (log(2 * pi) + variance.log() + means["mse"] / variance)}

    @torch.no_grad()
    def ensemble(self, theta: Tensor, split: str) -> dict[str, float]:
        """``nll`` of the mixture of the B networks (B, D), per target number, and ``mse`` of their mean."""
        if not len(theta):
            raise ValueError("an ensemble needs at least one network")
        targets = self.data(split)[1].to(theta)
        variance = self._noise(theta).double()[:, None, None]
        log_density = targets.new_full((len(targets),), -torch.inf, dtype=torch.float64)
        mean = torch.zeros_like(targets, dtype=torch.float64)
        for rows, columns, values, wanted in self._stream(theta, split):
            error = values.double() - wanted
            log_normal = -0.5 * (log(2 * pi) + variance[rows].log() + error.square() / variance[rows])
            log_density[columns] = torch.logaddexp(log_density[columns], log_normal.sum(-1).logsumexp(0))
            mean[columns] += values.double().sum(0) / len(theta)
        nll = (log(len(theta)) - float(log_density.mean())) / targets.shape[-1]
        return {"nll": nll, "mse": float((mean - targets).square().mean())}

    def _noise(self, theta: Tensor) -> Tensor:
        return self._means(theta, "train")["mse"].clamp(min=SMALLEST_VARIANCE)
