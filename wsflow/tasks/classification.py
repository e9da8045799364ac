r"""Classification: softmax of the logits, cross-entropy and accuracy.

The averaged prediction is :math:`\bar p(y | x) = \frac{1}{B} \sum_b \mathrm{softmax}(f_{\theta_b}(x))_y`; its negative
log-likelihood is computed from log-probabilities, so that confident networks do not underflow.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from wsflow.tasks.base import BaseTask


class ClassificationTask(BaseTask):
    """A task whose targets are class indices; give ``network`` (output activation ``softmax``) and ``load``."""

    def predictions(self, logits: Tensor) -> Tensor:
        """Class probabilities, (B, N, C)."""
        return logits.softmax(-1)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every data point, (B, N); targets are class indices (N,) or (B, N)."""
        return F.cross_entropy(logits.mT, targets.expand(logits.shape[:2]), reduction="none")

    def scores(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``accuracy``: whether the most probable class is the target, (B, N)."""
        return {"accuracy": (logits.argmax(-1) == targets).to(logits.dtype)}

    @torch.no_grad()
    def ensemble(self, theta: Tensor, split: str) -> dict[str, float]:
        """``nll`` and ``accuracy`` of the class probabilities averaged over the B networks (B, D)."""
        labels = self.data(split)[1].to(theta.device)
        log_mean = theta.new_full((len(labels),), -torch.inf, dtype=torch.float64)
        mean: Tensor | None = None
        for _, columns, logits, targets in self._stream(theta, split):
            log_p = logits.double().log_softmax(-1)
            of_target = log_p.gather(-1, targets.expand(logits.shape[:2])[..., None]).squeeze(-1).logsumexp(0)
            log_mean[columns] = torch.logaddexp(log_mean[columns], of_target)
            if mean is None:
                mean = log_p.new_zeros(len(labels), logits.shape[-1])
            mean[columns] += log_p.exp().sum(0)
        if mean is None:
            raise ValueError("an ensemble needs at least one network")
        accuracy = (mean.argmax(-1) == labels).double().mean()
        return {"nll": log(len(theta)) - float(log_mean.mean()), "accuracy": float(accuracy)}
