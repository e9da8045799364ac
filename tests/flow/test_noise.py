"""Noise in sampling: added noise changes the law, churn keeps it, and is refused where it would not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.fields import GaussianField
from wsflow.flow import (
    RK4,
    AddedNoise,
    Churn,
    ConstantNoisePath,
    Coupling,
    DormandPrince,
    GaussianPrior,
    GeodesicPath,
    Heun,
    IndependentCoupling,
    LatentNormal,
    NetworkPrior,
    Noise,
    Prior,
    ProbabilityPath,
    Sampler,
    Solver,
    TrajectoryCoupling,
    sample_generators,
    sample_prior,
)
from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized, PrincipalComponents
from wsflow.weightspace import WeightSpace, mlp

N = 200
LAW = {"std0": 0.8, "mean1": 2.0, "std1": 0.3}


@pytest.fixture
def flat() -> Euclidean:
    """Forty coordinates, so that few samples are many numbers."""
    return Euclidean(WeightSpace.from_module(mlp([40, 1], bias=False), output_activation="identity"))


def sampled(flat: Euclidean, noise: Noise | float, solver: Solver, steps: int = 30, n: int = N) -> Tensor:
    field = GaussianField(flat.space, **LAW)
    x0 = sample_prior(GaussianPrior(0.8), flat, 0, range(n)).double()
    return Sampler(solver, steps, noise)(field, flat, x0, sample_generators(0, range(n)))


def spread(x: Tensor) -> float:
    return float((x - 2).square().mean().sqrt())


@pytest.mark.parametrize("solver", [Heun(), DormandPrince(1e-4, 1e-4)], ids=["heun", "adaptive"])
def test_churn_keeps_the_law_and_noise_does_not(solver: Solver, flat: Euclidean):
    """The same noise without going back in time is far too much."""
    steps = 30 if isinstance(solver, Heun) else 10
    x = sampled(flat, Churn(0.4, std=0.8), solver, steps)
    error = 0.3 / (2 * x.numel()) ** 0.5
    assert abs(spread(x) - 0.3) < 4 * error
    assert abs(float(x.mean()) - 2) < 4 * 0.3 / x.numel() ** 0.5
    uncorrected = sampled(flat, _Uncorrected(0.4, std=0.8), solver, steps)
    assert spread(uncorrected) > 0.3 + 20 * error
    assert spread(sampled(flat, 0.1, solver, steps)) > 0.3 + 4 * error


class _Uncorrected(Churn):
    """What this suite must catch: the noise without the way back."""

    def _perturb(self, geometry, x, t, draw):
        back, _ = super()._perturb(geometry, x, t, draw)
        return (back if t == 0 else x + back - t / (t + (1 + self.gamma) * (1 - t)) / t * x), t


def test_churn_stirs(flat: Euclidean):
    """The end does not follow from the start: churn is no deterministic flow in disguise."""
    plain, stirred = (sampled(flat, noise, RK4()) for noise in (0.0, Churn(0.4, std=0.8)))
    correlation = torch.corrcoef(torch.stack([plain.flatten(), stirred.flatten()]))[0, 1]
    assert correlation < 0.8


def test_churn_keeps_the_law_in_the_middle_too(flat: Euclidean):
    field, seen = GaussianField(flat.space, **LAW), {}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen[float(t[0])] = float(x.std())
        return field(x, t)

    x0 = sample_prior(GaussianPrior(0.8), flat, 0, range(N)).double()
    Sampler(Heun(), 20, Churn(0.3, std=0.8))(velocity, flat, x0, sample_generators(0, range(N)))
    for t, std in seen.items():
        assert std == pytest.approx(((1 - t) ** 2 * 0.64 + t**2 * 0.09) ** 0.5, rel=0.06)


@pytest.mark.parametrize("noise", [AddedNoise(0.2, 0.25, 0.6), Churn(0.2, 0.25, 0.6, std=1.0)], ids=["added", "churn"])
def test_noise_on_a_part_of_the_trajectory(noise: Noise, flat: Euclidean):
    changed: list[float] = []
    x = torch.ones(3, 40)
    for t in (0.0, 0.25, 0.5, 0.6, 0.9):
        moved, time = noise(flat, x, t, lambda: torch.ones(3, 40))
        assert time <= t
        if not torch.equal(moved, x):
            changed.append(t)
    assert changed == [0.25, 0.5]


def test_a_number_is_added_noise(flat: Euclidean):
    assert torch.equal(sampled(flat, 0.2, Heun(), 5, 4), sampled(flat, AddedNoise(0.2), Heun(), 5, 4))
    assert Sampler(noise=0.0).perturbation is None


def test_added_noise_is_tangent(sphere: Geometric, generator: torch.Generator):
    x = sphere.encode(torch.randn(4, 5, generator=generator))
    moved, t = AddedNoise(0.3)(sphere, x, 0.5, lambda: torch.randn(4, 5, generator=generator))
    assert t == 0.5
    assert torch.allclose(sphere.project(moved), moved)
    assert not torch.allclose(moved, x, atol=0.1)


@pytest.mark.parametrize(
    ("prior", "path", "std"),
    [(GaussianPrior(0.5), GeodesicPath(), 0.5), (GaussianPrior(0.3), GeodesicPath(0.4), 0.5),
     (LatentNormal(0.7), ConstantNoisePath(0.0), 0.7)],
    ids=["gaussian", "noisy path", "latent"],
)  # fmt: skip
def test_churn_takes_its_size_from_the_flow(prior: Prior, path: ProbabilityPath, std: float, flat: Euclidean):
    sampler = Sampler(noise=Churn()).for_flow(prior, IndependentCoupling(), path, flat)
    assert sampler.perturbation.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("kind", "prior", "coupling", "path"),
    [
        (Euclidean, GaussianPrior(), TrajectoryCoupling(), GeodesicPath()),
        (Euclidean, NetworkPrior(), IndependentCoupling(), GeodesicPath()),
        (Euclidean, GaussianPrior(), IndependentCoupling(), ConstantNoisePath()),
        (Geometric, GaussianPrior(), IndependentCoupling(), GeodesicPath()),
        (Normalized, GaussianPrior(), IndependentCoupling(), GeodesicPath()),
        (PrincipalComponents, GaussianPrior(), IndependentCoupling(), GeodesicPath()),
    ],
    ids=["coupling", "prior", "path", "geometric", "normalized", "latent"],
)
def test_churn_is_refused_where_the_score_is_not_known(
    kind: type[Geometry], prior: Prior, coupling: Coupling, path: ProbabilityPath, space: WeightSpace
):
    with pytest.raises(ValueError, match="churn needs the score") as error:
        Sampler(noise=Churn()).for_flow(prior, coupling, path, kind(space))
    assert "\n" not in str(error.value)
    assert Sampler(noise=AddedNoise(0.1)).for_flow(prior, coupling, path, kind(space)).perturbation.std == 0.1


def test_settings_are_checked(flat: Euclidean):
    for make in (lambda: AddedNoise(-0.1), lambda: AddedNoise(0.1, 0.5, 0.5), lambda: Churn(0), lambda: Churn(std=0)):
        with pytest.raises(ValueError, match="must"):
            make()
    with pytest.raises(ValueError, match="prior's std"):
        sampled(flat, Churn(), Heun(), 3, 2)
