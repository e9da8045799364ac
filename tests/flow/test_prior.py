"""Priors: on the geometry, of the right law, split-invariant, with a density or a reason."""

from __future__ import annotations

import pytest
import torch

from wsflow.flow import GaussianPrior, NetworkPrior, NoDensityError, Prior, StartsPrior, sample_prior
from wsflow.flow.prior import Widened
from wsflow.geometry import Euclidean, Geometry, Normalized
from wsflow.weightspace import WeightSpace

PRIORS = {
    "gaussian": lambda space: GaussianPrior(0.5),
    "network": lambda space: NetworkPrior(),
    "starts": lambda space: StartsPrior(torch.randn(9, space.dim)),
    "widened": lambda space: Widened(NetworkPrior(), 0.1),
}


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request: pytest.FixtureRequest, space: WeightSpace) -> Prior:
    return request.param(space)


def test_samples_lie_on_the_geometry(prior: Prior, geometry: Geometry, generator: torch.Generator):
    x = prior.sample(6, geometry, generator)
    assert x.shape == (6, geometry.dim)
    if not (isinstance(prior, Widened) and isinstance(geometry, Normalized)):  # whose tangents are free
        assert torch.allclose(geometry.project(x), x, atol=1e-6)


def test_samples_follow_the_generator(prior: Prior, geometry: Geometry):
    a, b, c = (prior.sample(3, geometry, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_splitting_the_indices_changes_nothing(prior: Prior, geometry: Geometry):
    whole = sample_prior(prior, geometry, 3, range(6))
    parts = [sample_prior(prior, geometry, 3, part) for part in ([4, 5], [], [0, 1, 2], [3])]
    assert torch.allclose(torch.cat(parts)[[2, 3, 4, 5, 0, 1]], whole, atol=1e-6)
    assert not torch.equal(sample_prior(prior, geometry, 4, range(6)), whole)


def test_gaussian_has_its_standard_deviation(space: WeightSpace, generator: torch.Generator):
    x = GaussianPrior(0.3).sample(2000, Euclidean(space), generator)
    assert x.std().item() == pytest.approx(0.3, rel=0.02)
    assert x.mean().abs() < 0.005


def test_gaussian_density(space: WeightSpace, generator: torch.Generator):
    geometry = Euclidean(space)
    x = GaussianPrior(0.3).sample(5, geometry, generator).double()
    expected = torch.distributions.Normal(0.0, torch.tensor(0.3, dtype=torch.float64)).log_prob(x).sum(1)
    assert torch.allclose(GaussianPrior(0.3).log_prob(x, geometry), expected, rtol=1e-10)


def test_density_is_refused_with_a_reason(prior: Prior, geometry: Geometry, generator: torch.Generator):
    if isinstance(prior, GaussianPrior) and isinstance(geometry, Euclidean):
        pytest.skip("this one has a density")
    with pytest.raises(NoDensityError, match="use"):
        prior.log_prob(prior.sample(2, geometry, generator), geometry)


def test_a_widened_gaussian_is_a_wider_one(space: WeightSpace, generator: torch.Generator):
    geometry, wide = Euclidean(space), Widened(GaussianPrior(0.3), 0.4)
    x = wide.sample(4000, geometry, generator)
    assert x.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(wide.log_prob(x, geometry), GaussianPrior(0.5).log_prob(x, geometry))
    assert sample_prior(wide, geometry, 3, range(900)).std().item() == pytest.approx(0.5, rel=0.05)


def test_network_prior_draws_as_the_layers_do(space: WeightSpace, generator: torch.Generator):
    theta = NetworkPrior().sample(2000, Euclidean(space), generator)
    weight = space.unflatten(theta)[space.blocks[0].name]  # Linear draws uniformly within 1 / sqrt(fan_in)
    assert weight.abs().max() <= 5**-0.5
    assert weight.std().item() == pytest.approx((5 * 3) ** -0.5, rel=0.05)


def test_starts_come_without_replacement(space: WeightSpace, generator: torch.Generator):
    prior, geometry = StartsPrior().attach(torch.randn(9, space.dim)), Euclidean(space)
    for x in (prior.sample(9, geometry, generator), sample_prior(prior, geometry, 0, range(9))):
        assert len(x.unique(dim=0)) == 9
        assert len(torch.cat([x, prior.starts]).unique(dim=0)) == 9
    for x in (prior.sample(18, geometry, generator), sample_prior(prior, geometry, 0, range(18))):
        assert (x.unique(dim=0, return_counts=True)[1] == 2).all()


def test_starts_must_be_attached(space: WeightSpace, generator: torch.Generator):
    with pytest.raises(ValueError, match="has no starts"):
        StartsPrior().sample(1, Euclidean(space), generator)
    with pytest.raises(ValueError, match="has no starts"):
        sample_prior(StartsPrior(), Euclidean(space), 0, [0])
    with pytest.raises(ValueError, match=r"shape \(R, D\)"):
        StartsPrior().attach(torch.zeros(0, 3))


def test_starts_of_another_space_are_refused(space: WeightSpace, generator: torch.Generator):
    with pytest.raises(ValueError, match="D ="):
        StartsPrior(torch.zeros(2, 3)).sample(1, Euclidean(space), generator)


def test_std_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        GaussianPrior(0)
