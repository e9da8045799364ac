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
    """Scores of B networks one by one.

    Args:
        scores: Name of the score to its value for each network, (B,).
    """

    scores: dict[str, Tensor]

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation over networks, such as ``accuracy`` and ``accuracy.std``."""
        values = {}
        for name, score in self.scores.items():
            values[name] = float(score.double().mean())
            values[f"{name}.std"] = float(score.double().std(correction=min(1, len(score) - 1)))
        return values


def quality(task: BaseTask, theta: Tensor, split: str) -> Quality:
    """Scores of networks (B, D) on the data of a split."""
    with torch.no_grad():
        return Quality(task.evaluate(theta, split))


def ensemble(task: BaseTask, theta: Tensor, split: str, size: int) -> dict[str, float]:
    """Scores of the averaged prediction of the first networks, ``ensemble_<score>``, and their number.

    Args:
        task: The base task.
        theta: (B, D).
        split: Whose data.
        size: At most so many networks are averaged.  An ensemble is better the larger it is, whatever its members, so
            that only ensembles of one size can be compared.
    """
    with torch.no_grad():
        scores = task.ensemble(theta[:size], split)
    return {f"ensemble_{name}": value for name, value in scores.items()} | {"ensemble_size": float(len(theta[:size]))}


def best_single(task: BaseTask, theta: Tensor, split: str) -> dict[str, float]:
    """Scores of the one network of B, (B, D), whose loss on validation data is least."""
    with torch.no_grad():
        place = int(task.evaluate(theta, "val")["loss"].argmin())
        return {name: float(value) for name, value in task.evaluate(theta[place : place + 1], split).items()}
