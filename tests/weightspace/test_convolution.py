"""A residual convolutional network, its space built by hand from groups, blocks and vectors.

The channels after the first convolution and after the residual sum are one group ("stream"), which two blocks enter
and two blocks leave.  The last layer reads the flattened feature map, so that each of its edges carries 4 x 4 numbers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, relu

from wsflow.weightspace import GroupVector, NeuronGroup, Rescaling, WeightBlock, WeightSpace
from wsflow.weightspace.symmetry import random_permutations, random_scales


class ResidualNetwork(nn.Module):
    """Two channels of 4 x 4 pixels in, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.down = nn.Conv2d(5, 4, 1)
        self.up = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = relu(self.stem(x))
        stream = stream + self.up(relu(self.down(stream)))
        return self.head(stream.flatten(1))


@pytest.fixture
def space() -> WeightSpace:
    groups = (
        NeuronGroup("input", 2, "input"),
        NeuronGroup("stream", 5, "hidden", "relu"),
        NeuronGroup("middle", 4, "hidden", "relu"),
        NeuronGroup("output", 3, "output", "softmax"),
    )
    stream, middle = "stem.weight", "down.weight"
    blocks = (
        WeightBlock("stem.weight", "input", "stream", 5, 2, (3, 3), (5, 2, 3, 3), 0, target_scale=stream),
        WeightBlock(
            "down.weight", "stream", "middle", 4, 5, (1, 1), (4, 5, 1, 1), 95, source_scale=stream, target_scale=middle
        ),
        WeightBlock(
            "up.weight", "middle", "stream", 5, 4, (3, 3), (5, 4, 3, 3), 119, source_scale=middle, target_scale=stream
        ),
        WeightBlock("head.weight", "stream", "output", 3, 5, (4, 4), (3, 80), 304, source_scale=stream),
    )
    vectors = (
        GroupVector("stem.bias", "stream", "bias", 5, 90, scale=stream),
        GroupVector("down.bias", "middle", "bias", 4, 115, scale=middle),
        GroupVector("up.bias", "stream", "bias", 5, 299, scale=stream),
        GroupVector("head.bias", "output", "bias", 3, 544),
    )
    rescalings = (Rescaling(stream, "stream", "positive", 5), Rescaling(middle, "middle", "positive", 4))
    template = ResidualNetwork().eval().requires_grad_(False)
    return WeightSpace(groups, blocks, vectors, (), rescalings, (2, 4, 4), template=template)


def test_it_is_what_is_read_off_the_network(space: WeightSpace) -> None:
    traced = WeightSpace.from_module(ResidualNetwork(), torch.randn(2, 2, 4, 4))
    names = {"input": "input", "hidden1": "stream", "hidden2": "middle", "output": "output"}
    assert tuple(replace(group, name=names[group.name]) for group in traced.groups) == space.groups
    assert [(names[b.source], names[b.target]) for b in traced.blocks] == [(b.source, b.target) for b in space.blocks]
    for mine, other in zip((*space.blocks, *space.vectors), (*traced.blocks, *traced.vectors), strict=True):
        assert (mine.name, mine.shape, mine.numel) == (other.name, other.shape, other.numel)
    theta = torch.randn(1, space.dim)
    scales = [torch.linspace(0.5, 2, 5), torch.linspace(3, 1, 4)]
    moved, other = space.rescale(theta, scales), traced.rescale(traced.flatten(space.unflatten(theta)), scales)
    assert torch.equal(traced.flatten(space.unflatten(moved)), other)


@pytest.fixture
def theta(space: WeightSpace, generator: torch.Generator) -> Tensor:
    return torch.randn(3, space.dim, generator=generator, dtype=torch.float64)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)


def by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    stream = relu(conv2d(x, w["stem.weight"], w["stem.bias"], padding=1))
    middle = relu(conv2d(stream, w["down.weight"], w["down.bias"]))
    stream = stream + conv2d(middle, w["up.weight"], w["up.bias"], padding=1)
    return linear(stream.flatten(1), w["head.weight"], w["head.bias"])


def test_names_shapes_and_order_are_those_of_the_network(space: WeightSpace, theta: Tensor) -> None:
    state = ResidualNetwork().state_dict()
    named = space.unflatten(space.flatten(state))
    assert list(named) == list(state)
    assert all(torch.equal(named[name], state[name]) for name in state)


def test_the_batched_forward_pass_equals_conv2d(space: WeightSpace, theta: Tensor, images: Tensor) -> None:
    expected = torch.stack([by_hand(space.unflatten(one), images) for one in theta])
    torch.testing.assert_close(space.forward(theta, images), expected)


def test_permuting_channels_keeps_the_function(
    space: WeightSpace, theta: Tensor, images: Tensor, generator: torch.Generator
) -> None:
    moved = space.permute(theta, random_permutations(space, 3, generator))
    assert not torch.equal(moved, theta)
    for old, new in zip(theta, moved, strict=True):
        before, after = by_hand(space.unflatten(old), images), by_hand(space.unflatten(new), images)
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_rescaling_channels_keeps_the_function(
    space: WeightSpace, theta: Tensor, images: Tensor, generator: torch.Generator
) -> None:
    moved = space.rescale(theta, random_scales(space, 3, generator))
    assert not torch.equal(moved, theta)
    torch.testing.assert_close(space.forward(moved, images), space.forward(theta, images), rtol=1e-10, atol=1e-10)


def test_kernels_move_whole(space: WeightSpace, theta: Tensor) -> None:
    stream, middle = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 3, 0, 2])
    old, new = space.unflatten(theta), space.unflatten(space.permute(theta, [stream, middle]))
    assert torch.equal(new["stem.weight"], old["stem.weight"][:, stream])
    assert torch.equal(new["down.weight"], old["down.weight"][:, middle][:, :, stream])
    assert torch.equal(new["up.weight"], old["up.weight"][:, stream][:, :, middle])
    assert torch.equal(new["up.bias"], old["up.bias"][:, stream])
    maps = old["head.weight"].view(3, 3, 5, 4, 4)[:, :, stream]
    assert torch.equal(new["head.weight"], maps.reshape(3, 3, 80))


def test_incoming_weights_come_from_both_blocks(space: WeightSpace, theta: Tensor) -> None:
    named = space.unflatten(theta[0])
    into, away, biases = space.incoming("stream"), space.outgoing("stream"), space.attached("stream")
    assert into.shape == (5, 2 * 9 + 4 * 9)
    assert away.shape == (5, 4 + 3 * 16)
    assert biases.shape == (5, 2)
    for c in range(5):
        expected = torch.cat([named["stem.weight"][c].flatten(), named["up.weight"][c].flatten()])
        assert torch.equal(theta[0, into[c]], expected)
        maps = named["head.weight"].view(3, 5, 16)[:, c].flatten()
        assert torch.equal(theta[0, away[c]], torch.cat([named["down.weight"][:, c].flatten(), maps]))
        assert torch.equal(theta[0, biases[c]], torch.stack([named["stem.bias"][c], named["up.bias"][c]]))


class TestInconsistentSpaces:
    def test_an_unknown_group(self, space: WeightSpace) -> None:
        with pytest.raises(ValueError, match=r"tensor 'down.weight' needs groups \{'stream': 5, 'middle': 4\}"):
            WeightSpace((space.groups[0], space.groups[1], space.groups[3]), space.blocks, space.vectors)

    def test_another_size(self, space: WeightSpace) -> None:
        groups = (space.groups[0], NeuronGroup("stream", 6, "hidden", "relu"), *space.groups[2:])
        with pytest.raises(ValueError, match=r"tensor 'stem.weight' needs groups .*'stream': 6"):
            WeightSpace(groups, space.blocks, space.vectors)

    def test_a_gap(self, space: WeightSpace) -> None:
        with pytest.raises(ValueError, match=r"tensor 'down.weight' .* must start at 90"):
            WeightSpace(space.groups, space.blocks, space.vectors[1:])
