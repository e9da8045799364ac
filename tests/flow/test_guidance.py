"""Guidance lowers what it is told to lower, by as much as the mathematics says, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import describe
from torch import Tensor

from wsflow.flow import (
    RK4,
    DormandPrince,
    EndpointGuidance,
    Euler,
    Guidance,
    IntervalStrength,
    NormClip,
    PowerStrength,
    RelativeClip,
    Sampler,
    StateGuidance,
    sample_generators,
)
from wsflow.geometry import Euclidean, Geometric, Geometry
from wsflow.weightspace import FunctionObjective, Objective, WeightNorm, WeightSpace
from wsflow.weightspace.randomness import draw_rows

KINDS = {"state": StateGuidance, "endpoint": EndpointGuidance}


class Quadratic(Objective):
    """Half the squared distance to a point of one's own, and a linear part that is drawn."""

    def __init__(self, goal: Tensor, noise: float = 0.0) -> None:
        self.goal, self.noise = goal, noise

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        value = (theta - self.goal).square().sum(1) / 2
        if self.noise:
            z = draw_rows(lambda n, s: torch.randn(n, theta.shape[1], generator=s), len(theta), generator)
            value = value + self.noise * (theta * z.to(theta)).sum(1)
        return value


def still(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def generators(n: int, first: int = 0) -> list[torch.Generator]:
    return sample_generators(5, range(first, first + n))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_small_step_lowers_the_objective_by_the_squared_tangent_gradient(
    kind: type[Guidance], geometry: Geometry, theta: Tensor
):
    x = geometry.project(geometry.encode(theta))
    goal = Quadratic(torch.linspace(-1, 1, geometry.space.dim, dtype=torch.float64))
    dt, strength = 1e-6, 0.7
    guided = kind(goal, strength).steer(still, geometry, generators(len(x)))

    def value(state: Tensor) -> Tensor:
        return goal(geometry.decode(geometry.finish(state)))

    gradient = geometry.tangent(x, torch.autograd.grad(value(y := x.clone().requires_grad_()).sum(), y)[0])
    after, _ = Euler().step(guided, geometry, x, 0.3, dt)
    expected = -strength * dt * gradient.square().sum(1)
    assert (expected < 0).all()
    torch.testing.assert_close(value(after) - value(x), expected, rtol=2e-3, atol=0)


def test_guided_velocities_are_tangent(geometry: Geometry, theta: Tensor):
    x = geometry.project(geometry.encode(theta))
    v = StateGuidance(WeightNorm(), 3.0).steer(still, geometry, generators(len(x)))(x, torch.full((len(x),), 0.5))
    torch.testing.assert_close(geometry.tangent(x, v), v)


def test_the_endpoint_is_where_the_gradient_is_taken(flat: Euclidean):
    goal, x = Quadratic(torch.tensor([3.0, -1.0])), torch.tensor([[0.5, 0.25]])
    velocity, t = (lambda x, t: torch.tensor([[1.0, 2.0]])), torch.tensor([0.75])
    guided = EndpointGuidance(goal, 2.0).steer(velocity, flat, generators(1))
    end = torch.tensor([[0.75, 0.75]])
    torch.testing.assert_close(guided(x, t), torch.tensor([[1.0, 2.0]]) - 2 * (end - goal.goal))


def test_sampling_under_guidance_ends_nearer_to_the_goal_than_the_flow(flat: Euclidean):
    """The exact solution of x' = -lambda (x - a) is exponential decay."""
    goal = Quadratic(torch.tensor([3.0, -1.0]))
    x0 = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    x = Sampler(RK4(), 8, guidance=StateGuidance(goal, 1.5))(still, flat, x0, generators(2))
    torch.testing.assert_close(x, goal.goal + (x0 - goal.goal) * torch.tensor(-1.5).exp(), rtol=0, atol=1e-4)


def test_strengths_over_time():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(PowerStrength(4.0, rise=2.0)(t), torch.tensor([0.0, 0.25, 1.0, 4.0]))
    torch.testing.assert_close(PowerStrength(4.0, fall=1.0)(t), torch.tensor([4.0, 3.0, 2.0, 0.0]))
    torch.testing.assert_close(IntervalStrength(2.0, 0.25, 0.5)(t), torch.tensor([0.0, 2.0, 0.0, 0.0]))
    torch.testing.assert_close(IntervalStrength(2.0, 0.5)(t), torch.tensor([0.0, 0.0, 2.0, 2.0]))
    for law in (PowerStrength(0.1), IntervalStrength(0.1)):
        assert torch.equal(law(t.double()), torch.full_like(t, 0.1, dtype=torch.float64))


def test_clips_bound_what_is_added(geometry: Geometry, theta: Tensor):
    x = geometry.project(geometry.encode(theta))
    t, v = torch.full((len(x),), 0.5), geometry.tangent(x, torch.ones_like(x))
    for clip, limit in ((NormClip(0.1), 0.1), (RelativeClip(0.5), 0.5 * v.norm(dim=1))):
        push = v - StateGuidance(WeightNorm(), 100.0, clip).steer(lambda x, t: v, geometry, generators(len(x)))(x, t)
        long = StateGuidance(WeightNorm(), 100.0).steer(still, geometry, generators(len(x)))(x, t).norm(dim=1)
        torch.testing.assert_close(push.norm(dim=1), torch.minimum(long, torch.as_tensor(limit).to(long)))
    free = StateGuidance(WeightNorm(), 1e-3, NormClip(1e9)).steer(still, geometry, generators(len(x)))(x, t)
    torch.testing.assert_close(free, StateGuidance(WeightNorm(), 1e-3).steer(still, geometry, generators(len(x)))(x, t))


def test_a_sample_does_not_depend_on_its_batch_mates(geometry: Geometry, theta: Tensor):
    goal = Quadratic(torch.zeros(geometry.space.dim, dtype=torch.float64), noise=1.0)
    x0, sampler = geometry.encode(theta), Sampler(steps=3, guidance=StateGuidance(goal, 0.3))
    whole = sampler(still, geometry, x0, generators(7))
    parts = torch.cat(
        [sampler(still, geometry, x0[:3], generators(3)), sampler(still, geometry, x0[3:], generators(4, 3))]
    )
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, sampler(still, geometry, x0, generators(7, 100)), atol=1e-3)


def test_it_runs_in_inference_mode(geometry: Geometry, theta: Tensor):
    with torch.inference_mode():
        x0 = geometry.encode(theta)
        x = Sampler(steps=2, guidance=EndpointGuidance(WeightNorm(), 0.1))(still, geometry, x0, generators(len(x0)))
    assert x.isfinite().all()
    assert not torch.equal(x, geometry.finish(x0)) or geometry.space.dim == 0


def test_a_function_of_ones_own_is_an_objective(flat: Euclidean):
    guidance = StateGuidance(FunctionObjective(lambda theta: theta[:, 0]), 2.0)
    v = guidance.steer(still, flat, generators(3))(torch.zeros(3, 2), torch.zeros(3))
    torch.testing.assert_close(v, torch.tensor([[-2.0, 0.0]]).expand(3, 2))
    with pytest.raises(ValueError, match="gives \\(\\) for 3 networks"):
        FunctionObjective(lambda theta: theta.sum())(torch.zeros(3, 2))


def test_an_objective_without_a_gradient_is_warned_of_once(flat: Euclidean):
    guidance = StateGuidance(FunctionObjective(lambda theta: (theta[:, 0] > 0).float() + 0 * theta[:, 0]), 2.0)
    guided = guidance.steer(still, flat, generators(3))
    with pytest.warns(UserWarning, match="has no gradient, so that it guides nothing"):
        guided(torch.zeros(3, 2), torch.zeros(3))
    guided(torch.zeros(3, 2), torch.ones(3))


def test_the_endpoint_gradient_is_projected_to_the_tangent_space():
    """A push that leaves the tangent space would be longer, and no velocity of the sphere."""
    space = WeightSpace.from_description(describe([4, 3, 2]))
    geometry = Geometric(space)
    theta = torch.randn(5, space.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = geometry.project(geometry.encode(theta))
    goal = Quadratic(torch.linspace(-1, 1, space.dim, dtype=torch.float64))

    def moving(x: Tensor, t: Tensor) -> Tensor:
        return geometry.tangent(x, torch.ones_like(x))

    v = EndpointGuidance(goal, 2.0).steer(moving, geometry, generators(5))(x, torch.full((5,), 0.5).double())
    torch.testing.assert_close(geometry.tangent(x, v), v, rtol=0, atol=1e-12)


def test_a_solver_that_tries_steps_again_takes_no_random_objectives(flat: Euclidean):
    x0, solver = torch.ones(3, 2), DormandPrince()
    for kind in KINDS.values():
        sampler = Sampler(solver, guidance=kind(Quadratic(torch.zeros(2), noise=0.1), 0.5))
        with pytest.raises(ValueError, match="draws at random at each call"):
            sampler(still, flat, x0, generators(3))
    Sampler(Euler(), 2, guidance=StateGuidance(Quadratic(torch.zeros(2), noise=0.1), 0.5))(
        still, flat, x0, generators(3)
    )
    exact = Sampler(solver, guidance=StateGuidance(Quadratic(torch.zeros(2)), 0.5))(still, flat, x0, generators(3))
    torch.testing.assert_close(exact, x0 * math.exp(-0.5), rtol=1e-4, atol=0)


def test_what_cannot_be_is_refused(flat: Euclidean):
    with pytest.raises(ValueError, match="must not be negative"):
        StateGuidance(WeightNorm(), -1.0)
    with pytest.raises(ValueError, match="one generator per sample"):
        Sampler(steps=1, guidance=StateGuidance(WeightNorm()))(still, flat, torch.zeros(2, 2))
    guided = StateGuidance(WeightNorm()).steer(still, flat, generators(2))
    with pytest.raises(ValueError, match="made for 2 samples and is asked about 3"):
        guided(torch.zeros(3, 2), torch.zeros(3))
    carrying = StateGuidance(WeightNorm()).steer(lambda x, t: (x, t), flat, generators(2))
    with pytest.raises(ValueError, match="no density"):
        carrying(torch.zeros(2, 2), torch.zeros(2))
