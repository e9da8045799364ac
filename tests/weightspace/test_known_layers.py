"""Every layer, alone in a small network: its symmetries are proven, and are the expected ones.

Weights are drawn afresh and moved in float64 for each proof, so that a rule that is too generous fails here; the
expected groups and factors show where one is too strict.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_networks import INPUTS, Net, Offset, attended, attention, image, repeated, summary, tied, tokens, vector
from torch import nn
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear, MultiheadAttention
from torch.nn import functional as F

from wsflow.weightspace import WeightSpace, check_symmetries

KNOWN: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    # Name: the input, the network, and its hidden groups with their parts and factors.
    "mean_then_norm": (
        "image",
        lambda: Net(
            lambda s, x: s.b(s.n(F.relu(s.a(x)).mean((2, 3)))), a=Conv2d(3, 4, 3), n=nn.BatchNorm1d(4), b=Linear(4, 2)
        ),
        "hidden1 4 | a.weight positive 4, n.weight positive 4",
    ),
    "batch_norm": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=nn.BatchNorm2d(6, momentum=None)),
        "hidden1 6 | a.weight positive 6, n.weight positive 6",
    ),
    "batch_norm_and_tanh": (
        "image",
        lambda: image(lambda s, y: s.n(y).tanh(), n=nn.BatchNorm2d(6)),
        "hidden1 6 | a.weight positive 6, n.weight sign 6",
    ),
    "batch_norm_without_weights": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=nn.BatchNorm2d(6, affine=False)),
        "hidden1 6 | a.weight positive 6",
    ),
    "batch_norm_without_statistics": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=nn.BatchNorm2d(6, track_running_stats=False)),
        "hidden1 6 | n.weight positive 6",
    ),
    "batch_norm_of_the_input": (
        "image",
        lambda: Net(
            lambda s, x: s.b(F.relu(s.a(s.n(x)))).mean((2, 3)),
            n=nn.BatchNorm2d(3),
            a=Conv2d(3, 4, 3),
            b=Conv2d(4, 2, 3),
        ),
        "hidden1 4 | n.weight positive 3, a.weight positive 4",
    ),
    "batch_norm_of_flattened": (
        "image",
        lambda: Net(
            lambda s, x: s.b(F.relu(s.n(s.a(x).flatten(1)))),
            a=Conv2d(3, 4, 3),
            n=nn.BatchNorm1d(144),
            b=Linear(144, 2),
        ),
        "hidden1 4 | a.weight positive 4, n.weight positive 4",
    ),
    "batch_norm_twice": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(s.c(F.relu(s.n(y))))), n=nn.BatchNorm2d(6), c=Conv2d(6, 6, 1)),
        "hidden1 6 | a.weight positive 6, n.weight positive 6",
    ),
    "instance_norm": ("image", lambda: image(lambda s, y: F.relu(s.n(y)), n=nn.InstanceNorm2d(6)), "hidden1 6 | "),
    "layer_norm": ("vector", lambda: vector(lambda s, y: s.n(y), n=LayerNorm(4)), "hidden1 4 | n.weight positive 4"),
    "layer_norm_exact": (
        "vector",
        lambda: vector(lambda s, y: F.gelu(s.n(y)), n=LayerNorm(4, eps=0.0)),
        "hidden1 4 | a.weight positive 1",
    ),
    "layer_norm_over_several_axes": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=LayerNorm((6, 8, 8))),
        "hidden1 6 | n.weight positive 6",
    ),
    "layer_norm_by_function": (
        "vector",
        lambda: vector(lambda s, y: F.layer_norm(y, (4,), s.n.weight, s.n.bias), n=LayerNorm(4)),
        "hidden1 4 | n.weight positive 4",
    ),
    "rms_norm": ("vector", lambda: vector(lambda s, y: s.n(y), n=nn.RMSNorm(4)), "hidden1 4 | n.weight positive 4"),
    "group_norm": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=GroupNorm(3, 6)),
        "hidden1 6/3 | n.weight positive 6",
    ),
    "group_norm_exact": (
        "image",
        lambda: image(lambda s, y: F.gelu(s.n(y)), n=GroupNorm(3, 6, eps=0.0)),
        "hidden1 6/3 | a.weight positive 3",
    ),
    "group_norm_of_one": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(y)), n=GroupNorm(1, 6)),
        "hidden1 6 | n.weight positive 6",
    ),
    "group_norm_by_function": (
        "image",
        lambda: image(lambda s, y: F.relu(F.group_norm(y, 2, s.n.weight, s.n.bias)), n=GroupNorm(2, 6)),
        "hidden1 6/2 | n.weight positive 6",
    ),
    "group_norm_on_a_stream": (
        "image",
        lambda: image(lambda s, y: y + s.c(F.relu(s.n(y))), n=GroupNorm(3, 6), c=Conv2d(6, 6, 1)),
        "hidden1 6/3 | n.weight positive 6",
    ),
    "group_norms_of_different_parts": (
        "image",
        lambda: image(lambda s, y: F.relu(s.m(s.n(y))), 12, n=GroupNorm(4, 12), m=GroupNorm(6, 12)),
        "hidden1 12/12 in place | m.weight positive 12",
    ),
    "group_norm_of_grouped_convolution": (
        "image",
        lambda: image(lambda s, y: F.relu(s.n(s.c(y))), 12, c=Conv2d(12, 12, 3, groups=4), n=GroupNorm(4, 12)),
        "hidden1 12/4 parts1, hidden2 12/4 parts1 | a.weight positive 12, n.weight positive 12",
    ),
    "grouped": (
        "image",
        lambda: image(lambda s, y: F.relu(s.c(F.relu(y))), c=Conv2d(6, 6, 3, padding=1, groups=2)),
        "hidden1 6/2 parts1, hidden2 6/2 parts1 | a.weight positive 6, c.weight positive 6",
    ),
    "grouped_twice_differently": (
        "image",
        lambda: image(
            lambda s, y: F.relu(s.d(F.relu(s.c(y)))), 12, c=Conv2d(12, 12, 1, groups=4), d=Conv2d(12, 12, 1, groups=6)
        ),
        "hidden1 12/4 in place, hidden2 12/12 in place, hidden3 12/6 in place"
        " | a.weight positive 12, c.weight positive 12, d.weight positive 12",
    ),
    "grouped_within_a_stream": (
        "image",
        lambda: image(lambda s, y: y + F.relu(s.c(F.relu(y))), c=Conv2d(6, 6, 3, padding=1, groups=3)),
        "hidden1 6/3 | a.weight positive 6",
    ),
    "grouped_on_the_input": (
        "image",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))).mean((2, 3)), a=Conv2d(3, 6, 3, groups=3), b=Conv2d(6, 2, 3)),
        "hidden1 6/3 in place parts1 | a.weight positive 6",
    ),
    "grouped_into_the_output": (
        "image",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))).mean((2, 3)), a=Conv2d(3, 6, 3), b=Conv2d(6, 2, 3, groups=2)),
        "hidden1 6/2 in place parts1 | a.weight positive 6",
    ),
    "depthwise": (
        "image",
        lambda: image(lambda s, y: F.relu(s.c(F.relu(y))), c=Conv2d(6, 6, 3, padding=1, groups=6)),
        "hidden1 6 | a.weight positive 6, c.weight positive 6",
    ),
    "depthwise_on_the_input": (
        "image",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))).mean((2, 3)), a=Conv2d(3, 3, 3, groups=3), b=Conv2d(3, 2, 3)),
        " | a.weight positive 3",
    ),
    "depthwise_with_two_for_one": (
        "image",
        lambda: Net(
            lambda s, x: s.b(F.gelu(s.c(F.relu(s.a(x))))).mean((2, 3)),
            a=Conv2d(3, 4, 3),
            c=Conv2d(4, 8, 3, groups=4),
            b=Conv2d(8, 2, 3),
        ),
        "hidden1 4/4 parts1, hidden2 8/4 parts1 | a.weight positive 4",
    ),
    "convolution_by_function": (
        "image",
        lambda: image(lambda s, y: F.relu(F.conv2d(F.relu(y), s.c.weight, s.c.bias)), c=Conv2d(6, 6, 3)),
        "hidden1 6, hidden2 6 | a.weight positive 6, c.weight positive 6",
    ),
    **{
        f"padding_{mode}": (
            "image",
            lambda mode=mode: image(
                lambda s, y: F.relu(s.c(F.relu(y))), c=Conv2d(6, 6, 3, padding=1, padding_mode=mode)
            ),
            "hidden1 6, hidden2 6 | a.weight positive 6, c.weight positive 6",
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "layer_twice": (
        "vector",
        lambda: vector(repeated, c=Linear(4, 4)),
        "hidden1 4 | a.weight positive 4",
    ),
    "tied_layers": ("vector", tied, "hidden1 4 | a.weight positive 4"),
    "layer_and_function_with_one_weight": (
        "vector",
        lambda: vector(lambda s, y: F.relu(s.c(F.relu(F.linear(F.relu(y), s.c.weight)))), c=Linear(4, 4)),
        "hidden1 4 | a.weight positive 4",
    ),
    "embedding": (
        "symbols",
        lambda: Net(
            lambda s, x: s.b(F.relu(s.a(s.e(x)))).mean(1),
            e=nn.Embedding(7, 5, padding_idx=0),
            a=Linear(5, 4),
            b=Linear(4, 2),
        ),
        "hidden1 5, hidden2 4 | e.weight linear 5, a.weight positive 4",
    ),
    "attention": (
        "tokens",
        lambda: tokens(attended, **attention()),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
    ),
    "attention_without_bias": (
        "tokens",
        lambda: tokens(attended, **attention(bias=False)),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
    ),
    "attention_with_a_mask": (
        "tokens",
        lambda: tokens(lambda s, y: attended(s, y, attn_mask=s.o.value), **attention(), o=Offset(6, 6)),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
    ),
    "attention_by_names": (
        "tokens",
        lambda: tokens(lambda s, y: y + s.m(query=s.n(y), key=s.n(y), value=s.n(y))[0], **attention()),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
    ),
    "attention_twice": (
        "tokens",
        lambda: tokens(lambda s, y: attended(s, attended(s, y)), **attention()),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
    ),
    "attention_to_the_input": (
        "tokens",
        lambda: Net(
            lambda s, x: s.b(s.m(s.a(x), x, x)[0].mean(1)),
            a=Linear(5, 8),
            m=MultiheadAttention(8, 4, kdim=5, vdim=5, batch_first=True),
            b=Linear(8, 2),
        ),
        "hidden1 8, hidden2 8/4 parts1, hidden3 8/4 parts1, hidden4 8"
        " | a.weight linear 8, m.q_proj_weight linear 8, m.v_proj_weight linear 8, m.out_proj.weight linear 8",
    ),
    "one_head": (
        "tokens",
        lambda: tokens(attended, n=LayerNorm(8), m=MultiheadAttention(8, 1, batch_first=True)),
        "hidden1 8, hidden2 8, hidden3 8"
        " | n.weight positive 8, m.in_proj_weight linear 8, m.in_proj_weight@hidden3 linear 8",
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
