"""A linear regression, whose posterior is known in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from conftest import describe
from torch import Tensor

from wsflow.tasks import RegressionTask

NOISE, PRIOR = 1.0, 0.5
"""Standard deviations of the noise and of the prior of each weight."""

LOSS_WEIGHT = 1 / (2 * NOISE**2)


class Line(RegressionTask):
    """Forty points of a noisy linear function of two correlated inputs: weights (w1, w2, bias)."""

    network = describe([2, 1], output_activation="identity")

    def load(self):
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(40, 2, generator=generator) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
        targets = inputs @ torch.tensor([[0.7], [-0.4]]) + 0.3 + NOISE * torch.randn(40, 1, generator=generator)
        return dict.fromkeys(("train", "val", "test"), (inputs, targets))


class Normal(NamedTuple):
    """Mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor


def design(task: Line) -> Tensor:
    inputs = task.data("train")[0].double()
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)


def posterior(task: Line) -> Normal:
    x, y = design(task), task.data("train")[1].double()
    precision = x.T @ x / NOISE**2 + torch.eye(3, dtype=torch.float64) / PRIOR**2
    return Normal(torch.linalg.solve(precision, x.T @ y / NOISE**2)[:, 0], torch.linalg.inv(precision))


def check_draws(theta: Tensor, wanted: Normal, tolerance: float) -> None:
    """Mean within the tolerance in standard deviations, covariance within it in units of these."""
    scale = wanted.covariance.diagonal().sqrt()
    error = (theta.double().mean(0) - wanted.mean) / scale
    torch.testing.assert_close(error, torch.zeros_like(error), atol=tolerance, rtol=0)
    correlated = [covariance / (scale * scale[:, None]) for covariance in (theta.double().T.cov(), wanted.covariance)]
    torch.testing.assert_close(*correlated, atol=tolerance, rtol=0)
