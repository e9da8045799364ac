"""Solvers: orders by regression on problems with known answers, both directions, singular ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsflow.fields import Endpoint, GaussianField
from wsflow.flow import RK4, Euler, Heun, Solver, integrate
from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized
from wsflow.weightspace import WeightSpace

SOLVERS = {"euler": Euler(), "heun": Heun(), "rk4": RK4()}


@pytest.fixture(params=SOLVERS.values(), ids=SOLVERS.keys())
def solver(request: pytest.FixtureRequest) -> Solver:
    return request.param


def grid(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def logistic(x: Tensor, t: Tensor) -> Tensor:
    """x' = (1 + t) x (1 - x)."""
    return (1 + t)[:, None] * x * (1 - x)


def logistic_solution(x: Tensor, t: float) -> Tensor:
    odds = x / (1 - x) * math.exp(t + t**2 / 2)
    return odds / (1 + odds)


def towards(geometry: Geometry, goal: Tensor):
    """The tangent part of a fixed vector: on a sphere every point moves along its great circle to the goal."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return geometry.tangent(x, (1 + t)[:, None] * goal)

    return velocity


def towards_solution(geometry: Geometry, goal: Tensor, x: Tensor, t: float) -> Tensor:
    """On S^3 the angle a to the goal obeys a' = -(1 + t) sin a; on the line x' = (1 + t) goal."""
    clock = t + t**2 / 2
    sphere, line = x[:, :4], x[:, 4:] + clock * goal[4:]
    angle = torch.acos(sphere @ goal[:4])[:, None]
    later = 2 * torch.atan(torch.tan(angle / 2) * math.exp(-clock))
    sideways = (sphere - angle.cos() * goal[:4]) / angle.sin()
    return torch.cat([later.cos() * goal[:4] + later.sin() * sideways, line], dim=1)


def order(errors: list[float], steps: list[int]) -> float:
    """Minus the slope of log error against log number of steps, by least squares."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


STEPS = [8, 16, 32, 64]


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
def test_order_on_flat_space(solver: Solver, flat: Euclidean, start: float, end: float):
    x = torch.tensor([[0.1, 0.3], [0.2, 0.7]], dtype=torch.float64)
    at_start, at_end = logistic_solution(x, start), logistic_solution(x, end)
    errors = [
        float((integrate(logistic, flat, solver, at_start, grid(start, end, n))[0] - at_end).abs().max()) for n in STEPS
    ]
    assert order(errors, STEPS) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
def test_order_on_a_sphere(solver: Solver, sphere: Geometric, start: float, end: float, generator: torch.Generator):
    x = sphere.encode(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    goal = sphere.encode(torch.randn(1, 5, generator=generator, dtype=torch.float64))[0]
    at_start, at_end = (towards_solution(sphere, goal, x, t) for t in (start, end))
    errors = [
        float((integrate(towards(sphere, goal), sphere, solver, at_start, grid(start, end, n))[0] - at_end).abs().max())
        for n in STEPS
    ]
    assert order(errors, STEPS) == pytest.approx(solver.order, abs=0.25)


def test_states_stay_on_the_geometry(solver: Solver, geometry: Geometry, generator: torch.Generator):
    theta = torch.randn(2, 4, geometry.space.dim, generator=generator, dtype=torch.float64)
    x, goal = geometry.encode(theta[0]), geometry.encode(theta[1])
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return geometry.tangent(x, goal)

    end, _ = integrate(velocity, geometry, solver, x, grid(0, 1, 4))
    if isinstance(geometry, Normalized):
        assert torch.allclose(end, x + goal)  # straight through the balls, not projected on the way
    else:
        assert all(torch.allclose(geometry.project(state), state) for state in (*seen, end))


def test_extra_is_integrated_alongside(solver: Solver, flat: Euclidean):
    field = GaussianField(flat.space, std0=1.0, mean1=2.0, std1=0.25)

    def velocity(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.eye(2, dtype=x.dtype).expand(len(x), 2, 2)
        slopes = [field(x + ends[:, i], t) - field(x, t) for i in range(2)]  # the field is affine in x
        return field(x, t), slopes[0][:, 0] + slopes[1][:, 1]

    x = torch.randn(3, 2, dtype=torch.float64)
    steps = {1: 1000, 2: 100, 4: 40}[solver.order]
    end, volume = integrate(velocity, flat, solver, x, grid(0, 1, steps), torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(end, 2 + 0.25 * x, atol=1e-2)
    assert torch.allclose(volume, torch.full_like(volume, 2 * math.log(0.25)), atol=1e-2)
    back, rest = integrate(velocity, flat, solver, end, grid(1, 0, steps), volume)
    assert torch.allclose(back, x, atol=2e-2)
    assert torch.allclose(rest, torch.zeros_like(rest), atol=2e-2)


def test_integration_is_differentiable(solver: Solver, flat: Euclidean):
    x = torch.tensor([[0.1, 0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: integrate(logistic, flat, solver, x, grid(0, 1, 3))[0], x)


def test_a_singular_end_is_never_evaluated(solver: Solver, flat: Euclidean):
    field, endpoint, times = GaussianField(flat.space, mean1=2.0, std1=0.25, endpoint=True), Endpoint(), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return endpoint.velocity(field(x, t), flat, x, t)

    x = torch.randn(5, 2, dtype=torch.float64)
    end, _ = integrate(velocity, flat, solver, x, grid(0, 1, 10), singular_end=True)
    assert max(times) < 1
    assert end.isfinite().all()
    evaluations = {1: 1, 2: 2, 4: 4}[solver.order]
    assert len(times) == 9 * evaluations + 1
    times.clear()
    integrate(velocity, flat, solver, end, grid(0.99, 0, 10), singular_end=True)
    assert len(times) == 10 * evaluations
    with pytest.raises(ValueError, match="1 - delta"):
        integrate(velocity, flat, solver, end, grid(1, 0, 10), singular_end=True)


def test_before_step_runs_before_every_step(solver: Solver, flat: Euclidean):
    x = torch.zeros(1, 2, dtype=torch.float64)
    end, _ = integrate(lambda x, t: 0 * x, flat, solver, x, grid(0, 1, 5), before_step=lambda x, t: (x + 1, t))
    assert torch.equal(end, torch.full_like(x, 5))


def test_before_step_may_go_back_in_time(flat: Euclidean):
    x, times = torch.zeros(1, 2, dtype=torch.float64), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return torch.ones_like(x)

    end, _ = integrate(velocity, flat, Euler(), x, grid(0, 1, 2), before_step=lambda x, t: (x, t / 2))
    assert times == [0, 0.25]
    assert torch.allclose(end, torch.full_like(x, 1.25))


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [0.0, 0.6, 0.4], [0.0, float("nan")], [[0.0, 1.0]]], ids=str)
def test_times_must_be_a_grid(times: list[float], flat: Euclidean):
    with pytest.raises(ValueError, match="monotone grid"):
        integrate(logistic, flat, Euler(), torch.zeros(1, 2), torch.tensor(times))


@pytest.mark.parametrize("extra", [None, torch.zeros(1)], ids=["extra without rate", "rate without extra"])
def test_rates_and_extra_go_together(extra: Tensor | None, flat: Euclidean):
    velocity = (lambda x, t: (x, x[:, 0])) if extra is None else (lambda x, t: x)
    with pytest.raises(ValueError, match=r"returns \(v, rate\)"):
        integrate(velocity, flat, Euler(), torch.zeros(1, 2), grid(0, 1, 2), extra)


def test_solvers_keep_the_type_of_states(solver: Solver, space: WeightSpace):
    geometry = Geometric(space)
    x = geometry.encode(torch.randn(3, space.dim))
    end, _ = integrate(lambda x, t: geometry.tangent(x, t[:, None] - x), geometry, solver, x, grid(0, 1, 3))
    assert end.dtype == torch.float32
