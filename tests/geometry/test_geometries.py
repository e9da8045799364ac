import math

import pytest
import torch

from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.geometry import base as geometry_base
from wsflow.weightspace import WeightSpace, mlp

CLASSIFIER = WeightSpace.from_module(mlp([5, 4, 3, 2]))
REGRESSION = WeightSpace.from_module(mlp([6, 4, 1]), output_activation="identity")
GEOMETRIES = {
    "euclidean": Euclidean(CLASSIFIER),
    "normalized": Normalized(CLASSIFIER),
    "geometric": Geometric(CLASSIFIER),
    "geometric-radius": Geometric(CLASSIFIER, keep_scale=False),
    "normalized-regression": Normalized(REGRESSION),
    "geometric-regression": Geometric(REGRESSION),
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.fixture(params=GEOMETRIES)
def geometry(request):
    return GEOMETRIES[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=[0, 1], ids=["seed0", "seed1"])
def generator(request):
    return torch.Generator().manual_seed(request.param)


def weights(geometry, n, generator, dtype=torch.float64):
    return torch.randn(n, geometry.space.dim, generator=generator, dtype=torch.float64).to(dtype)


def points(geometry, n, generator, dtype=torch.float64):
    return geometry.encode(weights(geometry, n, generator, dtype))


def vectors(geometry, x, generator):
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    return geometry.tangent(x, v)


def test_encoded_points_lie_on_the_geometry(geometry, dtype, generator):
    x = points(geometry, 8, generator, dtype)
    assert x.shape == (8, geometry.dim)
    assert x.dtype == dtype
    torch.testing.assert_close(geometry.project(x), x, atol=TOLERANCE[dtype], rtol=0)


def test_project_is_idempotent_and_finishes(geometry, dtype, generator):
    x = torch.randn(8, geometry.dim, generator=generator, dtype=torch.float64).to(dtype)
    once = geometry.project(x)
    torch.testing.assert_close(geometry.project(once), once, atol=TOLERANCE[dtype], rtol=0)
    assert torch.equal(geometry.finish(x), once)


def test_tangent_is_a_projection(geometry, dtype, generator):
    x = points(geometry, 8, generator, dtype)
    u, v = vectors(geometry, x, generator), torch.randn(x.shape, generator=generator).to(x)
    tolerance = 10 * TOLERANCE[dtype]
    torch.testing.assert_close(geometry.tangent(x, u), u, atol=tolerance, rtol=0)
    # Orthogonal: what is taken away has no inner product with what is tangent.
    gone = geometry.inner(x, u, v - geometry.tangent(x, v))
    torch.testing.assert_close(gone, torch.zeros_like(gone), atol=10 * tolerance, rtol=0)


def test_exp_stays_on_the_geometry_and_undoes_log(geometry, dtype, generator):
    x, y = points(geometry, 8, generator, dtype), points(geometry, 8, generator, dtype)
    v = geometry.log(x, y)
    tolerance = TOLERANCE[dtype] * (1 + float(torch.maximum(x.abs(), y.abs()).max()))
    torch.testing.assert_close(geometry.tangent(x, v), v, atol=2 * tolerance, rtol=0)
    torch.testing.assert_close(geometry.exp(x, v), y, atol=2 * tolerance, rtol=0)
    if not isinstance(geometry, Normalized):
        z = geometry.exp(x, vectors(geometry, x, generator))
        torch.testing.assert_close(geometry.project(z), z, atol=tolerance, rtol=0)


def test_path_starts_at_x0_ends_at_x1_and_moves_at_constant_speed(geometry, dtype, generator):
    x0, x1 = points(geometry, 8, generator, dtype), points(geometry, 8, generator, dtype)
    tolerance = 2 * TOLERANCE[dtype] * (1 + float(torch.maximum(x0.abs(), x1.abs()).max()))
    torch.testing.assert_close(geometry.interpolate(x0, x1, x0.new_zeros(8)), x0, atol=tolerance, rtol=0)
    torch.testing.assert_close(geometry.interpolate(x0, x1, x0.new_ones(8)), x1, atol=tolerance, rtol=0)
    t = torch.linspace(0.1, 0.9, 8, dtype=dtype)
    part, whole = geometry.distance(x0, geometry.interpolate(x0, x1, t)), geometry.distance(x0, x1)
    torch.testing.assert_close(part, t * whole, atol=10 * tolerance, rtol=0)


def test_velocity_is_the_derivative_of_the_path(geometry, dtype, generator):
    x0, x1 = points(geometry, 8, generator, dtype), points(geometry, 8, generator, dtype)
    t = torch.linspace(0.0, 0.95, 8, dtype=dtype)
    x_t, u_t = torch.func.jvp(lambda t: geometry.interpolate(x0, x1, t), (t,), (torch.ones_like(t),))
    u = geometry.velocity(x_t, x1, t)
    torch.testing.assert_close(u, u_t, atol=2e3 * TOLERANCE[dtype], rtol=1e-5)
    step = 1e-6
    if dtype == torch.float64:
        numeric = (geometry.interpolate(x0, x1, t + step) - geometry.interpolate(x0, x1, t - step)) / (2 * step)
        torch.testing.assert_close(u, numeric, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(geometry.tangent(x_t, u), u, atol=1e3 * TOLERANCE[dtype], rtol=0)


def test_velocity_is_finite_at_the_end(geometry, dtype, generator):
    x1 = points(geometry, 4, generator, dtype)
    assert geometry.velocity(x1, x1, torch.ones(4, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("angle", [0.0, 1e-7, math.pi - 1e-5, math.pi], ids=str)
def test_gradients_are_finite_at_equal_and_near_antipodal_points(geometry, dtype, generator, angle):
    x = points(geometry, 4, generator, dtype)
    v = vectors(geometry, x, generator)
    if isinstance(geometry, Geometric):
        v = geometry.form.product.join(
            [part / part.norm(dim=-1, keepdim=True) for part in geometry.form.product.split(v)[0]],
            geometry.form.product.split(v)[1],
        )
    x, y = x.requires_grad_(), geometry.exp(x, angle * v).detach().requires_grad_()
    t = torch.full((4,), 0.5, dtype=dtype)
    values = [
        geometry.log(x, y).square().sum(),
        geometry.distance(x, y).sum(),
        geometry.interpolate(x, y, t).sum(),
        geometry.velocity(x, y, t).square().sum(),
        geometry.pairwise_distance(x, y).sum(),
    ]
    for value in values:
        for gradient in torch.autograd.grad(value, (x, y), retain_graph=True):
            assert gradient.isfinite().all()


def test_distance_is_symmetric_and_zero_on_itself(geometry, dtype, generator):
    x, y = points(geometry, 8, generator, dtype), points(geometry, 8, generator, dtype)
    torch.testing.assert_close(geometry.distance(x, y), geometry.distance(y, x))
    assert torch.equal(geometry.distance(x, x), torch.zeros(8, dtype=dtype))
    assert (geometry.distance(x, y) > 0.1).all()


@pytest.mark.parametrize("elements", [1, 100, 2**23])
def test_pairwise_distances_equal_distances(geometry, dtype, generator, elements, monkeypatch):
    monkeypatch.setattr(geometry_base, "CHUNK", elements)
    x, y = points(geometry, 7, generator, dtype), points(geometry, 3, generator, dtype)
    expected = torch.stack([geometry.distance(x, row.expand_as(x)) for row in y], dim=1)
    torch.testing.assert_close(geometry.pairwise_distance(x, y), expected, atol=TOLERANCE[dtype], rtol=1e-5)


def test_a_tiny_distance_is_right_in_float32(geometry, generator):
    x = points(geometry, 8, generator)
    v = vectors(geometry, x, generator)
    v = 1e-3 * v / geometry.inner(x, v, v).sqrt()[:, None]
    # Coordinates of order one, so that float32 can tell the two points apart to the digits asked for.
    lines = torch.zeros(geometry.dim, dtype=torch.bool)
    if isinstance(geometry, Geometric):
        spheres, rest = geometry.form.product.split(torch.ones(geometry.dim))
        lines = geometry.form.product.join([0 * s for s in spheres], rest) > 0
    x = torch.where(lines, x.clamp(-1, 1), x)
    y = geometry.exp(x, v)
    exact = torch.full((8,), 1e-3)
    torch.testing.assert_close(geometry.distance(x.float(), y.float()), exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(geometry.pairwise_distance(x.float(), y.float()).diag(), exact, rtol=1e-3, atol=0)


def test_inner_weighs_factors(geometry, generator):
    x = points(geometry, 3, generator)
    u, v = vectors(geometry, x, generator), vectors(geometry, x, generator)
    count = len(geometry.factors)
    assert len(set(geometry.factors)) == count
    ones = [geometry.inner(x, u, v, weight) for weight in torch.eye(count, dtype=u.dtype)]
    torch.testing.assert_close(torch.stack(ones).sum(0), geometry.inner(x, u, v))
    assert all(part.abs().min() > 0 for part in ones)
    weight = torch.rand(count, generator=generator, dtype=u.dtype)
    expected = sum(w * part for w, part in zip(weight, ones, strict=True))
    torch.testing.assert_close(geometry.inner(x, u, v, weight), expected)
    with pytest.raises(ValueError, match=f"{count} factors"):
        geometry.inner(x, u, v, torch.ones(count + 1))


def test_exp_and_log_agree_with_geoopt(geometry, generator):
    manifold = geometry.to_geoopt()
    order = geometry.order if isinstance(geometry, Geometric) else torch.arange(geometry.dim)
    x, y = points(geometry, 16, generator), points(geometry, 16, generator)
    v = vectors(geometry, x, generator)
    if isinstance(geometry, Geometric):
        angles = [
            torch.linalg.vector_norm(part, dim=-1).min() for part in geometry.form.product.split(geometry.log(x, y))[0]
        ]
        assert min(angles) > 0.1  # below, geoopt's clamped cosine is the less exact one
    assert manifold.n_elements == geometry.dim
    torch.testing.assert_close(
        manifold.expmap(x[:, order], v[:, order]), geometry.exp(x, v)[:, order], rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        manifold.logmap(x[:, order], y[:, order]), geometry.log(x, y)[:, order], rtol=1e-6, atol=1e-6
    )
    length = manifold.logmap(x[:, order], y[:, order]).norm(dim=1)
    torch.testing.assert_close(geometry.distance(x, y), length, rtol=1e-6, atol=0)


def test_a_checkpoint_holds_nothing_of_a_geometry(geometry):
    assert list(geometry.state_dict()) == []
    assert all(buffer.dtype == torch.long for buffer in geometry.buffers())


def test_geometric_spheres_are_the_neurons_and_the_last_layer():
    geometry = GEOMETRIES["geometric"]
    neurons = [f"hidden1[{i}]" for i in range(4)] + [f"hidden2[{i}]" for i in range(3)]
    assert geometry.factors == (*neurons, "output", "1.bias", "3.bias", "5.bias", "log_scale")
    assert geometry.form.product.shapes == ((4, 5), (3, 4), (1, 6))
    assert GEOMETRIES["geometric-regression"].factors == (*neurons[:4], "1.bias", "3.weight", "3.bias")


def test_distances_of_nan_are_nan(geometry, dtype, generator):
    x, y = points(geometry, 2, generator, dtype), points(geometry, 3, generator, dtype)
    for coordinate in range(geometry.dim):
        wrong = x.clone()
        wrong[1, coordinate] = math.nan
        assert geometry.distance(wrong, y[:2]).isnan().tolist() == [False, True]
        assert geometry.pairwise_distance(wrong, y).isnan().tolist() == [[False] * 3, [True] * 3]
        assert geometry.pairwise_distance(y, wrong).isnan().tolist() == [[False, True]] * 3
