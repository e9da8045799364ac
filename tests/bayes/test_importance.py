"""Importance weights on models whose posterior is known."""

from __future__ import annotations

import math

import pytest
import torch

from wsflow.bayes import (
    NoisyWeightsWarning,
    WeightsCollapsedWarning,
    gaussian_log_prior,
    importance_weights,
    log_likelihood,
    mixing,
    predictive,
)
from wsflow.tasks import BreastCancer, Diabetes


def normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0], ids=["prior", "tempered", "Bayes"])
def test_a_gaussian_posterior_is_recovered(power):
    """Prior N(0, 1), N = 4 points of N(theta, 1) with mean 0.8: the posterior has precision 1 + 4 T."""
    generator = torch.Generator().manual_seed(0)
    theta = 0.4 + 1.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    data = torch.tensor([0.2, 0.6, 1.0, 1.4], dtype=torch.float64)
    likelihood = normal(data, theta[:, None], 1.0).sum(1) - 123.0  # constants do not matter
    found = importance_weights(likelihood, normal(theta, 0.0, 1.0), normal(theta, 0.4, 1.5), power)
    weights = found.log_weights.exp()
    precision = 1 + 4 * power
    mean = float(weights @ theta)
    assert mean == pytest.approx(4 * power * 0.8 / precision, abs=0.01)
    assert float(weights @ (theta - mean) ** 2) == pytest.approx(1 / precision, rel=0.02)
    assert float(weights.sum()) == pytest.approx(1)
    # E_q[w]^2 / E_q[w^2] of two normals, as an integral on a grid
    grid = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    q, p = normal(grid, 0.4, 1.5).exp(), normal(grid, 4 * power * 0.8 / precision, precision**-0.5).exp()
    share = p.sum() ** 2 / (q.sum() * (p**2 / q).sum())
    assert found.effective / len(theta) == pytest.approx(float(share), rel=0.02)


def test_equal_weights_have_full_effective_size():
    found = importance_weights(torch.full((7,), -1e5), torch.zeros(7), torch.zeros(7))
    assert found.effective == pytest.approx(7)
    assert str(found) == "effective sample size 7 of 7 networks"


def test_effective_size_by_hand():
    found = importance_weights(torch.tensor([0.0, 0.0, -math.inf]), torch.zeros(3), torch.zeros(3))
    assert found.effective == pytest.approx(2)
    found = importance_weights(torch.tensor([0.6, 0.4]).log(), torch.zeros(2), torch.zeros(2))
    assert found.effective == pytest.approx(1 / (0.36 + 0.16))


def test_a_collapse_is_said():
    log_weights = torch.zeros(30)
    log_weights[3] = 50.0
    with pytest.warns(WeightsCollapsedWarning, match="effective sample size is 1 of 30"):
        found = importance_weights(log_weights, torch.zeros(30), torch.zeros(30))
    assert found.effective == pytest.approx(1)


def test_rough_densities_are_said():
    """An error of log q is one of the weights: its size is told, and warned of above half a nat."""
    parts, errors = [torch.zeros(4)] * 3, torch.tensor([0.0, 0.3, 0.4, 0.5])
    found = importance_weights(*parts, standard_error=errors)
    assert found.standard_error == pytest.approx(0.125**0.5)
    assert str(found).endswith(", with a standard error of 0.354 nats in log q")
    with pytest.warns(NoisyWeightsWarning, match="standard error of 0.707 nats"):
        importance_weights(*parts, standard_error=2 * errors)
    importance_weights(*(part[:1] for part in parts), standard_error=torch.ones(1))  # one weight is 1, whatever q


@pytest.mark.parametrize(
    ("parts", "power", "message"),
    [
        ((torch.zeros(3), torch.zeros(2), torch.zeros(3)), 1.0, "one number per network"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3)), -1.0, "at least 0"),
        ((torch.full((3,), torch.nan), torch.zeros(3), torch.zeros(3)), 1.0, "not defined"),
        ((torch.full((3,), -torch.inf), torch.zeros(3), torch.zeros(3)), 1.0, "not defined"),
    ],
    ids=["shapes", "power", "NaN", "no weight"],
)
def test_what_gives_no_weights_is_refused(parts, power, message):
    with pytest.raises(ValueError, match=message):
        importance_weights(*parts, power)


def test_likelihoods_of_train_data():
    task = BreastCancer(widths=[30, 4, 2])
    theta = torch.randn(5, task.space.dim)
    wanted = -len(task.data("train")[0]) * task.evaluate(theta, "train")["loss"].double()
    torch.testing.assert_close(log_likelihood(task, theta), wanted, rtol=1e-5, atol=1e-3)
    regression = Diabetes()
    theta = torch.randn(5, regression.space.dim) / 3
    wanted = -len(regression.data("train")[0]) * regression.evaluate(theta, "train")["nll"].double()
    torch.testing.assert_close(log_likelihood(regression, theta), wanted, rtol=1e-5, atol=1e-3)


def test_the_prior_of_a_gaussian_initialiser():
    theta = torch.randn(4, 9, dtype=torch.float64)
    law = torch.distributions.Normal(0.0, 0.5)
    wanted = law.log_prob(theta).sum(1).double()
    found = gaussian_log_prior(theta, 0.5)
    torch.testing.assert_close(found - found[0], wanted - wanted[0])
    with pytest.raises(ValueError, match="std must be positive"):
        gaussian_log_prior(theta, 0.0)


def test_a_weighted_predictive_is_that_of_the_networks_with_weight():
    task = BreastCancer(widths=[30, 4, 2])
    theta = torch.randn(4, task.space.dim)
    found = importance_weights(torch.tensor([0.0, -math.inf, 0.0, -math.inf]), torch.zeros(4), torch.zeros(4))
    weighted = predictive(task, theta, "val", weights=mixing(4, log_weights=found.log_weights))
    torch.testing.assert_close(weighted.probabilities, predictive(task, theta[::2], "val").probabilities)
