"""Paths: velocities are derivatives of states, noise has its size and ends where it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.fields import Endpoint, GaussianField
from wsflow.flow import BetaTime, ConstantNoisePath, GeodesicPath, ProbabilityPath
from wsflow.geometry import Euclidean, Geometry

PATHS = {
    "geodesic": GeodesicPath(),
    "noisy": GeodesicPath(0.2),
    "constant": ConstantNoisePath(0.05),
    "constant_zero": ConstantNoisePath(0.0),
}


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request: pytest.FixtureRequest) -> ProbabilityPath:
    return request.param


@pytest.fixture
def ends(geometry: Geometry, theta: Tensor) -> tuple[Tensor, Tensor]:
    return geometry.encode(theta), geometry.encode(theta.flip(0) + 0.3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_states_lie_on_the_geometry_and_velocities_are_tangent(
    path: ProbabilityPath, geometry: Geometry, ends: tuple[Tensor, Tensor]
):
    x0, x1 = ends
    sample = path.sample(x0, x1, torch.linspace(0, 0.99, 7).double(), geometry, seeded())
    assert torch.allclose(geometry.tangent(sample.x_t, sample.u_t), sample.u_t, atol=1e-8)
    if (geometry.tangent(x0, x0) - x0).abs().max() > 0:  # states may leave the geometry where tangents are free
        assert torch.allclose(geometry.project(sample.x_t), sample.x_t)


def test_ends_without_noise(geometry: Geometry, ends: tuple[Tensor, Tensor]):
    x0, x1 = ends
    for t, end in ((0.0, x0), (1 - 1e-9, x1)):
        x_t = GeodesicPath().sample(x0, x1, torch.full((7,), t).double(), geometry).x_t
        assert torch.allclose(x_t, end, atol=1e-7)


@pytest.mark.parametrize("path", [GeodesicPath(), ConstantNoisePath(0.0)], ids=["geodesic", "constant"])
def test_velocity_is_the_derivative_of_the_state(
    path: ProbabilityPath, geometry: Geometry, ends: tuple[Tensor, Tensor]
):
    t = torch.linspace(0.05, 0.9, 7).double()
    state = lambda s: path.sample(*ends, s, geometry).x_t  # noqa: E731
    _, derivative = torch.func.jvp(state, (t,), (torch.ones_like(t),))
    assert torch.allclose(path.sample(*ends, t, geometry).u_t, derivative, atol=1e-8)


@pytest.mark.parametrize("path", [GeodesicPath(0.2), ConstantNoisePath(0.05)], ids=["shrinking", "constant"])
def test_velocity_is_the_derivative_along_one_noise_on_flat_space(path: ProbabilityPath, flat: Euclidean):
    x0, x1 = torch.randn(2, 7, 2, dtype=torch.float64)
    t, h = torch.linspace(0.05, 0.9, 7).double(), 1e-6
    after, before = (path.sample(x0, x1, t + s, flat, seeded()).x_t for s in (h, -h))
    assert torch.allclose(path.sample(x0, x1, t, flat, seeded()).u_t, (after - before) / (2 * h), atol=1e-7)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.9])
def test_size_of_the_noise(t: float, flat: Euclidean, generator: torch.Generator):
    x0, x1, times = torch.zeros(4000, 2), torch.ones(4000, 2), torch.full((4000,), t)
    for path, std in ((GeodesicPath(0.2), 0.2 * (1 - t)), (ConstantNoisePath(0.2), 0.2)):
        noise = path.sample(x0, x1, times, flat, generator).x_t - t
        assert noise.std().item() == pytest.approx(std, rel=0.04)
        assert noise.mean().abs() < 0.01


def test_noise_follows_the_generator(path: ProbabilityPath, geometry: Geometry, ends: tuple[Tensor, Tensor]):
    t = torch.full((7,), 0.5).double()
    a, b = (path.sample(*ends, t, geometry, seeded()).x_t for _ in range(2))
    assert torch.equal(a, b)


def test_noise_on_a_sphere_is_tangent_at_the_path(sphere: Geometry, generator: torch.Generator):
    theta = torch.randn(2, 20_000, sphere.space.dim, generator=generator)
    x0, x1 = sphere.encode(theta[0, :1]).expand(20_000, -1), sphere.encode(theta[1, :1]).expand(20_000, -1)
    t = torch.full((20_000,), 0.3)
    mean = sphere.interpolate(x0, x1, t)
    noise = sphere.log(mean, GeodesicPath(0.1).sample(x0, x1, t, sphere, generator).x_t)
    # Three dimensions on S^3 and one on the line, each of variance (0.1 * 0.7)^2.
    assert noise.square().sum(1).mean().item() == pytest.approx(4 * 0.07**2, rel=0.03)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_mean_velocity_at_a_state_is_the_exact_field(t: float, flat: Euclidean, generator: torch.Generator):
    n, sigma = 200_000, 0.4
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x1 = 2 + 0.25 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    sample = GeodesicPath(sigma).sample(x0, x1, torch.full((n,), t).double(), flat, generator)
    x, u = sample.x_t.flatten(), sample.u_t.flatten()
    slope = torch.cov(torch.stack([x, u]))[0, 1] / x.var()  # the conditional mean of Gaussians is linear
    field = GaussianField(flat.space, std0=(1 + sigma**2) ** 0.5, mean1=2.0, std1=0.25)
    points = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    exact = field(points, torch.tensor([t], dtype=torch.float64))
    assert torch.allclose(u.mean() + slope * (points - x.mean()), exact, atol=0.03)


def test_endpoints_miss_the_marginal_velocity_of_constant_noise_as_the_docstring_says(
    flat: Euclidean, generator: torch.Generator
):
    n, sigma, t = 200_000, 0.4, 0.8
    x0, x1 = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    times = torch.full((n,), t, dtype=torch.float64)
    sample = ConstantNoisePath(sigma).sample(x0, x1, times, flat, generator)
    noise = (sample.x_t - flat.interpolate(x0, x1, times)) / sigma
    variance = (1 - t) ** 2 + t**2 + sigma**2
    endpoints, marginal, noises = (  # conditional means of Gaussians: slopes times x_t
        (sample.x_t * value).mean() / variance * sample.x_t for value in (x1, sample.u_t, noise)
    )
    assert torch.allclose(noises, sigma / variance * sample.x_t, atol=0.03)
    velocity = Endpoint().velocity(endpoints, flat, sample.x_t, times)
    torch.testing.assert_close(velocity, marginal - sigma * noises / (1 - t), atol=0.05, rtol=0.02)
    assert (velocity - marginal).abs().max() > 1


def test_velocities_of_drawn_times_are_finite_in_float32(
    path: ProbabilityPath, geometry: Geometry, ends: tuple[Tensor, Tensor]
):
    x0, x1 = (end.float() for end in ends)
    late = BetaTime(100, 0.1).sample(7, seeded())
    sample = path.sample(x0, x1, late, geometry, seeded())
    assert sample.u_t.isfinite().all()
    if path is PATHS["geodesic"]:
        exact = path.sample(*ends, late.double(), geometry).u_t.float()
        assert torch.allclose(sample.u_t, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("cls", [GeodesicPath, ConstantNoisePath])
def test_sigma_must_not_be_negative(cls: type):
    with pytest.raises(ValueError, match="must not be negative"):
        cls(-0.1)
