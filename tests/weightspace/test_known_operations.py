"""Every operation without weights, alone in a small network: its symmetries are proven, and are the expected ones.

Weights are drawn afresh and moved in float64 for each proof, so that a rule that is too generous fails here; the
expected groups and factors show where one is too strict.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import (
    INPUTS,
    Net,
    Offset,
    activated_in_place,
    concatenated,
    image,
    squeezed,
    summary,
    tokens,
    transposed_in_place,
    vector,
    written,
)
from torch import nn
from torch.nn import Conv1d, Conv2d, Linear, Parameter
from torch.nn import functional as F

from wsflow.weightspace import WeightSpace, check_symmetries

KNOWN: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    # Name: the input, the network, and its hidden groups with their parts and factors.
    "relu": ("vector", lambda: vector(lambda s, y: F.relu(y)), "hidden1 4 | a.weight positive 4"),
    "tanh": ("vector", lambda: vector(lambda s, y: y.tanh()), "hidden1 4 | a.weight sign 4"),
    "sin": ("vector", lambda: vector(lambda s, y: torch.sin(y)), "hidden1 4 | a.weight sign 4"),
    "gelu": ("vector", lambda: vector(lambda s, y: F.gelu(y)), "hidden1 4 | "),
    "both": ("vector", lambda: vector(lambda s, y: torch.tanh(F.relu(y))), "hidden1 4 | "),
    "nothing": ("vector", lambda: vector(lambda s, y: y), "hidden1 4 | a.weight linear 4"),
    "minus": ("vector", lambda: vector(lambda s, y: F.relu(-y)), "hidden1 4 | a.weight positive 4"),
    "softmax": ("vector", lambda: vector(lambda s, y: F.softmax(y, -1)), "hidden1 4 | "),
    "softmax_over_positions": ("tokens", lambda: tokens(lambda s, y: F.softmax(y, 1)), "hidden1 8 | "),
    "twice_a_number": ("vector", lambda: vector(lambda s, y: F.relu(-2 * y) / 3), "hidden1 4 | a.weight positive 4"),
    "plus_a_number": ("vector", lambda: vector(lambda s, y: F.relu(y + 1)), "hidden1 4 | "),
    "a_number_minus": ("vector", lambda: vector(lambda s, y: F.relu(1 - y)), "hidden1 4 | "),
    "one_over": ("vector", lambda: vector(lambda s, y: 1 / y), "hidden1 4 | "),
    "square": ("vector", lambda: vector(lambda s, y: y * y), "hidden1 4 | "),
    "quotient": ("vector", lambda: vector(lambda s, y: y / (y * y + 1)), "hidden1 4 | "),
    "gate": (
        "vector",
        lambda: Net(lambda s, x: s.b(s.a(x) * torch.sigmoid(s.c(x))), a=Linear(5, 4), c=Linear(5, 4), b=Linear(4, 2)),
        "hidden1 4 | ",
    ),
    "times_an_input": (
        "vector",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)) * x), a=Linear(5, 5), b=Linear(5, 2)),
        " | ",
    ),
    "times_one_input": (
        "vector",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)) * x[:, :1]), a=Linear(5, 4), b=Linear(4, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "plus_an_input": (
        "vector",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)) + x), a=Linear(5, 5), b=Linear(5, 2)),
        " | ",
    ),
    "buffer_per_channel": ("vector", lambda: vector(lambda s, y: F.relu(y) * s.o.value, o=Offset(4)), " | "),
    "one_buffer": (
        "vector",
        lambda: vector(lambda s, y: F.relu(y) * s.o.value, o=Offset(1)),
        "hidden1 4 | a.weight positive 4",
    ),
    "layer_scale": (
        "vector",
        lambda: vector(lambda s, y: F.gelu(y) * s.p, p=Parameter(torch.rand(4))),
        "hidden1 4 | p positive 4",
    ),
    "a_number_of_its_own": (
        "vector",
        lambda: vector(lambda s, y: F.relu(y) * s.p, p=Parameter(torch.tensor(0.3))),
        "hidden1 4 | a.weight positive 4",
    ),
    "one_over_with_parameter": (
        "vector",
        lambda: vector(lambda s, y: s.p / y, p=Parameter(torch.rand(4))),
        "hidden1 4 | p positive 4",
    ),
    "parameter_minus": (
        "vector",
        lambda: vector(lambda s, y: F.relu(s.p - y), p=Parameter(torch.rand(4))),
        "hidden1 4 | a.weight positive 4",
    ),
    "whole_slice_of_a_parameter": (
        "tokens",
        lambda: tokens(lambda s, y: F.relu(y + s.p[:, :6]), p=Parameter(torch.rand(1, 6, 8))),
        "hidden1 8 | a.weight positive 8",
    ),
    "sum_with_alpha": (
        "vector",
        lambda: vector(lambda s, y: F.relu(torch.add(y, other=y, alpha=2))),
        "hidden1 4 | a.weight positive 4",
    ),
    "slopes": ("image", lambda: image(lambda s, y: s.c(y), c=nn.PReLU(6)), "hidden1 6 | a.weight positive 6"),
    "one_slope": ("tokens", lambda: tokens(lambda s, y: s.c(y), c=nn.PReLU()), "hidden1 8 | a.weight positive 8"),
    "in_place": ("vector", lambda: vector(activated_in_place), "hidden1 4 | a.weight positive 4"),
    "factors_in_place": (
        "vector",
        lambda: vector(written, p=Parameter(torch.rand(4))),
        "hidden1 4 | a.weight positive 4, p positive 4",
    ),
    "transposed_in_place": (
        "tokens",
        lambda: tokens(transposed_in_place, c=Conv1d(8, 8, 1)),
        "hidden1 8, hidden2 8 | a.weight linear 8, c.weight positive 8",
    ),
    "zeros_around": (
        "image",
        lambda: image(lambda s, y: F.pad(F.relu(y), (1, 2, 1, 0))),
        "hidden1 6 | a.weight positive 6",
    ),
    "ones_around": ("image", lambda: image(lambda s, y: F.pad(F.relu(y), (1, 1, 1, 1), value=1.0)), "hidden1 6 | "),
    "mirror_around": (
        "image",
        lambda: image(lambda s, y: F.pad(F.relu(y), (1, 1, 1, 1), mode="reflect")),
        "hidden1 6 | a.weight positive 6",
    ),
    "zero_pad": ("image", lambda: image(lambda s, y: s.c(y), c=nn.ZeroPad2d(1)), "hidden1 6 | a.weight linear 6"),
    "constant_pad": ("image", lambda: image(lambda s, y: s.c(y), c=nn.ConstantPad2d(1, 2.0)), "hidden1 6 | "),
    "interpolation": (
        "image",
        lambda: image(lambda s, y: F.interpolate(y, scale_factor=2.0, mode="bilinear")),
        "hidden1 6 | a.weight linear 6",
    ),
    "means": ("image", lambda: image(lambda s, y: F.avg_pool2d(y, 3, 1, 1)), "hidden1 6 | a.weight linear 6"),
    "maxima": ("image", lambda: image(lambda s, y: F.max_pool2d(y, 2)), "hidden1 6 | a.weight positive 6"),
    "maxima_of_tanh": ("image", lambda: image(lambda s, y: F.max_pool2d(y.tanh(), 2)), "hidden1 6 | "),
    "maxima_with_places": (
        "image",
        lambda: image(lambda s, y: F.max_pool2d(y, 2, return_indices=True)[0]),
        "hidden1 6 | a.weight positive 6",
    ),
    "power_means": ("image", lambda: image(lambda s, y: F.lp_pool2d(y, 2, 2)), "hidden1 6 | a.weight positive 6"),
    "sum_over_positions": (
        "image",
        lambda: Net(lambda s, x: s.b(s.a(x).sum((2, 3)).relu()), a=Conv2d(3, 4, 3), b=Linear(4, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "largest_of_positions": (
        "image",
        lambda: Net(lambda s, x: s.b(s.a(x).amax((2, 3))), a=Conv2d(3, 4, 3), b=Linear(4, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "flattened": (
        "image",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).flatten(1)), a=Conv2d(3, 4, 3), b=Linear(144, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "flattened_where_all_axes_are_equal": (
        "image",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).flatten(1)), a=Conv2d(3, 2, 7), b=Linear(8, 2)),
        "hidden1 2 | a.weight positive 2",
    ),
    "one_channel": (
        "image",
        lambda: Net(lambda s, x: s.b(s.a(x).squeeze(1).flatten(1)), a=Conv2d(3, 1, 3), b=Linear(36, 2)),
        "hidden1 1 | a.weight linear 1",
    ),
    "last_token": (
        "tokens",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))[:, -1]), a=Linear(5, 4), b=Linear(4, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "first_token_by_dots": (
        "tokens",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))[..., 0, :]), a=Linear(5, 4), b=Linear(4, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "every_other_position": (
        "image",
        lambda: image(lambda s, y: F.relu(y)[:, :, ::2, ::2]),
        "hidden1 6 | a.weight positive 6",
    ),
    "dropout": (
        "vector",
        lambda: vector(lambda s, y: F.dropout(F.relu(y), training=s.training)),
        "hidden1 4 | a.weight positive 4",
    ),
    "squeeze_and_excite": (
        "image",
        lambda: image(squeezed, d=Conv2d(6, 3, 1), e=Conv2d(3, 6, 1)),
        "hidden1 6, hidden2 3 | d.weight positive 3",
    ),
    "side_by_side": (
        "vector",
        lambda: Net(concatenated("a", "c", "x"), a=Linear(5, 4), c=Linear(5, 3), b=Linear(12, 2)),
        "hidden1 4, hidden2 3 | a.weight positive 4, c.weight positive 3",
    ),
    "the_same_twice_side_by_side": (
        "vector",
        lambda: Net(lambda s, x: s.b(torch.cat(tensors=[s.a(x).relu()] * 2, dim=-1)), a=Linear(5, 4), b=Linear(8, 2)),
        "hidden1 4 | a.weight positive 4",
    ),
    "side_by_side_twice": (
        "vector",
        lambda: Net(
            lambda s, x: s.b(torch.cat([s.a(x), s.c(x)], 1).relu() + torch.cat([s.d(x), s.e(x)], 1).relu()),
            a=Linear(5, 4),
            c=Linear(5, 3),
            d=Linear(5, 4),
            e=Linear(5, 3),
            b=Linear(7, 2),
        ),
        "hidden1 4, hidden2 3 | a.weight positive 4, c.weight positive 3",
    ),
    "two_heads_in_a_dictionary": (
        "vector",
        lambda: Net(
            lambda s, x: {"class": s.b(s.a(x).relu()), "box": [s.c(s.a(x).relu())]},
            a=Linear(5, 4),
            b=Linear(4, 2),
            c=Linear(4, 3),
        ),
        "hidden1 4 | a.weight positive 4",
    ),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("given", "build", "expected"), KNOWN.values(), ids=KNOWN.keys())
def test_symmetries_are_proven_and_are_the_expected_ones(
    given: str, build: Callable[[], nn.Module], expected: str
) -> None:
    network = build()
    space = WeightSpace.from_module(network, INPUTS[given], check=False)
    check_symmetries(space, network, INPUTS[given], trials=3)
    assert summary(space) == expected
    assert space.names == dict(network.named_parameters()).keys()
