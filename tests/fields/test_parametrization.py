"""Endpoint and velocity: the loss has the right minimum and the velocity follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.fields import Endpoint, Parametrization, Velocity
from wsflow.flow import GeodesicPath, PathSample
from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized
from wsflow.weightspace import WeightSpace, mlp

GEOMETRIES = {"euclidean": Euclidean, "normalized": Normalized, "geometric": Geometric}
PARAMETRIZATIONS = {"endpoint": Endpoint(), "projected": Endpoint(project=True), "velocity": Velocity()}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request: pytest.FixtureRequest, space: WeightSpace) -> Geometry:
    return request.param(space)


@pytest.fixture(params=PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def parametrization(request: pytest.FixtureRequest) -> Parametrization:
    return request.param


@pytest.fixture
def sample(geometry: Geometry, theta: Tensor, generator: torch.Generator) -> PathSample:
    x0, x1 = geometry.encode(theta), geometry.encode(theta.flip(0) + 0.3)
    return GeodesicPath(0.1).sample(x0, x1, torch.linspace(0, 0.9, 7).double(), geometry, generator)


def test_the_target_has_no_residual_and_gives_the_velocity(
    parametrization: Parametrization, geometry: Geometry, sample: PathSample
):
    target = parametrization.target(geometry, sample)
    assert parametrization.residual(target, geometry, sample).abs().max() < 1e-8
    assert torch.allclose(parametrization.velocity(target, geometry, sample.x_t, sample.t), sample.u_t, atol=1e-8)


def test_residuals_and_velocities_are_tangent(parametrization: Parametrization, geometry: Geometry, sample: PathSample):
    output = torch.randn_like(sample.x_t)
    for vector in (
        parametrization.residual(output, geometry, sample),
        parametrization.velocity(output, geometry, sample.x_t, sample.t),
    ):
        assert torch.allclose(geometry.tangent(sample.x_t, vector), vector, atol=1e-8)
        assert vector.abs().max() > 0.1


def test_residuals_have_finite_gradients(parametrization: Parametrization, geometry: Geometry, sample: PathSample):
    single = PathSample(*(value.float() for value in (sample.x0, sample.x1, sample.t, sample.x_t, sample.u_t)))
    output = parametrization.target(geometry, single).clone().requires_grad_()
    parametrization.residual(output, geometry, single).square().sum().backward()
    assert output.grad.isfinite().all()


def test_endpoint_velocity_starts_from_the_present_state(space: WeightSpace):
    geometry, x, t = Euclidean(space), torch.zeros(1, space.dim), torch.tensor([0.75])
    assert torch.allclose(Endpoint().velocity(torch.ones(1, space.dim), geometry, x, t), torch.tensor(4.0))


def test_projection_is_the_difference_of_the_projected_option(sample: PathSample, geometry: Geometry):
    inside = 0.5 * sample.x1
    plain, projected = (Endpoint(p).velocity(inside, geometry, sample.x_t, sample.t) for p in (False, True))
    expected = geometry.log(sample.x_t, geometry.project(inside)) / (1 - sample.t)[:, None]
    assert torch.allclose(projected, expected)
    assert torch.allclose(plain, projected) == isinstance(geometry, Euclidean)


def test_the_best_output_is_the_mean_step_to_the_modes(generator: torch.Generator):
    """Two modes on a sphere, 30 % and 70 %: the minimiser of the loss is the mean of the steps to them.

    The projected mean endpoint is another direction, which is why the loss is not taken there.
    """
    geometry = Geometric(WeightSpace.from_module(mlp([4, 1, 1], bias=False), output_activation="identity"))
    modes = geometry.encode(torch.randn(2, 5, generator=generator, dtype=torch.float64))
    x1 = modes[(torch.arange(100) >= 30).long()]
    x_t = geometry.encode(torch.randn(1, 5, generator=generator, dtype=torch.float64)).expand(100, -1)
    t = torch.full((100,), 0.4, dtype=torch.float64)
    sample = PathSample(x_t, x1, t, x_t, geometry.velocity(x_t, x1, t))
    output = torch.zeros(1, 5, dtype=torch.float64)

    def loss(output: Tensor) -> Tensor:
        return Endpoint().residual(output.expand(100, -1), geometry, sample).square().sum(1).mean()

    for _ in range(2):  # the loss is a quadratic form with Hessian 2 P: these are Newton steps
        output = output - torch.func.grad(loss)(output) / 2
    velocity = Endpoint().velocity(output, geometry, x_t[:1], t[:1])
    assert torch.allclose(velocity, sample.u_t.mean(0), atol=1e-5)
    projected = Endpoint(project=True).velocity(x1.mean(0, keepdim=True), geometry, x_t[:1], t[:1])
    cosine = torch.nn.functional.cosine_similarity(projected[:, :4], velocity[:, :4])
    assert cosine.item() < 0.999


def test_singular_ends():
    assert Endpoint().singular_end
    assert not Velocity().singular_end
