"""How good networks are, one by one and averaged.

The ensemble is the average of the networks' predictions (softmax outputs, or values), which for generated networks is
Bayesian model averaging; its negative log-likelihood is a proper score and sees both calibration and diversity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.tasks import BaseTask


@dataclass(frozen=True)
class Quality:
    """Scores of B networks.

    Args:
        scores: Name of the score to its value for each network, (B,).
        ensemble: Scores of the averaged prediction.
    """

    scores: dict[str, Tensor]
    ensemble: dict[str, float]

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation over networks (``accuracy``, ``accuracy.std``), and ``ensemble_<score>``."""
        values = {f"ensemble_{name}": value for name, value in self.ensemble.items()}
        for name, score in self.scores.items():
            values[name] = float(score.double().mean())
            values[f"{name}.std"] = float(score.double().std(correction=min(1, len(score) - 1)))
        return values


def quality(task: BaseTask, theta: Tensor, split: str) -> Quality:
    """Scores of networks (B, D) on the data of a split."""
    with torch.no_grad():
        return Quality(task.evaluate(theta, split), task.ensemble(theta, split))
