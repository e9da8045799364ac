"""Self-conditioning: pairs of networks, exact equivariance, and the estimate's way through training and sampling."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import describe
from graph_spaces import joined
from planted_task import Small, networks

from wsflow.fields import Endpoint, MLPField, RelationalTransformer, SelfConditioned, Velocity, follow, predict
from wsflow.fields.stacks import stacked_space
from wsflow.flow import Euler, Sampler
from wsflow.geometry import Euclidean, Geometric
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations

FIELD = partial(RelationalTransformer, width=16, edge_width=4, depth=2)
CNN = {
    "class_path": "wsflow.weightspace.cnn",
    "init_args": {
        "channels": [3, 4],
        "kernels": [3, 3],
        "strides": [2, 2],
        "paddings": [0, 1],
        "input_shape": [2, 8, 8],
        "classes": 3,
        "batch_norm": True,
    },
    "input_shape": [2, 8, 8],
}
SPACES = {"mlp": describe([5, 4, 3, 2]), "cnn": CNN}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def random_field(space: WeightSpace, extra: int = 0, field=FIELD, **arguments) -> SelfConditioned:
    made = SelfConditioned(space, extra, field=field, **arguments)
    source = generator()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    return made


class Mirror(torch.nn.Module):
    """A field that gives back what it is shown."""

    def forward(self, x, t, condition=None):
        return x


@pytest.fixture(params=[*SPACES, "joined"])
def any_space(request) -> WeightSpace:
    """Of these, the last alone has a tensor whose pieces interleave."""
    return joined() if request.param == "joined" else WeightSpace.from_description(SPACES[request.param])


def test_a_pair_holds_both_networks(any_space):
    pairs, field = stacked_space(any_space, 2), random_field(any_space)
    x, y = torch.randn(2, 3, any_space.dim, generator=generator()).unbind()
    joined = field._ordered([x, y])
    for piece, wide in zip((*any_space.blocks, *any_space.vectors), (*pairs.blocks, *pairs.vectors), strict=True):
        assert torch.equal(wide.view(joined), torch.cat([piece.view(x), piece.view(y)], -1))
    # One permutation moves both.
    perms = random_permutations(any_space, 3, generator())
    moved = field._ordered([any_space.permute(x, perms), any_space.permute(y, perms)])
    assert torch.equal(pairs.permute(joined, perms), moved)


@pytest.mark.parametrize("extra", [0, 2])
def test_the_part_that_is_used_is_the_first_networks(any_space, extra):
    field = random_field(any_space, extra)
    x, y = torch.randn(2, 3, any_space.dim + extra, generator=generator()).unbind()
    field.field = Mirror()
    given = field._on_stack([x, y], torch.zeros(3), None)
    assert torch.equal(given, x / field.vector_scale[0][field._entry])


@pytest.mark.parametrize("extra", [0, 2])
def test_it_is_equivariant_in_state_and_estimate(any_space, extra):
    field = random_field(any_space, extra).double()
    x, estimate = torch.randn(2, 3, any_space.dim + extra, generator=generator(), dtype=torch.float64).unbind()
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    perms = random_permutations(any_space, 3, generator())

    def move(v):
        return torch.cat([any_space.permute(v[:, : any_space.dim], perms), v[:, any_space.dim :]], 1)

    output = field(x, t, None, estimate)
    torch.testing.assert_close(field(move(x), t, None, move(estimate)), move(output), atol=1e-10, rtol=0)
    assert (field(move(x), t, None, estimate) - move(output)).abs().max() > 1e-6
    assert (field(x, t) - output).abs().max() > 1e-3
    assert torch.equal(field(x, t), field(x, t, None, torch.zeros_like(x)))


def test_it_runs_on_another_width(space):
    field = random_field(space)
    wider = WeightSpace.from_description(describe([5, 6, 4, 2]))
    x = torch.randn(2, wider.dim, generator=generator())
    output = field.bind(wider)(x, torch.tensor([0.2, 0.4]), None, x + 1)
    assert output.shape == x.shape
    assert output.abs().max() > 0


def test_calibration_sets_the_inner_scales(space, theta):
    field = SelfConditioned(space, field=partial(MLPField, width=8, depth=1))
    states, targets = theta.float(), 3 * theta.float() + 1
    field.calibrate(states, targets)
    first = space.tensors[0].slice
    expected = states[:, first].square().mean().sqrt().expand(2)
    torch.testing.assert_close(field.vector_scale[:, 0], expected)
    torch.testing.assert_close(field.field.output_scale[0], targets[:, first].square().mean().sqrt())


@pytest.mark.parametrize("parametrization", [Velocity(), Endpoint()], ids=["velocity", "endpoint"])
@pytest.mark.parametrize("geometry", [Euclidean, Geometric], ids=["euclidean", "geometric"])
def test_the_estimate_goes_from_step_to_step(geometry, parametrization, space, theta):
    geometry = geometry(space)
    field = random_field(space, geometry.dim - space.dim).double()
    x = x0 = geometry.encode(theta)
    velocity = follow(field, parametrization, geometry)
    found = Sampler(Euler(), steps=4)(velocity, geometry, x0, singular_end=parametrization.singular_end)
    estimate = None
    for step in range(4):
        t = torch.full((7,), step / 4).double()
        output = field(x, t, None, estimate)
        estimate = parametrization.endpoint(output, geometry, x, t)
        x = geometry.exp(x, parametrization.velocity(output, geometry, x, t) / 4)
    torch.testing.assert_close(found, geometry.finish(x))
    again = Sampler(Euler(), steps=4)(follow(field, parametrization, geometry), geometry, x0)
    assert torch.equal(found, again)  # a new solution begins without an estimate


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_derivative_passes_the_estimate_and_all_pass_the_field(precision, space):
    """In bfloat16 autocast keeps weights that it cast; those of the first pass have no derivative."""
    field, geometry = random_field(space), Euclidean(space)
    x, t = torch.randn(4, space.dim, generator=generator()), torch.rand(4, generator=generator())
    with torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16):
        output = predict(field, Velocity(), geometry, x, t)
        found = torch.autograd.grad(output.square().mean(), list(field.parameters()), allow_unused=True)
        with torch.no_grad():
            end = Velocity().endpoint(field(x, t), geometry, x, t)
        torch.clear_autocast_cache()
        expected = torch.autograd.grad(
            field(x, t, None, end).square().mean(), list(field.parameters()), allow_unused=True
        )
    assert sum(grad is not None for grad in found) > 10
    for grad, other in zip(found, expected, strict=True):
        assert (grad is None) == (other is None)
        if grad is not None:
            torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_training_has_an_estimate_as_often_as_asked(probability):
    module = FlowMatchingModule(
        dict(Small.network), field=partial(SelfConditioned, field=FIELD, probability=probability)
    )
    source = generator()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=source)
    batch, with_estimate = networks(module.space), 0
    for seed in range(20):
        loss, _ = module.training_loss(batch, torch.Generator().manual_seed(seed))
        evaluated = module.loss(batch, torch.Generator().manual_seed(seed)).mean()
        with_estimate += torch.equal(loss, evaluated)
    assert with_estimate == {0.0: 0, 1.0: 20}.get(probability, with_estimate)
    assert 0 < with_estimate < 20 or probability != 0.5


def test_a_probability_out_of_range(space):
    with pytest.raises(ValueError, match="probability must lie in"):
        SelfConditioned(space, probability=1.5)
