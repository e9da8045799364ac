from __future__ import annotations

import pytest
import torch
from torch import nn

from wsflow.weightspace import WeightSpace, cnn


def test_layers_have_fixed_names():
    plain, normed = cnn(), cnn(batch_norm=True, pool=True)
    assert list(dict(plain.named_children())) == ["conv1", "act1", "conv2", "act2", "flatten", "head"]
    between = ["conv1", "norm1", "act1", "conv2", "norm2", "act2", "pool", "flatten", "head"]
    assert list(dict(normed.named_children())) == between
    assert plain.conv1.bias is not None
    assert normed.conv1.bias is None


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_its_symmetries_are_known(pool, batch_norm):
    network = cnn(activation="tanh", pool=pool, batch_norm=batch_norm)
    images = torch.randn(3, 1, 28, 28)
    assert network(images).shape == (3, 10)
    space = WeightSpace.from_module(network, images)
    assert [(group.role, group.size) for group in space.groups] == [
        ("input", 1),
        ("hidden", 8),
        ("hidden", 10),
        ("output", 10),
    ]
    assert space.dim == sum(p.numel() for p in network.parameters())
    assert [block.depth for block in space.blocks] == [16, 9, 1 if pool else 16]


def test_images_of_any_shape_fit():
    network = cnn([3], [5], [1], [0], input_shape=(2, 6, 9), classes=4, activation="gelu")
    assert isinstance(network.act1, nn.GELU)
    assert network(torch.randn(7, 2, 6, 9)).shape == (7, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [8]}, "one entry per convolution"),
        ({"channels": [], "kernels": [], "strides": [], "paddings": []}, "one entry per convolution"),
        ({"channels": [0, 8]}, "sizes must be at least 1"),
        ({"paddings": [-1, 0]}, "paddings 0"),
        ({"activation": "cosine"}, "unknown activation 'cosine'"),
        ({"input_shape": [1, 3, 28]}, "too small for convolution 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnn(**arguments)
