from __future__ import annotations

import pytest
import torch
from conjugate import LOSS_WEIGHT, PRIOR, Line, posterior

from wsflow.posteriors import Target


@pytest.fixture
def target() -> Target:
    return Target(Line(), PRIOR, LOSS_WEIGHT)


def test_it_is_the_log_density_of_the_closed_form_up_to_a_constant(target: Target) -> None:
    normal = posterior(target.task)
    exact = torch.distributions.MultivariateNormal(normal.mean, normal.covariance)
    theta = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = target(theta.float()).double() - exact.log_prob(theta)
    torch.testing.assert_close(difference, difference[:1].expand(5), atol=1e-3, rtol=0)


def test_mini_batches_of_an_epoch_average_to_the_whole(target: Target) -> None:
    theta, batches = torch.randn(2, 3), target.batches(2, 10, 0)
    parts = torch.stack([target.on_batch(theta, next(batches)) for _ in range(4)])
    torch.testing.assert_close(parts.mean(0), target(theta))
    assert (parts.std(0) > 0.1).all()


def test_chains_see_the_data_in_their_own_orders(target: Target) -> None:
    inputs, _ = next(target.batches(2, 10, 0))
    assert not torch.equal(inputs[0], inputs[1])
    torch.testing.assert_close(next(target.batches(2, 10, 0))[0], inputs)


@pytest.mark.parametrize("settings", [{"prior_std": 0.0}, {"loss_weight": -1.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Target(Line(), **settings)
