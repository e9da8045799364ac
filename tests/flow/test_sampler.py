"""Sampling end to end with exact fields: the target's law comes out, and each sample depends on its index alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.fields import Endpoint, GaussianField, Parametrization, Velocity
from wsflow.flow import (
    RK4,
    CosineGrid,
    Euler,
    GaussianPrior,
    Heun,
    ListGrid,
    Sampler,
    Solver,
    sample_generators,
    sample_prior,
)
from wsflow.geometry import Euclidean, Geometry

SOLVERS = {"euler": Euler(), "heun": Heun(), "rk4": RK4()}


def flow(geometry: Geometry, parametrization: Parametrization, **law: float):
    """The exact velocity from N(0, 1) to the law, as a trained field would give it."""
    field = GaussianField(geometry.space, 0, endpoint=isinstance(parametrization, Endpoint), **law)
    return lambda x, t: parametrization.velocity(field(x, t), geometry, x, t)


def still(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


@pytest.fixture
def x0(flat: Euclidean) -> Tensor:
    return sample_prior(GaussianPrior(1.0), flat, 0, range(2000)).double()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("parametrization", [Endpoint(), Velocity()], ids=["endpoint", "velocity"])
def test_exact_fields_give_the_target(solver: Solver, parametrization: Parametrization, flat: Euclidean, x0: Tensor):
    velocity = flow(flat, parametrization, mean1=2.0, std1=0.25)
    steps = 1000 if solver.order == 1 else 60
    x = Sampler(solver, steps)(velocity, flat, x0, singular_end=parametrization.singular_end)
    assert torch.allclose(x, 2 + 0.25 * x0, atol=0.01)  # the exact flow map
    assert x.mean().item() == pytest.approx(2, abs=0.02)
    assert x.std().item() == pytest.approx(0.25, rel=0.05)


def test_the_displacement_from_the_start_is_not_the_velocity(flat: Euclidean, x0: Tensor):
    """What this suite must catch: x1_hat - x0 in place of (x1_hat - x_t) / (1 - t) gives std 0.07 for 0.25."""
    field = GaussianField(flat.space, mean1=2.0, std1=0.25, endpoint=True)
    x = Sampler(steps=1000)(lambda x, t: field(x, t) - x0, flat, x0)
    assert x.std().item() == pytest.approx(0.07, abs=0.01)


def test_steps_are_steps(flat: Euclidean):
    times: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return still(x, t)

    Sampler(steps=4)(velocity, flat, torch.zeros(1, 2))
    assert times == [0, 0.25, 0.5, 0.75]


def test_the_time_grid_is_a_power(flat: Euclidean):
    seen: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        return torch.ones_like(x)

    x = Sampler(steps=4, power=3)(velocity, flat, torch.zeros(2, flat.dim))
    assert seen == pytest.approx([0, 1 / 64, 8 / 64, 27 / 64])
    torch.testing.assert_close(x, torch.ones_like(x))


def test_the_final_state_is_finished(geometry: Geometry, theta: Tensor):
    x0 = geometry.encode(theta)
    x = Sampler(steps=3)(lambda x, t: geometry.tangent(x, x0.flip(0)), geometry, x0)
    assert torch.allclose(geometry.project(x), x)


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["deterministic", "stochastic"])
def test_splitting_the_samples_changes_nothing(noise: float, geometry: Geometry):
    def sample(indices: range) -> Tensor:
        x0 = sample_prior(GaussianPrior(), geometry, 3, indices)
        sampler = Sampler(Heun(), 5, noise)
        return sampler(lambda x, t: geometry.tangent(x, -x), geometry, x0, sample_generators(3, indices))

    parts = torch.cat([sample(range(2, 7)), sample(range(2))])
    assert torch.allclose(parts[[5, 6, 0, 1, 2, 3, 4]], sample(range(7)), atol=1e-5)


def test_noise_has_its_size_before_every_step(flat: Euclidean):
    x = Sampler(steps=9, noise=0.2)(still, flat, torch.zeros(3000, 2), sample_generators(0, range(3000)))
    assert x.std().item() == pytest.approx(0.6, rel=0.04)


def test_no_noise_after_the_last_step(flat: Euclidean):
    x = Sampler(steps=4, noise=0.5)(
        lambda x, t: (1 - x) / (1 - t)[:, None], flat, torch.zeros(5, 2), sample_generators(0, range(5)), True
    )
    assert torch.allclose(x, torch.ones(5, 2), atol=1e-6)


def test_noise_is_independent_of_the_start_with_the_same_generators(flat: Euclidean):
    x0 = sample_prior(GaussianPrior(1.0), flat, 0, range(3000))
    x = Sampler(steps=1, noise=1.0)(still, flat, x0, sample_generators(0, range(3000)))
    correlation = torch.corrcoef(torch.stack([x0.flatten(), (x - x0).flatten()]))[0, 1]
    assert abs(correlation) < 4 / 6000**0.5


def test_noise_keeps_states_on_the_geometry(geometry: Geometry, theta: Tensor):
    x0, seen = geometry.encode(theta), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return still(x, t)

    Sampler(steps=3, noise=0.3)(velocity, geometry, x0, sample_generators(0, range(7)))
    assert not torch.allclose(seen[0], x0)
    if (geometry.tangent(x0, x0) - x0).abs().max() > 0:  # Euclidean and Normalized states are free to leave
        assert all(torch.allclose(geometry.project(x), x) for x in seen)


def test_noise_repairs_a_narrow_flow(flat: Euclidean, x0: Tensor):
    """Stochastic sampling widens samples again, at the price of an exact law (thesis, figure 7.1)."""
    narrow = flow(flat, Velocity(), mean1=1.0, std1=0.5)
    x0 = x0[:500]
    wide = Sampler(steps=100, noise=0.05)(narrow, flat, x0, sample_generators(0, range(500)))
    assert 1.02 * Sampler(steps=100)(narrow, flat, x0).std() < wide.std() < 1


@pytest.mark.parametrize("given", [None, sample_generators(0, range(3))], ids=["none", "too few"])
def test_noise_needs_a_generator_per_sample(given: list[torch.Generator] | None, flat: Euclidean):
    with pytest.raises(ValueError, match="one generator for each of the 5 samples"):
        Sampler(noise=0.1)(still, flat, torch.zeros(5, 2), given)


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"noise": -1.0}], ids=str)
def test_settings_are_checked(arguments: dict[str, float]):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Sampler(**arguments)


def test_sampling_keeps_no_graph(flat: Euclidean):
    weight = torch.ones(2, requires_grad=True)
    assert not Sampler(steps=2)(lambda x, t: weight * x, flat, torch.ones(1, 2)).requires_grad


def test_a_list_of_times_says_how_many_steps_there_are():
    assert Sampler(steps=8, grid=ListGrid([0, 0.5, 1])).steps == 2
    assert Sampler(steps=8, grid=CosineGrid()).steps == 8
