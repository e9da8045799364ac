"""Adaptive steps: tolerances are kept, as torchdiffeq keeps them, on spheres too, and for each sample by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from wsflow.fields import Endpoint, GaussianField
from wsflow.flow import Counted, DormandPrince, Euler, Sampler, integrate
from wsflow.flow.adaptive import ERROR, FOURTH, NODES, STAGES
from wsflow.geometry import Euclidean, Geometric


def span(start: float, end: float) -> Tensor:
    return torch.tensor([start, end], dtype=torch.float64)


def oscillator(x: Tensor, t: Tensor) -> Tensor:
    """Fast at first, slow later, and coupled."""
    speed = 1 + 7 * (-20 * (t - 0.3).square()).exp()
    return speed[:, None] * torch.stack([x[:, 1], -x[:, 0] * (1 + 0.3 * x[:, 1].square())], dim=1)


def starts(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_table_fulfils_the_conditions_of_its_orders():
    nodes, fifth = torch.tensor(NODES).double(), torch.tensor([*STAGES[-1], 0.0]).double()
    fourth, matrix = torch.tensor(FOURTH).double(), torch.zeros(7, 7, dtype=torch.float64)
    for row, weights in enumerate(STAGES, start=1):
        matrix[row, : len(weights)] = torch.tensor(weights).double()
    assert torch.allclose(matrix.sum(1), nodes)
    for order, weights in ((5, fifth), (4, fourth)):
        for k in range(order):
            assert float(weights @ nodes**k) == pytest.approx(1 / (k + 1), abs=1e-7)
        assert float(weights @ matrix @ nodes) == pytest.approx(1 / 6, abs=1e-7)
        assert float(weights @ matrix @ nodes**2) == pytest.approx(1 / 12, abs=1e-7)
        assert float(weights @ matrix @ matrix @ nodes) == pytest.approx(1 / 24, abs=1e-7)
    assert float(fourth @ nodes**4) != pytest.approx(1 / 5, abs=1e-5)
    assert torch.allclose(fifth - fourth, torch.tensor(ERROR).double())


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
def test_as_torchdiffeq(flat: Euclidean, start: float, end: float):
    x, counted, calls = starts(1), Counted(oscillator), []

    def theirs(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return oscillator(y, t.expand(len(y)))

    exact = odeint(theirs, x, span(start, end), method="dopri5", rtol=1e-10, atol=1e-10)[-1]
    calls.clear()
    other = odeint(theirs, x, span(start, end), method="dopri5", rtol=1e-6, atol=1e-6)[-1]
    ours, _ = integrate(counted, flat, DormandPrince(1e-6, 1e-6), x, span(start, end))
    assert (ours - exact).abs().max() < 1e-4
    assert (other - exact).abs().max() < 1e-4
    assert counted.evaluations < 1.25 * len(calls)


def test_errors_follow_tolerances(flat: Euclidean):
    x = starts(4)
    exact, _ = integrate(oscillator, flat, DormandPrince(1e-9, 1e-9), x, span(0, 1))
    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        counted = Counted(oscillator)
        end, _ = integrate(counted, flat, DormandPrince(tolerance, tolerance), x, span(0, 1))
        errors.append(float((end - exact).abs().max()))
        costs.append(counted.evaluations)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert costs == sorted(costs)


def test_a_sample_does_not_depend_on_its_batch(flat: Euclidean):
    x = starts(6) * torch.tensor([0.01, 0.1, 1, 2, 4, 8], dtype=torch.float64)[:, None]
    solver = DormandPrince(1e-3, 1e-3)
    together, _ = integrate(oscillator, flat, solver, x, span(0, 1))
    alone = torch.cat([integrate(oscillator, flat, solver, x[i : i + 1], span(0, 1))[0] for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-10)


def test_on_a_sphere(sphere: Geometric, generator: torch.Generator):
    x, goal = (sphere.encode(torch.randn(n, 5, generator=generator, dtype=torch.float64)) for n in (4, 1))

    def towards(x: Tensor, t: Tensor) -> Tensor:
        return sphere.tangent(x, (1 + t)[:, None] * goal)

    end, _ = integrate(towards, sphere, DormandPrince(1e-8, 1e-8), x, span(0, 1))
    angle, clock = torch.acos(x[:, :4] @ goal[0, :4]), 1.5
    later = 2 * torch.atan(torch.tan(angle / 2) * torch.tensor(-clock).exp())
    assert torch.allclose(torch.acos(end[:, :4] @ goal[0, :4]), later, atol=1e-6)
    assert torch.allclose(end[:, 4:], x[:, 4:] + clock * goal[:, 4:], atol=1e-6)
    assert torch.allclose(sphere.project(end), end)


def test_what_is_carried_is_held_to_the_tolerances(flat: Euclidean):
    def velocity(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), 40 * (40 * t).cos()[:, None].expand(-1, 3)

    x = torch.zeros(2, 2, dtype=torch.float64)
    _, carried = integrate(velocity, flat, DormandPrince(1e-8, 1e-8), x, span(0, 1), x.new_zeros(2, 3))
    assert torch.allclose(carried, torch.tensor(40.0).double().sin().expand(2, 3), atol=1e-6)


def test_a_singular_end_is_left_to_one_euler_step(flat: Euclidean):
    field, endpoint, times = GaussianField(flat.space, mean1=2.0, std1=0.25, endpoint=True), Endpoint(), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t.max().item())
        return endpoint.velocity(field(x, t), flat, x, t)

    x = starts(5)
    end, _ = integrate(velocity, flat, DormandPrince(), x, span(0, 1), singular_end=True)
    assert max(times) == pytest.approx(0.999)
    assert torch.allclose(end, 2 + 0.25 * x, atol=1e-4)


def test_noise_comes_at_the_times_of_the_grid_alone(flat: Euclidean):
    """Not before the last step to a singular end, which is no step of the grid."""
    seen: list[float] = []

    def note(x: Tensor, t: float) -> tuple[Tensor, float]:
        seen.append(t)
        return x, t

    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    integrate(lambda x, t: -x, flat, DormandPrince(), starts(2), times, singular_end=True, before_step=note)
    assert seen == [0.0, 0.5]


def test_a_sampler_lets_it_choose_its_steps_and_counts_them(flat: Euclidean):
    x, solver = starts(3), DormandPrince(1e-6, 1e-6)
    samplers = [Sampler(solver, steps) for steps in (1, 100)]
    results = [sampler(oscillator, flat, x) for sampler in samplers]
    assert torch.equal(*results)
    assert samplers[0].evaluations == samplers[1].evaluations > 6
    euler = Sampler(Euler(), 5)
    euler(oscillator, flat, x)
    assert euler.evaluations == 5


def test_float32_and_no_samples(flat: Euclidean):
    end, _ = integrate(oscillator, flat, DormandPrince(), starts(3).float(), span(0, 1))
    assert end.dtype == torch.float32
    assert integrate(oscillator, flat, DormandPrince(), starts(0), span(0, 1))[0].shape == (0, 2)


def test_what_cannot_be_reached_is_said(flat: Euclidean):
    with pytest.raises(ValueError, match="2 of 2 samples do not reach t = 1"):
        integrate(lambda x, t: x.square() * 1e3, flat, DormandPrince(most=50), starts(2).abs() + 1, span(0, 1))
    with pytest.raises(ValueError, match="positive"):
        DormandPrince(rtol=0)


def test_it_is_differentiable(flat: Euclidean):
    x = starts(2).requires_grad_()
    end, _ = integrate(lambda x, t: -x, flat, DormandPrince(1e-4, 1e-4), x, span(0, 1))
    (slope,) = torch.autograd.grad(end.sum(), x)
    assert torch.allclose(slope, torch.full_like(x, -1.0).exp(), atol=1e-4)
