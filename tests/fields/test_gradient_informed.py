"""Gradient-informed fields: the gradient itself, exact equivariance, derivatives, and data in checkpoints."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import describe
from planted_task import Small, networks
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsflow.fields import GradientInformed, MLPField, NeuronTransformer, SelfConditioned
from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations

FIELD = partial(NeuronTransformer, width=16, depth=2, heads=2)
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


class Data:
    """Train data of any shape."""

    has_data = True

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def data(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        assert split == "train"
        return self.inputs, self.targets


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def shuffled(field: torch.nn.Module) -> torch.nn.Module:
    source = generator()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    return field


def made(space: WeightSpace, extra: int = 0, points: int = 12, field=FIELD) -> GradientInformed:
    informed = shuffled(GradientInformed(space, extra, field=field, points=points))
    shape = space.input_shape or (space.groups[0].size,)
    inputs = torch.randn(20, *shape, generator=generator())
    classes = next(group.size for group in space.groups if group.role == "output")
    informed.attach(Data(inputs, torch.arange(20) % classes))
    return informed


@pytest.fixture(params=[describe([5, 4, 3, 2]), CNN], ids=["mlp", "cnn"])
def any_space(request) -> WeightSpace:
    return WeightSpace.from_description(request.param)


def test_it_sees_the_gradient_of_the_mean_loss():
    """Against one network at a time, by torch's own modules and backward."""
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    field = made(space).double()
    theta = torch.randn(3, space.dim, generator=generator(), dtype=torch.float64)
    rows = []
    for row in theta:
        network = space.to_module(row)
        torch.nn.functional.cross_entropy(network(field.inputs), field.targets).backward()
        rows.append(space.flatten({name: p.grad for name, p in network.named_parameters()}))
    raw = torch.stack(rows)
    field.gradient_scale.fill_(0.3)
    expected = raw / (raw.square().mean(1, keepdim=True).sqrt() * 0.3).sqrt()
    torch.testing.assert_close(field.gradient(theta), expected)


@pytest.mark.parametrize("geometry", [Euclidean, Normalized, Geometric])
def test_in_a_geometry_it_is_the_tangent_gradient_by_the_coordinates(geometry):
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    place = geometry(space).double()
    field = made(space, place.dim - space.dim).double()
    field.place(place)
    x = place.encode(torch.randn(2, space.dim, generator=generator(), dtype=torch.float64))
    gradient = field._raw_gradient(x)
    torch.testing.assert_close(place.tangent(x, gradient), gradient)
    step = 1e-6 * place.tangent(x, torch.randn(x.shape, generator=generator(), dtype=torch.float64))
    change = field._losses(place.exp(x, step)) - field._losses(place.exp(x, -step))
    torch.testing.assert_close(change, 2 * (gradient * step).sum(1), rtol=1e-4, atol=1e-12)


def test_it_is_equivariant(any_space):
    field = made(any_space).double()
    x = torch.randn(3, any_space.dim, generator=generator(), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    perms = random_permutations(any_space, 3, generator())
    output, moved = field(x, t), field(any_space.permute(x, perms), t)
    torch.testing.assert_close(moved, any_space.permute(output, perms), atol=1e-9, rtol=1e-7)
    assert (output - moved).abs().max() > 1e-6
    field.inputs = field.inputs.flip(0)  # the same data with other targets
    assert (field(x, t) - output).abs().max() > 1e-6


def test_its_derivative_passes_the_gradient():
    """The Jacobian of the whole, which a likelihood needs, against differences."""
    space = WeightSpace.from_description(describe([3, 2, 2], activation="tanh"))
    field = made(space).double()
    x = torch.randn(1, space.dim, generator=generator(), dtype=torch.float64)
    t, v = torch.tensor([0.4]).double(), torch.randn(1, space.dim, generator=generator(), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(lambda y: field(y, t), (x,), (v,))
    expected = (field(x + 1e-6 * v, t) - field(x - 1e-6 * v, t)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_calibration_gives_gradients_and_outputs_their_scales():
    space = WeightSpace.from_description(describe([5, 4, 2]))
    field = made(space, field=partial(MLPField, width=8, depth=1))
    states = torch.randn(6, space.dim, generator=generator())
    field.calibrate(states, 3 * states)
    raw = field._raw_gradient(states)
    torch.testing.assert_close(field.gradient_scale, raw.square().mean(1).sqrt().mean())
    first = space.tensors[0].slice
    torch.testing.assert_close(field.field.output_scale[0], 3 * states[:, first].square().mean().sqrt())
    seen = torch.cat([states[:, first], field.gradient(states)[:, first]]).square().mean().sqrt()
    torch.testing.assert_close(field.field.input_scale[0], seen)


def test_a_checkpoint_carries_the_data(tmp_path):
    arguments = {"field": partial(GradientInformed, field=FIELD, points=7)}
    module = FlowMatchingModule(dict(Small.network), **arguments)
    module.field.attach(Small())
    shuffled(module.field)
    other = FlowMatchingModule(dict(Small.network), **arguments)
    other.load_state_dict(module.state_dict())
    assert len(other.field.inputs) == 7
    assert torch.equal(other.sample(range(3)), module.sample(range(3)))
    loss, _ = module.training_loss(networks(module.space), generator())
    assert loss.isfinite()


def test_it_runs_on_another_width():
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    wider = WeightSpace.from_description(describe([5, 6, 4, 2]))
    x = torch.randn(2, wider.dim, generator=generator())
    assert made(space).bind(wider)(x, torch.tensor([0.2, 0.4])).shape == x.shape


def test_without_data():
    space = WeightSpace.from_description(describe([5, 4, 2]))
    field = GradientInformed(space, field=FIELD)
    with pytest.raises(ValueError, match="attach the base task before"):
        field(torch.zeros(2, space.dim), torch.zeros(2))
    with pytest.raises(ValueError, match="needs the train data of the base task, and there is none"):
        field.attach(None)
    with pytest.raises(ValueError, match="points must be at least 1"):
        GradientInformed(space, points=0)
    with pytest.raises(ValueError, match="no network"):
        SelfConditioned(space, field=GradientInformed)
