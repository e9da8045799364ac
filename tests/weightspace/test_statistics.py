"""Running statistics: moved, recomputed, given to networks, and differentiated by."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import depthwise, resnet20, space_of, transformer
from small_networks import INPUTS, image
from torch import Tensor, nn
from torch.nn import Conv2d
from torch.nn import functional as F

from wsflow.weightspace import WeightSpace, batch_statistics, cnn, mlp
from wsflow.weightspace.symmetry import random_permutations, random_scales

NETWORKS = {
    "resnet": lambda: resnet20((4, 5, 6)),
    "depthwise": depthwise,
    "cnn": lambda: cnn((4, 5), (3, 3), (1, 2), (1, 1), (3, 8, 8), 3, batch_norm=True),
    "called_twice": lambda: image(
        lambda s, y: F.relu(s.n(s.c(F.relu(s.n(y))))), n=nn.BatchNorm2d(6), c=Conv2d(6, 6, 1)
    ),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> nn.Module:
    """A network with batch norm for images of 3 x 8 x 8, whose statistics are not those it starts with."""
    module = request.param().double()
    for _ in range(3):
        module(3 * torch.randn(8, 3, 8, 8, dtype=torch.float64) + 1)
    return module.eval()


@pytest.fixture
def space(network: nn.Module) -> WeightSpace:
    return space_of(network, (3, 8, 8))


@pytest.fixture
def theta(space: WeightSpace, network: nn.Module, generator: torch.Generator) -> Tensor:
    """Three extended vectors near the network."""
    values = space.flatten(network.state_dict(), buffers=True)
    return values * (1 + 0.3 * torch.rand(3, space.full_dim, generator=generator, dtype=torch.float64))


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)


def test_extended_vectors_hold_the_statistics(space: WeightSpace, network: nn.Module, theta: Tensor) -> None:
    state = network.state_dict()
    values = space.flatten(state, buffers=True)
    assert values.shape == (space.full_dim,)
    assert torch.equal(values[: space.dim], space.flatten(state))
    named = space.unflatten(values)
    assert named.keys() == {name for name in state if "num_batches" not in name}
    assert all(torch.equal(value, state[name]) for name, value in named.items())
    assert torch.equal(space.flatten(space.unflatten(theta), buffers=True), theta)


def test_to_module_sets_statistics_or_keeps_the_templates(
    space: WeightSpace, network: nn.Module, theta: Tensor
) -> None:
    full = space.to_module(theta[0]).state_dict()
    with pytest.warns(UserWarning, match="the weights lack the running statistics of batch norm"):
        short = space.to_module(theta[0, : space.dim]).state_dict()
    assert torch.equal(space.flatten(full, buffers=True), theta[0])
    assert torch.equal(space.flatten(short), theta[0, : space.dim])
    for tensor in space.buffer_tensors:
        assert torch.equal(short[tensor.name], network.state_dict()[tensor.name])


def test_the_forward_pass_equals_each_network(space: WeightSpace, theta: Tensor, images: Tensor) -> None:
    for given in (theta, theta[:, : space.dim]):
        for outputs in (space.forward(given, images), space.forward(given.requires_grad_(True), images)):
            for one, expected in zip(given.detach(), outputs.detach(), strict=True):
                torch.testing.assert_close(space.to_module(one)(images), expected)


def test_outputs_have_derivatives_by_statistics(space: WeightSpace, theta: Tensor, images: Tensor) -> None:
    theta = theta[:1].requires_grad_(True)
    weights = torch.randn(1, 5, space.groups[-1].size, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((space.forward(theta, images) * weights).sum(), theta)
    for place in torch.arange(space.dim, space.full_dim)[::7]:
        step = torch.zeros_like(theta)
        step[0, place] = 1e-5
        ends = [(space.forward((theta + sign * step).detach(), images) * weights).sum() for sign in (1, -1)]
        torch.testing.assert_close(gradient[0, place], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_permutations_and_rescalings_move_statistics(
    space: WeightSpace, theta: Tensor, images: Tensor, generator: torch.Generator
) -> None:
    before = space.forward(theta, images)
    moved = space.permute(theta, random_permutations(space, 3, generator))
    scaled = space.rescale(moved, random_scales(space, 3, generator))
    assert (scaled - theta)[:, space.dim :].abs().max() > 0.1
    torch.testing.assert_close(space.forward(scaled, images), before, rtol=1e-9, atol=1e-9)
    old = torch.cat([scaled[:, : space.dim], theta[:, space.dim :]], dim=1)
    assert (space.forward(old, images) - before).abs().max() > 1e-3


class TestBatchStatistics:
    def test_they_are_torchs_own(self, space: WeightSpace, theta: Tensor, images: Tensor) -> None:
        found = batch_statistics(space, theta[:, : space.dim], images)
        assert torch.equal(found[:, : space.dim], theta[:, : space.dim])
        for one, row in zip(theta, found, strict=True):
            module = space.to_module(one[: space.dim]).train()
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.momentum = None
                    layer.reset_running_stats()
            module(images)
            torch.testing.assert_close(space.flatten(module.state_dict(), buffers=True), row)

    def test_old_ones_are_dropped(self, space: WeightSpace, theta: Tensor, images: Tensor) -> None:
        short = batch_statistics(space, theta[:, : space.dim], images)
        assert torch.equal(batch_statistics(space, theta, images), short)

    def test_they_move_with_the_network(
        self, space: WeightSpace, theta: Tensor, images: Tensor, generator: torch.Generator
    ) -> None:
        perms, scales = random_permutations(space, 3, generator), random_scales(space, 3, generator)
        moved = space.permute(batch_statistics(space, theta, images), perms)
        torch.testing.assert_close(batch_statistics(space, space.permute(theta, perms), images), moved)
        before = space.forward(batch_statistics(space, theta, images), images)
        scaled = space.forward(batch_statistics(space, space.rescale(theta, scales), images), images)
        assert (scaled - before).norm() < 0.01 * before.norm()  # eps does not take part in the rescaling

    def test_the_network_stays_as_it_is(self, space: WeightSpace, theta: Tensor, images: Tensor) -> None:
        before = copy.deepcopy(space.template.state_dict())
        batch_statistics(space, theta, images)
        assert all(torch.equal(value, before[name]) for name, value in space.template.state_dict().items())

    def test_there_are_none_without_batch_norm(self) -> None:
        space = WeightSpace.from_module(mlp([5, 4, 2]))
        theta = torch.randn(3, space.dim)
        assert torch.equal(batch_statistics(space, theta, torch.randn(6, 5)), theta)

    def test_frozen_layers_keep_theirs(self, network: nn.Module, images: Tensor) -> None:
        name = [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)][-1]
        head = WeightSpace.from_module(network, images, select=rf"{name}\..*", check=False)
        found = batch_statistics(head, head.flatten(network.state_dict())[None], images)
        seen: list[Tensor] = []
        network.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        network(images)
        if len(seen) == 1:
            torch.testing.assert_close(
                found[0, head.dim :], torch.cat([seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3))])
            )
        assert found.shape == (1, head.full_dim)


@pytest.mark.parametrize("gradients", [False, True])
def test_transformers_run_in_batches_without_fused_attention(gradients: bool) -> None:
    space = space_of(transformer(), (3, 8, 8))
    theta = 0.3 * torch.randn(3, space.dim, requires_grad=gradients)
    images = INPUTS["image"]
    outputs = space.forward(theta, images)
    expected = [space.to_module(one.detach())(images) for one in theta]
    torch.testing.assert_close(outputs, torch.stack(expected))
    assert torch.backends.mha.get_fastpath_enabled()
