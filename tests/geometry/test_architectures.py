"""The canonical form of networks of every structure: exact, lossless, unique, equivariant."""

import re

import pytest
import torch
from architectures import transformer
from scalable_networks import SCALABLE, build, change, draw, outputs, pixels
from torch import nn

from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.weightspace import WeightSpace, batch_statistics, mlp
from wsflow.weightspace.symmetry import random_permutations, random_scales


@pytest.fixture(scope="module", params=SCALABLE)
def space(request):
    return build(request.param)


@pytest.fixture
def geometry(space):
    return Geometric(space)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
def test_decode_gives_back_the_function(geometry, dtype, tolerance):
    space = geometry.space
    theta = draw(space).to(dtype)
    x = geometry.encode(theta)
    assert x.dtype == dtype
    assert x.shape == (3, geometry.dim + space.full_dim - space.dim)
    assert change(space, theta, geometry.decode(x)) < tolerance


def test_is_idempotent(geometry):
    x = geometry.encode(draw(geometry.space))
    torch.testing.assert_close(geometry.encode(geometry.decode(x)), x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(geometry.project(x), x, rtol=1e-12, atol=1e-14)


def test_rescaled_networks_have_one_form(geometry):
    space = geometry.space
    theta = draw(space)
    scales = [s.double() for s in random_scales(space, len(theta), torch.Generator().manual_seed(1))]
    torch.testing.assert_close(geometry.encode(space.rescale(theta, scales)), geometry.encode(theta))


def test_commutes_with_permutations(geometry):
    space = geometry.space
    theta, d = draw(space), space.dim
    perms = random_permutations(space, len(theta), torch.Generator().manual_seed(1))
    x, moved = geometry.encode(theta), geometry.encode(space.permute(theta, perms))
    weights = torch.cat([x[:, :d], x[:, geometry.dim :]], dim=1)
    torch.testing.assert_close(torch.cat([moved[:, :d], moved[:, geometry.dim :]], 1), space.permute(weights, perms))
    torch.testing.assert_close(moved[:, d : geometry.dim], x[:, d : geometry.dim])


def test_the_short_form_is_the_same_point(geometry):
    space = geometry.space
    theta = draw(space)
    short = geometry.encode(theta[:, : space.dim])
    assert short.shape == (3, geometry.dim)
    assert torch.equal(short, geometry.encode(theta)[:, : geometry.dim])
    assert geometry.decode(short).shape == (3, space.dim)


@pytest.mark.parametrize("name", ["cnn_batch_norm", "mobile", "dense", "resnet", "pre_activated"])
def test_recomputed_statistics_give_back_the_function_as_far_as_eps_lets_them(name):
    for eps, tolerance in [(1e-5, 1e-2), (1e-12, 1e-8)]:
        space = build(name, eps)
        geometry, x = Geometric(space), pixels(space, 20)
        theta = draw(space)[:, : space.dim]
        decoded = geometry.decode(geometry.encode(theta))
        before, after = batch_statistics(space, theta, x), batch_statistics(space, decoded, x)
        assert change(space, before, after) < tolerance


def test_points_and_tangents_stay_on_the_geometry(geometry, generator):
    x, y = geometry.encode(draw(geometry.space, 4)[:, : geometry.space.dim]).split(2)
    v = geometry.log(x, y)
    torch.testing.assert_close(geometry.tangent(x, v), v)
    torch.testing.assert_close(geometry.exp(x, v), y)
    z = geometry.interpolate(x, y, torch.tensor([0.3, 0.7], dtype=torch.float64))
    torch.testing.assert_close(geometry.project(z), z)
    manifold = geometry.to_geoopt()
    assert manifold.n_elements == geometry.dim
    torch.testing.assert_close(manifold.logmap(x[:, geometry.order], y[:, geometry.order]), v[:, geometry.order])
    straight = Normalized(geometry.space)
    assert torch.equal(straight.encode(draw(geometry.space)), geometry.encode(draw(geometry.space)))
    assert len(set(geometry.factors)) == len(geometry.factors)


def test_a_radius_keeps_the_labels(space):
    geometry, theta = Geometric(space, keep_scale=False), draw(space)
    assert geometry.dim == space.dim
    before, after = outputs(space, theta), outputs(space, geometry.decode(geometry.encode(theta)))
    widths = [group.size for group in space.groups if group.role == "output"]
    cuts = [5 * width for width in widths]
    for a, b, width in zip(before.split(cuts, 1), after.split(cuts, 1), widths, strict=True):
        assert torch.equal(a.view(3, 5, width).argmax(-1), b.view(3, 5, width).argmax(-1))


def test_gradients_of_encode(space):
    theta = draw(space, 1).requires_grad_()
    geometry = Geometric(space)
    weight = torch.randn(geometry.encode(theta).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = (geometry.encode(theta) * weight).sum()
    (gradient,) = torch.autograd.grad(value, theta)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        step = 1e-6 * direction
        numeric = ((geometry.encode(theta + step) - geometry.encode(theta - step)) * weight).sum() / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-5)


SHAPES = {
    "cnn": ((4, 27), (5, 36), (1, 240)),
    "cnn_batch_norm": ((4, 27), (4, 2), (5, 36), (5, 2), (1, 240)),
    "mobile": ((6, 3), (6, 9), (6, 2), (4, 6), (4, 2), (1, 12)),
    "kernels": ((6, 3), (6, 9), (1, 18)),
    "stream": ((4, 27), (5, 36), (1, 12)),
    "layer_norm": ((4, 2), (1, 8)),
    "layer_norm_no_eps": ((1, 20), (4, 2), (1, 8)),
    "group_norm_no_eps": ((3, 54), (6, 2), (1, 18)),
    "heads": ((6, 5), (1, 24), (1, 12)),
    "tanh": ((1, 6),),
    "last_norm": ((4, 5), (3, 4)),
    "branches": ((4, 12), (5, 27 + 16), (1, 10)),
    "resnet_two_blocks": ((4, 27), (4, 6), (4, 36), (4, 2), (4, 36), (4, 36), (4, 2), (4, 36)),
}


@pytest.mark.parametrize(("name", "shapes"), SHAPES.items(), ids=SHAPES.keys())
def test_every_filter_has_a_sphere(name, shapes):
    found = Geometric(build(name)).form.product.shapes
    assert found[: len(shapes)] == shapes
    if name != "resnet_two_blocks":
        assert len(found) == len(shapes)


def test_a_residual_stream_is_normalised_where_it_starts():
    space = build("stream")
    x = Geometric(space).encode(draw(space))
    named = space.unflatten(x[:, : space.dim])
    torch.testing.assert_close(named["stem.weight"].flatten(2).norm(dim=-1), torch.ones(3, 4).double())
    assert (named["down.weight"].flatten(2).norm(dim=-1) - 1).abs().min() > 1e-3


def test_signs_make_the_largest_incoming_weight_positive():
    space = WeightSpace.from_module(mlp([5, 4, 3, 2], activation="tanh").double(), output_activation="identity")
    theta = draw(space)
    x = Geometric(space).encode(theta)
    assert torch.equal(x.abs(), theta.abs())
    for group in space.hidden:
        rows = x[:, space.incoming(group.name)]
        assert (rows.gather(-1, rows.abs().argmax(-1, keepdim=True)) > 0).all()


def test_signs_of_ties_and_of_zero_weights_do_not_depend_on_the_order():
    space = WeightSpace.from_module(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    theta = draw(space, 1)
    named = space.unflatten(theta)
    named["0.weight"].copy_(torch.tensor([[[1.0, -1.0], [2.0, -2.0], [0.0, 0.0], [0.0, 0.0]]]))
    named["0.bias"].copy_(torch.tensor([[-3.0, 2.0, -1.0, 0.0]]))
    x = space.unflatten(Geometric(space).encode(theta)[:, : space.dim])
    assert x["0.bias"].tolist() == [[3.0, 2.0, 1.0, 0.0]]
    assert x["0.weight"].tolist() == [[[-1.0, 1.0], [2.0, -2.0], [0.0, 0.0], [0.0, 0.0]]]


def test_heads_have_a_scale_each():
    space = build("heads")
    geometry = Geometric(space)
    assert geometry.dim == space.dim + 2
    assert geometry.factors[-2:] == ("log_scale:output", "log_scale:output2")
    theta = draw(space)
    norms = [space.unflatten(theta)[f"{name}.weight"].flatten(1) for name in ("fine", "coarse")]
    hidden = space.unflatten(theta)["body.weight"].norm(dim=-1)[:, None]
    for i, part in enumerate(norms):
        scale = (part.view(3, -1, 6) * hidden).flatten(1).norm(dim=1)
        torch.testing.assert_close(geometry.encode(theta)[:, space.dim + i].exp(), scale)


REFUSED = {
    "attention": (transformer, (3, 8, 8), r"group 'hidden\d' between '.*in_proj_weight'.*invertible.*Euclidean"),
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        (5,),
        r"group 'hidden1' between '0.weight', '1.weight' has no nonlinearity",
    ),
}


@pytest.mark.parametrize(("make", "shape", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("cls", [Geometric, Normalized])
def test_full_linear_symmetries_are_refused(cls, make, shape, message):
    space = WeightSpace.from_module(make(), torch.randn(2, *shape), check=False)
    with pytest.raises(ValueError, match=message):
        cls(space)
    assert Euclidean(space).dim == space.dim


def unbalanced(seed=0, dtype=torch.float64):
    """Networks with six hidden layers of 50 whose weights reach 30, layers and neurons of very different sizes."""
    space = WeightSpace.from_module(mlp([20, *[50] * 6, 4]).double())
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(8, space.dim, generator=generator, dtype=torch.float64).clamp(-3, 3)
    for tensor in space.tensors:
        if "weight" in tensor.name:
            rows = torch.rand(8, tensor.shape[0], 1, generator=generator, dtype=torch.float64) * 4 - 3
            part = theta[:, tensor.slice].view(8, *tensor.shape)
            part *= 10**rows
    return space, theta.to(dtype)


@pytest.mark.parametrize("cls", [Geometric, Normalized])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
def test_unbalanced_networks_keep_their_function(cls, dtype, tolerance):
    space, theta = unbalanced(dtype=dtype)
    assert 29 < theta.abs().max() <= 30
    geometry = cls(space)
    x = geometry.encode(theta)
    assert x.isfinite().all()
    decoded = geometry.decode(x)
    assert change(space, theta, decoded) < tolerance
    assert change(space, theta.double(), decoded.double()) < tolerance
    torch.testing.assert_close(geometry.encode(decoded), x, rtol=10 * tolerance, atol=tolerance * 1e-2)


def test_encoding_many_at_once_changes_nothing(monkeypatch):
    space = build("cnn_batch_norm")
    geometry, theta = Geometric(space), draw(space, 5)
    whole = geometry.encode(theta)
    monkeypatch.setattr("wsflow.geometry.canonical.CHUNK", 2 * space.dim)
    assert torch.equal(geometry.encode(theta), whole)
    assert geometry.encode(theta[:0]).shape == (0, whole.shape[1])


def test_scales_change_the_point_of_other_networks(space):
    """The form is no constant: networks with other functions have other forms."""
    x = Geometric(space).encode(draw(space))
    assert (x[0] - x[1]).abs().max() > 1e-2
    names = [re.sub(r"\[\d+\]$", "", name) for name in Geometric(space).factors]
    assert len(names) >= len(space.tensors) - 2
