"""Gradient-informed fields: the gradient itself, exact equivariance, derivatives, and data in checkpoints."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import describe
from planted_task import Small, networks
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsflow.fields import GradientInformed, MLPField, NeuronTransformer, SelfConditioned
from wsflow.flow import PowerGrid
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


def made(space: WeightSpace, extra: int = 0, points: int = 12, field=FIELD, **arguments) -> GradientInformed:
    informed = shuffled(GradientInformed(space, extra, field=field, points=points, **arguments))
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
    torch.testing.assert_close(field.gradient(theta, torch.zeros(3)), expected)


@pytest.mark.parametrize("geometry", [Euclidean, Normalized, Geometric])
def test_in_a_geometry_it_is_the_tangent_gradient_by_the_coordinates(geometry):
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    place = geometry(space).double()
    field = made(space, place.dim - space.dim).double()
    field.place(place)
    x = place.encode(torch.randn(2, space.dim, generator=generator(), dtype=torch.float64))
    gradient = field._raw_gradient(x, torch.zeros(2))
    torch.testing.assert_close(place.tangent(x, gradient), gradient)
    step = 1e-6 * place.tangent(x, torch.randn(x.shape, generator=generator(), dtype=torch.float64))

    def losses(state):
        return field._losses(state, field.inputs, field.targets)

    change = losses(place.exp(x, step)) - losses(place.exp(x, -step))
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
    raw = field._raw_gradient(states, torch.zeros(6))
    torch.testing.assert_close(field.gradient_scale, raw.square().mean(1).sqrt().mean())
    first = space.tensors[0].slice
    torch.testing.assert_close(field.field.output_scale[0], 3 * states[:, first].square().mean().sqrt())
    for scale, seen in zip(field.vector_scale, (states, field.gradient(states, torch.zeros(6))), strict=True):
        torch.testing.assert_close(scale[0], seen[:, first].square().mean().sqrt())
    torch.testing.assert_close(field.field.input_scale, torch.ones_like(field.field.input_scale))


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


def test_each_part_of_the_data_is_seen_in_its_time():
    """Whether all networks are at one time (as in sampling) or each at its own (as in training)."""
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    field = made(space, points=4, parts=3, power=2.0).double()
    assert len(field.inputs) == 12
    x = torch.randn(6, space.dim, generator=generator(), dtype=torch.float64)
    times = torch.tensor([0.0, 0.1, 1 / 9, 0.4, 4 / 9, 1.0], dtype=torch.float64)
    parts = [0, 0, 1, 1, 2, 2]
    apart = field.gradient(x, times)
    for row, time, part in zip(range(6), times, parts, strict=True):
        alone = made(space, points=4).double()
        alone.inputs, alone.targets = (data[4 * part : 4 * part + 4] for data in (field.inputs, field.targets))
        torch.testing.assert_close(apart[row], alone.gradient(x, times)[row])
        torch.testing.assert_close(apart[row], field.gradient(x, time.expand(6))[row])
    inputs, targets = (data.unflatten(0, (3, 4))[parts] for data in (field.inputs, field.targets))
    raw = field._gradients(x, inputs, targets, apart=True)  # as on a GPU
    torch.testing.assert_close(raw, field._raw_gradient(x, times))


def test_parts_of_a_power_grid_change_with_its_steps():
    field = made(WeightSpace.from_description(describe([5, 4, 2])), points=1, parts=16, power=3.0)
    for dtype in (torch.float32, torch.float64):
        times = PowerGrid(3.0).times(16)[:-1].to(dtype)
        assert torch.equal(field._part(times), torch.arange(16))


@pytest.mark.parametrize("geometry", [Euclidean, Geometric])
def test_filters_follow_the_second_moment_of_the_inputs(geometry):
    space = WeightSpace.from_description(describe([5, 4, 3, 2]))
    place = geometry(space).double()
    field = made(space, place.dim - space.dim, damping=[0.5, 0.01]).double()
    field.place(place)
    x = place.encode(torch.randn(3, space.dim, generator=generator(), dtype=torch.float64))
    t = torch.zeros(3)
    state, gradient, *views = field._seen(x, t)
    assert torch.equal(state, x)
    inputs = torch.randn(20, 5, generator=generator()).double()
    moment = inputs.T @ inputs / 20
    for damping, view in zip([0.5, 0.01], views, strict=True):
        level = damping * moment.trace() / 5 * torch.eye(5, dtype=torch.float64)
        expected = gradient.clone()
        first = space.blocks[0].slice
        rows = gradient[:, first].view(3, 4, 5) @ torch.linalg.inv(moment + level) @ level
        expected[:, first] = rows.flatten(1)
        torch.testing.assert_close(view, place.tangent(x, expected), rtol=1e-5, atol=1e-6)


def test_filters_keep_equivariance_and_derivatives():
    space = WeightSpace.from_description(describe([3, 4, 2], activation="tanh"))
    field = made(space, damping=[0.1], points=4, parts=2).double()
    x, v = torch.randn(2, 2, space.dim, generator=generator(), dtype=torch.float64).unbind()
    t = torch.tensor([0.4, 0.7]).double()
    perms = random_permutations(space, 2, generator())
    moved = field(space.permute(x, perms), t)
    torch.testing.assert_close(moved, space.permute(field(x, t), perms), atol=1e-9, rtol=1e-7)
    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(lambda y: field(y, t), (x,), (v,))
    expected = (field(x + 1e-6 * v, t) - field(x - 1e-6 * v, t)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_neuron_can_be_moved_along_its_whole_gradient():
    """Targets that are multiples of the gradient have more directions than a token has numbers."""
    space = WeightSpace.from_description(describe([40, 4, 2]))
    field = made(space, field=partial(NeuronTransformer, width=8, depth=1, heads=2), points=20)
    x, t = torch.randn(8, space.dim, generator=generator()), torch.zeros(8)
    with torch.no_grad():
        for parameter in field.field.write.parameters():
            parameter.zero_()
        field.field.write[0].by_target.bias.copy_(torch.tensor([0.0, 3.0]))
        output = field(x, t)
    first = space.blocks[0].slice
    torch.testing.assert_close(output[:, first], 3 * field.gradient(x, t)[:, first])


def test_a_checkpoint_carries_parts_and_filters():
    arguments = {"field": partial(GradientInformed, field=FIELD, points=3, parts=4, damping=[0.1])}
    module = FlowMatchingModule(dict(Small.network), **arguments)
    module.field.attach(Small())
    shuffled(module.field)
    other = FlowMatchingModule(dict(Small.network), **arguments)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.sample(range(3)), module.sample(range(3)))


def test_data_are_kept_where_no_task_has_other():
    field = made(WeightSpace.from_description(describe([5, 4, 2])), points=3)
    field.attach(None)
    assert len(field.inputs) == 3


def test_a_self_conditioned_field_within_is_refused_by_training():
    inner = partial(SelfConditioned, field=partial(MLPField, width=8, depth=1))
    with pytest.raises(ValueError, match="does not give SelfConditioned, the field within it, the estimate"):
        made(WeightSpace.from_description(describe([5, 4, 2])), field=inner)


def test_bad_parts_and_filters():
    space = WeightSpace.from_description(describe([5, 4, 2]))
    with pytest.raises(ValueError, match="need 300 train data points, and the task has 20"):
        made(space, points=100, parts=3)
    with pytest.raises(ValueError, match="every damping must be positive"):
        made(space, damping=[0.1, 0.0])
    with pytest.raises(ValueError, match="parts at least 1"):
        made(space, parts=0)
    convolutional = WeightSpace.from_description(CNN)
    with pytest.raises(ValueError, match="no linear layer reads the inputs"):
        made(convolutional, damping=[0.1])
    with pytest.raises(ValueError, match="batch norm"):
        made(convolutional, parts=2)
