import math

import pytest
import torch

from wsflow.geometry import sphere

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]
SIZES = [pytest.param(2, id="circle"), pytest.param(17, id="S16"), pytest.param(784, id="S783")]


def units(size, n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, size, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def pairs(size, angle, seed=0):
    """Unit vectors at an exact angle, and the unit tangent vectors that lead from the first to the second."""
    x, v = units(size, seed=seed), units(size, seed=seed + 1)
    for _ in range(2):  # once leaves rounding errors where v is nearly parallel to x
        v = v - (v * x).sum(-1, keepdim=True) * x
        v = v / v.norm(dim=-1, keepdim=True)
    return x, math.cos(angle) * x + math.sin(angle) * v, v


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("angle", [1e-12, 1e-6, 1e-3, 1e-2, 0.05, 0.1, 1.0, math.pi / 2, 3.0, math.pi - 1e-3])
def test_log_and_exp_at_known_angles_in_float64(size, angle):
    x, y, v = pairs(size, angle)
    # The direction is known to the rounding of x and y over the sine of the angle.
    tolerance = 4e-15 / math.sin(angle) + 4e-15
    torch.testing.assert_close(sphere.log(x, y) / angle, v, atol=tolerance, rtol=0)
    torch.testing.assert_close(sphere.exp(x, angle * v), y, atol=1e-15 * size**0.5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("angle", [1e-3, 1e-2, 0.07, 0.3, 2.0, 3.0, math.pi - 1e-3])
def test_angles_in_float32(size, angle):
    x, y, _ = pairs(size, angle)
    x, y = x.float(), y.float()
    exact = torch.full((len(x),), angle)
    torch.testing.assert_close(sphere.log(x, y).norm(dim=-1), exact, rtol=1e-3 if angle < 0.01 else 2e-5, atol=0)
    measured = sphere.pairwise_angles(x[:, None], y[:, None]).squeeze()
    torch.testing.assert_close(measured, exact, rtol=1e-3 if angle < 0.01 else 2e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-5, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6, math.pi])
def test_exp_undoes_log_and_gradients_are_finite(dtype, size, angle):
    x, y, _ = pairs(size, angle)
    x, y = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
    v = sphere.log(x, y)
    eps = torch.finfo(dtype).eps
    assert ((v * x).sum(-1).abs() <= 64 * eps).all()
    z = sphere.exp(x, v)
    torch.testing.assert_close(z, y, atol=64 * eps, rtol=0)
    for value in (v.square().sum(), z.sum(), sphere.exp(x, 0.5 * v).sum()):
        for gradient in torch.autograd.grad(value, (x, y), retain_graph=True):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_antipodes_take_a_fixed_direction_of_length_pi(dtype):
    x = units(5).to(dtype)
    v = sphere.log(x, -x)
    torch.testing.assert_close(v.norm(dim=-1), torch.full((len(x),), math.pi, dtype=dtype))
    assert torch.equal(v, sphere.log(x, -x))
    assert torch.equal(v[3:4], sphere.log(x[3:4], -x[3:4]))


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.5])
def test_gradients_near_coincidence_are_right(angle):
    x, y, _ = pairs(4, angle)
    x, y = x[0], y[0]
    # d log_x(y) / dy at y = x is the projection to the tangent space.
    jacobian = torch.func.jacrev(sphere.log, argnums=1)(x, y)
    if angle < 1e-3:
        torch.testing.assert_close(jacobian, torch.eye(4).double() - torch.outer(x, x), atol=1e-6, rtol=0)
    torch.testing.assert_close(jacobian, torch.func.jacfwd(sphere.log, argnums=1)(x, y))
    step = 1e-5 * torch.eye(4).double()
    numeric = (sphere.log(x, y + step) - sphere.log(x, y - step)).T / 2e-5
    torch.testing.assert_close(jacobian, numeric, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_series_join_the_closed_forms(dtype):
    edge = torch.finfo(dtype).eps ** (1 / 6)
    x, _, v = pairs(6, 1.0)
    x, v = x.to(dtype), v.to(dtype)
    for factor in (1 - 1e-3, 1 + 1e-3):
        length = edge * factor
        y = sphere.exp(x, length * v)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            y.double(), math.cos(length) * x.double() + math.sin(length) * v.double(), atol=8 * eps, rtol=0
        )
        torch.testing.assert_close(sphere.log(x, y), length * v, atol=16 * eps, rtol=0)


def test_zero_and_vanishing_vectors_have_a_direction():
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e-30, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0]], requires_grad=True)
    unit, norm = sphere.direction(x)
    assert torch.equal(norm[:, 0], torch.tensor([0.0, 0.0, 5.0]))
    assert torch.equal(unit[:2], torch.full((2, 4), 0.5))
    unit.sum().backward()
    assert x.grad.isfinite().all()
