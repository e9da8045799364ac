"""What is refused: in one line, with the node, its module and the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from small_networks import (
    INPUTS,
    Net,
    Offset,
    attended,
    attention,
    image,
    shuffled,
    tokens,
    vector,
    written_through_a_view,
)
from torch import nn
from torch.nn import Conv1d, Conv2d, LayerNorm, Linear, Parameter
from torch.nn import functional as F

from wsflow.weightspace import UnsupportedModuleError, WeightSpace

REFUSED: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "channels_around": (
        "image",
        lambda: image(lambda s, y: F.pad(y, (0, 0, 0, 0, 1, -1))),
        "node 'pad' (pad): acts along axis 1 of an activation (2, 6, 8, 8), which holds its neurons",
    ),
    "means_over_channels": (
        "tokens",
        lambda: tokens(lambda s, y: F.avg_pool1d(y, 3, 1, 1)),
        "node 'avg_pool1d' (avg_pool1d): acts along axis 2 of an activation (2, 6, 8), which holds its neurons",
    ),
    "maxima_over_channels": (
        "tokens",
        lambda: tokens(lambda s, y: s.c(y), c=nn.MaxPool1d(3, 1, 1)),
        "node 'c' (module 'c', MaxPool1d): acts along axis 2",
    ),
    "zeros_around_an_unbatched_image": (
        "signal",
        lambda: Net(
            lambda s, x: s.b(s.c(s.a(x))).mean(2), a=Conv1d(3, 4, 3), c=nn.ZeroPad2d((0, 0, 1, -1)), b=Conv1d(4, 2, 3)
        ),
        "node 'c' (module 'c', ZeroPad2d): acts along axis 1",
    ),
    "interpolated_channels": (
        "tokens",
        lambda: tokens(lambda s, y: F.interpolate(y, size=8, mode="linear")),
        "node 'interpolate' (interpolate): acts along axis 2",
    ),
    "mean_of_channels": (
        "vector",
        lambda: vector(lambda s, y: y - y.mean(1, keepdim=True)),
        "reduces over the channels",
    ),
    "norm_of_positions": (
        "image",
        lambda: image(lambda s, y: s.n(y), n=LayerNorm((8, 8))),
        "node 'n' (module 'n', LayerNorm): acts along axis 2 of an activation (2, 6, 8, 8) whose neurons lie on axis 1",
    ),
    "mixed_positions": (
        "tokens",
        lambda: tokens(lambda s, y: y + s.t(y.transpose(1, 2)).transpose(1, 2), t=Linear(6, 6)),
        "node 't' (module 't', Linear): acts along axis 2 of an activation (2, 8, 6) whose neurons lie on axis 1",
    ),
    "channels_last": (
        "image",
        lambda: Net(lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1).flatten(1)), a=Conv2d(3, 6, 7), b=Linear(24, 2)),
        "node 'flatten' (flatten): reshapes (2, 2, 2, 6) to (2, 24), which splits the neurons of axis 3 or merges them "
        "with axes before it",
    ),
    "shuffled_channels": (
        "image",
        lambda: image(shuffled),
        "node 'view' (view): reshapes (2, 6, 8, 8) to (2, 2, 3, 8, 8)",
    ),
    "half_of_the_channels": (
        "vector",
        lambda: vector(lambda s, y: torch.cat([y[:, 2:], y[:, :2]], 1)),
        "takes a part of the channels",
    ),
    "channels_by_a_list": (
        "vector",
        lambda: vector(lambda s, y: y[:, torch.tensor([1, 0, 2, 3])]),
        "only integers and slices are supported as an index",
    ),
    "chunks": (
        "vector",
        lambda: vector(lambda s, y: torch.cat(y.chunk(2, 1), 1)),
        "node 'chunk' (chunk): this operation is not supported",
    ),
    "transposed_by_attribute": (
        "tokens",
        lambda: tokens(lambda s, y: y.mT.mT),
        "node 'getattr_1' (getattr): this use of activations",
    ),
    "as_integers": (
        "vector",
        lambda: vector(lambda s, y: y.view(torch.int32).view(torch.float32)),
        "node 'view' (view): gives numbers of type torch.int32",
    ),
    "rolled": (
        "tokens",
        lambda: tokens(lambda s, y: torch.roll(y, 1, 1)),
        "node 'roll' (roll): this operation is not supported",
    ),
    "dropout_in_evaluation": (
        "vector",
        lambda: vector(lambda s, y: F.dropout(y)),
        "node 'dropout' (dropout): drops values in evaluation too; pass it training=self.training",
    ),
    "rounded_quotient": (
        "vector",
        lambda: vector(lambda s, y: torch.div(y, 0.1, rounding_mode="floor")),
        "node 'div' (div): its arguments ['rounding_mode'] are not supported",
    ),
    "over_a_parameter": (
        "vector",
        lambda: vector(lambda s, y: y / s.p, p=Parameter(torch.ones(4))),
        "divides by the parameter 'p'; multiply by one instead",
    ),
    "learned_alpha": (
        "vector",
        lambda: vector(lambda s, y: torch.add(y, y, alpha=s.p), p=Parameter(torch.tensor(2.0))),
        "only numbers are supported as alpha",
    ),
    "function_of_a_parameter": (
        "vector",
        lambda: vector(lambda s, y: y * s.p.exp(), p=Parameter(torch.ones(4))),
        "node 'exp' (exp): this operation is not supported",
    ),
    "activation_of_a_parameter": (
        "vector",
        lambda: vector(lambda s, y: y * s.p.relu(), p=Parameter(torch.ones(4))),
        "node 'relu' (relu): is applied to the parameter 'p' and not to an activation",
    ),
    "part_of_a_parameter": (
        "tokens",
        lambda: tokens(lambda s, y: y + s.p[:, :6], p=Parameter(torch.ones(1, 9, 8))),
        "node 'getitem' (getitem): takes a part of the parameter 'p'",
    ),
    "bias_from_a_buffer": (
        "vector",
        lambda: vector(lambda s, y: F.linear(y, s.c.weight, s.o.value), c=Linear(4, 4), o=Offset(4)),
        "node 'linear' (linear): its bias is not a parameter of the network",
    ),
    "weight_times_mask": (
        "vector",
        lambda: vector(lambda s, y: F.linear(y, s.c.weight * s.o.value), c=Linear(4, 4), o=Offset(4, 4)),
        "node 'mul' (mul): combines a parameter with inputs, constants or parameters only",
    ),
    "written_through_a_view": (
        "vector",
        lambda: vector(written_through_a_view, p=Parameter(torch.rand(4, 1))),
        "node 'mul_' (mul): changes in place what node 'a' is a view of, or the reverse",
    ),
    "bias_used_twice": (
        "vector",
        lambda: vector(lambda s, y: y + s.a.bias),
        "the parameter 'a.bias' is used in two different ways",
    ),
    "one_square_both_ways": (
        "tokens",
        lambda: tokens(
            lambda s, y: (s.c(y) + s.p).transpose(1, 2) + s.p, c=Linear(8, 6), p=Parameter(torch.rand(6, 6))
        ),
        "node 'add_1' (add): the parameter 'p' is used in two different ways",
    ),
    "tied_embedding": (
        "symbols",
        lambda: Net(lambda s, x: F.linear(s.e(x), s.e.weight), e=nn.Embedding(7, 5)),
        "node 'linear' (linear): the parameter 'e.weight' is used in two different ways",
    ),
    "changing_embedding": (
        "symbols",
        lambda: Net(lambda s, x: s.a(s.e(x)), e=nn.Embedding(7, 5, max_norm=1.0), a=Linear(5, 2)),
        "node 'e' (module 'e', Embedding): max_norm changes the weights in the forward pass",
    ),
    "broadcast_gate": (
        "image",
        lambda: image(lambda s, y: y * torch.sigmoid(s.c(y)), c=Conv2d(6, 1, 1)),
        "joins activations whose channels are made up differently: [(6, 1)] on axis 1 and [(1, 1)] on axis 1",
    ),
    "different_axes_side_by_side": (
        "tokens",
        lambda: Net(
            lambda s, x: s.b(torch.cat([s.c(x).transpose(1, 2), s.a(x)], 1)).mean(1),
            a=Linear(5, 6),
            c=Linear(5, 8),
            b=Linear(6, 2),
        ),
        "node 'cat' (cat): neurons lie on axes [1, 2] of what it joins",
    ),
    "statistics_of_instances": (
        "image",
        lambda: image(lambda s, y: s.n(y), n=nn.InstanceNorm2d(6, track_running_stats=True)),
        "an instance norm with running statistics is not supported",
    ),
    "batch_norm_by_function": (
        "image",
        lambda: image(lambda s, y: F.batch_norm(y, s.n.running_mean, s.n.running_var), n=nn.BatchNorm2d(6)),
        "node 'batch_norm' (batch_norm): only the layers nn.BatchNorm1d to 3d are supported",
    ),
    "a_mask_for_each_head": (
        "tokens",
        lambda: tokens(lambda s, y: attended(s, y, attn_mask=s.o.value), **attention(), o=Offset(8, 6, 6)),
        "node 'm' (module 'm', MultiheadAttention): a mask for each head is not supported",
    ),
    "a_learned_mask": (
        "tokens",
        lambda: tokens(lambda s, y: attended(s, y, attn_mask=s.p), **attention(), p=Parameter(torch.rand(6, 6))),
        "its attn_mask depends on weights",
    ),
    "attention_weights": (
        "tokens",
        lambda: tokens(lambda s, y: y + s.m(y, y, y)[1].mean(2, keepdim=True), **attention()),
        "this use of activations or parameters is not supported",
    ),
    "recurrence": (
        "tokens",
        lambda: Net(lambda s, x: s.b(s.a(x)[0][:, -1]), a=nn.LSTM(5, 4, batch_first=True), b=Linear(4, 2)),
        "node 'a' (module 'a', LSTM): this layer is not supported; docs/symmetries.md lists those that are",
    ),
    "transposed_convolution": (
        "image",
        lambda: image(lambda s, y: s.c(y), c=nn.ConvTranspose2d(6, 6, 3)),
        "node 'c' (module 'c', ConvTranspose2d): this layer is not supported",
    ),
    "encoder_layer": (
        "tokens",
        lambda: tokens(lambda s, y: s.c(y), c=nn.TransformerEncoderLayer(8, 2, 7, batch_first=True)),
        "node 'c' (module 'c', TransformerEncoderLayer): this layer is not supported",
    ),
    "weight_norm": (
        "vector",
        lambda: vector(lambda s, y: s.c(y), c=nn.utils.parametrizations.weight_norm(Linear(4, 4))),
        "node 'c' (module 'c', ParametrizedLinear): this layer is not supported",
    ),
    "unbatched": (
        "signal",
        lambda: Net(lambda s, x: s.a(x), a=Conv2d(2, 2, 1)),
        "node 'a' (module 'a', Conv2d): needs a batch axis, but its input has shape (2, 3, 8)",
    ),
    "branches": (
        "vector",
        lambda: vector(lambda s, y: y if y.sum() > 0 else -y),
        "Net cannot be written as a graph of operations: symbolically traced variables cannot be used as inputs to "
        "control flow; its forward pass must not depend on the values, the length or the type of its input",
    ),
    "length": (
        "vector",
        lambda: vector(lambda s, y: y * len(y)),
        "Net cannot be written as a graph of operations: 'len' is not",
    ),
    "ends_in_an_activation": (
        "vector",
        lambda: nn.Sequential(Linear(5, 2), nn.Tanh()),
        "the network ends in tanh; it must end in a layer that gives logits or values",
    ),
    "gives_a_hidden_layer": (
        "vector",
        lambda: Net(lambda s, x: (s.b(s.a(x).relu()), s.a(x).relu()), a=Linear(5, 4), b=Linear(4, 2)),
        "the network ends in relu",
    ),
    "gives_its_input": (
        "vector",
        lambda: nn.ReLU(),
        "node 'output' (output): the network's output does not come from a layer with weights",
    ),
}


@pytest.mark.parametrize(("given", "build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_the_rest_is_refused_in_one_line(given: str, build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=re.escape(message)) as error:
        WeightSpace.from_module(build(), INPUTS[given])
    assert "\n" not in str(error.value)
