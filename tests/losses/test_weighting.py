"""Weighted flow losses: the same minimiser, the same symmetry, weights that are what they say."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import describe
from planted_task import Small, networks

from wsflow.fields import RelationalTransformer, Velocity
from wsflow.flow import PathSample, TrajectoryCoupling
from wsflow.geometry import Euclidean, Geometric, Normalized, PrincipalComponents
from wsflow.losses import Fisher, PerTensor, Weighting
from wsflow.losses import weighting as module
from wsflow.losses.weighting import neuron_means
from wsflow.module import FlowMatchingModule
from wsflow.tasks import Gaussians
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations

GEOMETRIES = {"euclidean": Euclidean, "normalized": Normalized, "geometric": Geometric}
WEIGHTINGS = {"per-tensor": PerTensor(), "root": PerTensor(0.5), "fisher": Fisher(networks=4, points=8)}


class Steep(Weighting):
    """Another weight for every coordinate."""

    def importance(self, geometry, x0, x1, task, generator):
        return torch.linspace(1, 9, geometry.dim)


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request, space):
    return request.param(space)


@pytest.fixture(params=[*WEIGHTINGS.values(), Steep()], ids=[*WEIGHTINGS, "steep"])
def weighting(request):
    return request.param


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def ends(geometry):
    """Starts, and networks whose last tensors have moved farther."""
    batch = networks(geometry.space, 9)
    step = torch.linspace(0.1, 3, geometry.space.dim) * torch.randn(batch.x1.shape, generator=generator())
    return geometry.encode(batch.start), geometry.encode(batch.start + step)


def test_the_minimiser_is_the_mean_of_the_targets(geometry, weighting):
    """At one state the best output is the mean velocity, however its coordinates are weighted."""
    x0, x1 = (x.double() for x in ends(geometry))
    weights = weighting(geometry, x0.float(), x1.float(), Small(), generator()).double()
    x = x0[:1].expand(9, -1)
    targets = geometry.log(x, x1)
    output = targets.mean(0, keepdim=True).requires_grad_()
    sample = PathSample(x, x1, torch.zeros(9).double(), x, targets)

    def loss(output, weights):
        residual = Velocity().residual(output.expand(9, -1), geometry, sample)
        return geometry.inner(x, residual, weights * residual).mean()

    (gradient,) = torch.autograd.grad(loss(output, weights), output)
    scale = targets.abs().max() * weights.max()
    assert gradient.abs().max() < 1e-7 * scale
    other = geometry.tangent(x[:1], torch.randn(output.shape, generator=generator()).double())
    assert loss(output + 0.01 * other, weights) > loss(output, weights)
    assert weights.min() > 0
    assert weights.max() / weights.min() > 1.2


def test_a_zero_field_has_the_plain_loss(geometry, weighting):
    x0, x1 = ends(geometry)
    weights = weighting(geometry, x0, x1, Small(), generator())
    step = geometry.log(x0, x1)
    torch.testing.assert_close(geometry.inner(x0, step, weights * step).mean(), geometry.inner(x0, step, step).mean())


def test_weights_do_not_depend_on_the_order_of_neurons(geometry, weighting, space):
    x0, x1 = ends(geometry)
    weights = weighting(geometry, x0, x1, Small(), generator())
    for seed in range(3):
        perms = random_permutations(space, 1, torch.Generator().manual_seed(seed))
        assert torch.equal(space.permute(weights[None, : space.dim], perms)[0], weights[: space.dim])
    if not geometry.flat:  # one weight for each factor
        torch.testing.assert_close(geometry.factor_means(weights), weights)


def test_the_loss_does_not_depend_on_the_order_of_neurons(weighting):
    field = partial(RelationalTransformer, width=16, edge_width=4, depth=2)
    arguments = {"field": field, "coupling": TrajectoryCoupling(), "weighting": weighting}
    module = FlowMatchingModule(dict(Small.network), **arguments)
    for parameter in module.field.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator())
    batch = networks(module.space)
    module.calibrate(batch, Small())
    perms = random_permutations(module.space, len(batch.x1), generator())
    moved = batch._replace(x1=module.space.permute(batch.x1, perms), start=module.space.permute(batch.start, perms))
    (loss, parts), (other, _) = (module.training_loss(b, generator()) for b in (batch, moved))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=0)
    assert abs(parts["weighted_loss"] / parts["flow_loss"] - 1) > 1e-3
    assert torch.equal(module.loss(batch, generator()).mean(), parts["flow_loss"])


def test_per_tensor_weights_are_inverse_sizes(space):
    geometry = Euclidean(space)
    x0, x1 = ends(geometry)
    whole, root, none = (PerTensor(power)(geometry, x0, x1) for power in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, torch.ones(space.dim))
    sizes = torch.stack([(x1 - x0)[:, t.slice].square().mean() for t in space.tensors])
    for weights, power in ((whole, 1.0), (root, 0.5)):
        by_tensor = torch.stack([weights[t.slice].mean() for t in space.tensors])
        torch.testing.assert_close(by_tensor / by_tensor[0], (sizes / sizes[0]) ** -power)


def test_a_tensor_that_does_not_move_keeps_weights_finite(space):
    geometry = Euclidean(space)
    x0, x1 = ends(geometry)
    x1[:, space.tensors[0].slice] = x0[:, space.tensors[0].slice]
    assert PerTensor()(geometry, x0, x1).isfinite().all()
    assert PerTensor()(geometry, x0, x0).isfinite().all()


@pytest.mark.parametrize("geometry", [Euclidean, Normalized])
def test_the_fisher_diagonal_is_that_of_a_loop(geometry, space):
    geometry, task = geometry(space), Small()
    _, x1 = ends(geometry)
    found = Fisher(networks=3, points=5).diagonal(geometry, x1, task, generator())
    inputs, targets = task.data("train")
    rows = torch.randint(40, (15, 1), generator=generator())[:, 0]
    expected = torch.zeros(geometry.dim)
    for x, row in zip(x1[:3].repeat_interleave(5, 0), rows, strict=True):
        x = x[None].clone().requires_grad_()
        logits = space.forward(geometry.decode(x), inputs[row][None])[0]
        torch.nn.functional.cross_entropy(logits, targets[row][None]).backward()
        expected += x.grad[0].square() / 15
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


def test_what_fisher_holds_at_once_is_counted_in_weights(monkeypatch):
    task = Small()
    space, held = task.space, []
    monkeypatch.setattr(module, "ELEMENTS", 8 * space.dim)
    geometry = PrincipalComponents(space, 2)
    geometry.fit(torch.randn(12, space.dim, generator=generator()))
    decode = geometry.decode
    monkeypatch.setattr(geometry, "decode", lambda x: held.append(len(x)) or decode(x))
    x1 = torch.randn(4, geometry.dim, generator=generator())
    Fisher(networks=4, points=8).diagonal(geometry, x1, task, generator())
    assert sum(held) == 32
    assert max(held) == 8


def test_neuron_means_keep_inputs_outputs_and_positions():
    """A convolution with positions, a norm and a flattened map: only axes of hidden groups are averaged."""
    sizes = {"channels": [3, 4], "kernels": [3, 3], "strides": [2, 2], "paddings": [0, 1]}
    network = {**sizes, "input_shape": [2, 12, 12], "classes": 3, "batch_norm": True}
    space = WeightSpace.from_description(
        {"class_path": "wsflow.weightspace.cnn", "init_args": network, "input_shape": [2, 12, 12]}
    )
    values = torch.randn(space.dim, generator=generator())
    means = neuron_means(space, values)
    for block in space.blocks:
        view, given = block.view(means), block.view(values)
        axes = [a for a, g in ((0, block.target), (1, block.source)) if space.group(g).role == "hidden"]
        torch.testing.assert_close(view, given.mean(axes, keepdim=True).expand_as(given))
    perms = random_permutations(space, 1, generator())
    assert torch.equal(space.permute(means[None], perms)[0], means)
    assert means.unique().numel() > 18


@pytest.mark.parametrize("task", [None, Gaussians()], ids=["none", "no-data"])
def test_fisher_needs_data(task, space):
    geometry = Euclidean(space)
    with pytest.raises(ValueError, match="Fisher needs the train data of the base task"):
        Fisher()(geometry, *ends(geometry), task)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerTensor(-1.0), "power"),
        (lambda: Fisher(networks=0), "networks"),
        (lambda: Fisher(floor=0.0), "floor"),
    ],
    ids=["power", "networks", "floor"],
)
def test_wrong_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("weighting", [None, PerTensor()], ids=["plain", "weighted"])
def test_weights_are_those_of_a_training_and_not_of_a_trained_field(weighting):
    trained = FlowMatchingModule(describe([5, 4, 3, 2]), weighting=PerTensor())
    batch = networks(trained.space)
    trained.calibrate(batch)
    state = trained.state_dict()
    assert "loss_weight" not in state
    module = FlowMatchingModule(describe([5, 4, 3, 2]), weighting=weighting)
    module.load_state_dict({**state, "loss_weight": torch.ones(3)})  # as older checkpoints hold them, of any width
    if weighting is not None:
        with pytest.raises(ValueError, match="the loss has no weights yet: call calibrate"):
            module.training_loss(batch, generator())
        scales = module.field.input_scale.clone()
        module.calibrate(batch._replace(x1=2 * batch.x1), trained=True)
        assert torch.equal(module.field.input_scale, scales)
        module.calibrate(batch, trained=True)
        assert torch.equal(module.loss_weight, trained.loss_weight)
