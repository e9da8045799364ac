"""How layers with parameters join neurons.

One rule per layer.  A rule gives the label of what the layer puts out and leaves behind the pieces of its tensors:

- linear layers and convolutions: a block from the neurons read to new neurons, with new factors; a grouped convolution
  lets only whole parts permute, a depthwise one keeps the neurons and changes their factors;
- batch norm: running statistics carry the factors that enter, weight and bias the new ones that leave;
- layer and group norm: factors that enter must be shared by what is normalised together, and be 1 unless eps is 0;
- attention: queries and keys share one class of neurons and values have another; both fall into heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from wsflow.weightspace.calls import Call, Draft, Mark, Param
from wsflow.weightspace.elements import VectorKind
from wsflow.weightspace.labels import Label, Parts, Segment, UnsupportedModuleError


def affine(call: Call, label: Label, weight: Param, bias: Param | None) -> Label:
    """New neurons that read all others through a weight ``(out, in, *kernel)``."""
    tracing = call.tracing
    target = tracing.segment(tracing.neurons(weight.shape[0]))
    column, positions = 0, weight.shape[2:]
    for source in label.segments:
        kernel = source.kernel + positions
        tracing.draft(Draft(weight, target, source, kernel=kernel, column=column))
        column += source.length * prod(positions)
    _vector(call, bias, "bias", (target,))
    return Label(label.axis, (target,))


def _vector(call: Call, tensor: Param | None, kind: VectorKind, segments: tuple[Segment, ...], **settings: Any) -> None:
    """A tensor with the numbers of each segment one after another; nothing where there is no tensor."""
    row = 0
    for segment in segments:
        if tensor is not None:
            call.tracing.draft(Draft(tensor, segment, kind=kind, kernel=segment.kernel, row=row, **settings))
        row += segment.length


def linear(call: Call) -> Label:
    """``nn.Linear``: reads the last axis."""
    layer = call.module
    assert isinstance(layer, nn.Linear)
    weight = call.tracing.param(layer.weight)
    assert weight is not None
    return affine(call, call.label_on(-1), weight, call.tracing.param(layer.bias))


def convolution(call: Call) -> Label:
    """``nn.Conv1d`` to ``nn.Conv3d``: reads axis 1."""
    layer = call.module
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight, bias = call.tracing.param(layer.weight), call.tracing.param(layer.bias)
    assert weight is not None
    return convolve(call, weight, bias, layer.groups)


def convolve(call: Call, weight: Param, bias: Param | None, groups: int) -> Label:
    """A convolution, also grouped or depthwise; an unbatched image is refused."""
    if call.input.ndim != len(weight.shape):
        raise UnsupportedModuleError(f"needs a batch axis, but its input has shape {tuple(call.input.shape)}")
    label = call.label_on(1)
    if groups == 1:
        return affine(call, label, weight, bias)
    if len(label.segments) > 1 or label.segments[0].kernel:
        raise UnsupportedModuleError("a grouped convolution of concatenated or flattened activations is not supported")
    source = label.segments[0]
    neurons, tracing = source.neurons.find(), call.tracing
    if groups == neurons.size == weight.shape[0]:
        target = tracing.segment(neurons)
        target.scale.diagonal = True
        tracing.draft(Draft(weight, target, source, "kernel", weight.shape[2:]))
    else:
        target = tracing.segment(tracing.neurons(weight.shape[0]))
        parts = Parts(groups)
        neurons.divide(parts)
        target.neurons.divide(parts)
        tracing.draft(Draft(weight, target, source, kernel=weight.shape[2:], parts=groups))
    source.scale.find().diagonal = True
    _vector(call, bias, "bias", (target,))
    return Label(1, (target,))


def batch_norm(call: Call) -> Label:
    """``nn.BatchNorm1d`` to ``3d``, and instance norm: per channel."""
    layer = call.module
    assert isinstance(layer, nn.modules.batchnorm._NormBase)
    label, tracing = call.label_on(1), call.tracing
    running = layer.running_mean is not None
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        if running:
            raise UnsupportedModuleError("an instance norm with running statistics is not supported")
        if call.input.ndim != int(type(layer).__name__[-2]) + 2:
            raise UnsupportedModuleError(f"needs a batch axis, but its input has shape {tuple(call.input.shape)}")
    label.limit("positive" if running else None)
    if running:
        _vector(call, tracing.param(layer.running_mean), "running_mean", label.segments)
        _vector(call, tracing.param(layer.running_var), "running_var", label.segments, eps=layer.eps)
    return _norm_affine(call, label, tracing.param(layer.weight), tracing.param(layer.bias))


def _norm_affine(call: Call, label: Label, weight: Param | None, bias: Param | None) -> Label:
    """New factors after a norm, carried by its weight and bias; without them, what a norm gives has a scale of 1."""
    if weight is None and bias is not None:
        raise UnsupportedModuleError("a norm with a bias needs a weight too")
    segments = tuple(s.rescaled(call.tracing.scale(s.neurons.find(), fixed=weight is None)) for s in label.segments)
    result = Label(label.axis, segments)
    for segment in segments:
        segment.scale.diagonal = True
    _vector(call, weight, "norm_weight", segments)
    _vector(call, bias, "norm_bias", segments)
    return result


def layer_norm(call: Call) -> Label:
    """``nn.LayerNorm`` and ``nn.RMSNorm``."""
    layer, param = call.module, call.tracing.param
    assert isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    bias = param(getattr(layer, "bias", None))
    return normalise_layer(call, layer.normalized_shape, param(layer.weight), bias, layer.eps)


def normalise_layer(
    call: Call, shape: Sequence[int], weight: Param | None, bias: Param | None, eps: float | None
) -> Label:
    """A layer norm over the channel axis, with or without axes behind it."""
    label = call.label_on(-len(shape))
    behind = tuple(shape[1:])
    if behind and any(segment.kernel for segment in label.segments):
        raise UnsupportedModuleError("a norm over flattened and further axes is not supported")
    _shared_factor(label, 1, eps)
    inner = Label(label.axis, tuple(replace(s, kernel=s.kernel + behind) for s in label.segments))
    result = _norm_affine(call, inner, weight, bias)
    outer = zip(label.segments, result.segments, strict=True)
    return Label(label.axis, tuple(old.rescaled(new.scale) for old, new in outer))


def group_norm(call: Call) -> Label:
    """``nn.GroupNorm``."""
    layer, param = call.module, call.tracing.param
    assert isinstance(layer, nn.GroupNorm)
    return normalise_groups(call, layer.num_groups, param(layer.weight), param(layer.bias), layer.eps)


def normalise_groups(call: Call, groups: int, weight: Param | None, bias: Param | None, eps: float) -> Label:
    """A group norm: parts of the channels are normalised together, so that they keep together."""
    label = call.label_on(1)
    channels = label.length
    if 1 < groups < channels:
        if len(label.segments) > 1 or label.segments[0].kernel:
            raise UnsupportedModuleError("a GroupNorm of concatenated or flattened activations is not supported")
        label.segments[0].neurons.find().divide(Parts(groups))
    _shared_factor(label, min(groups, label.segments[0].neurons.size), eps)
    return _norm_affine(call, label, weight, bias)


def _shared_factor(label: Label, count: int, eps: float | None) -> None:
    """Factors that enter a norm: ``count``, each for neurons normalised together, and 1 unless eps is 0."""
    exact = eps == 0.0 and len(label.segments) == 1
    label.limit("positive" if exact else None)
    scale = label.segments[0].scale.find()
    if scale.count not in (None, count):
        scale.fixed = True
    scale.count = count


def p_relu(call: Call) -> Mark:
    """``nn.PReLU``: positive factors; its slopes permute with the neurons, or belong to none where there is one."""
    layer = call.module
    assert isinstance(layer, nn.PReLU)
    label = call.label_on(1) if layer.num_parameters > 1 or call.label is None else call.label
    label.limit("positive")
    for segment in label.segments:
        neurons = segment.neurons.find()
        neurons.activation = neurons.activation or "prelu"
    slope = call.tracing.param(layer.weight)
    if layer.num_parameters > 1:
        _vector(call, slope, "slope", label.segments)
    else:
        lone = call.tracing.segment(call.tracing.neurons(1, fixed=True), fixed=True)
        _vector(call, slope, "slope", (lone,))
    return label


def embedding(call: Call) -> Label:
    """``nn.Embedding``: a vector of new neurons for every symbol."""
    layer = call.module
    assert isinstance(layer, nn.Embedding)
    if layer.max_norm is not None:
        raise UnsupportedModuleError("max_norm changes the weights in the forward pass")
    tracing, count = call.tracing, layer.num_embeddings
    segment = tracing.segment(tracing.neurons(layer.embedding_dim))
    weight = tracing.param(layer.weight)
    assert weight is not None
    tracing.draft(Draft(weight, segment, kind="embedding", kernel=(count,), leading=True))
    return Label(call.result.ndim - 1, (segment,))


def attention(call: Call) -> Mark:
    """``nn.MultiheadAttention``: heads permute whole, and within them neurons of queries and keys, or of values."""
    layer = call.module
    assert isinstance(layer, nn.MultiheadAttention)
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UnsupportedModuleError("add_bias_kv and add_zero_attn are not supported")
    if call.arg(0, "query").ndim != 3:
        shape = tuple(call.arg(0, "query").shape)
        raise UnsupportedModuleError(f"needs a batch axis, but its queries have shape {shape}")
    _same_for_all_heads(call)
    tracing, width = call.tracing, layer.embed_dim
    heads = Parts(layer.num_heads)
    match, value = (tracing.segment(tracing.neurons(width)) for _ in range(2))
    for segment in (match, value):
        if layer.num_heads > 1:
            segment.neurons.divide(heads)
    reads = [_attended(call, place, name) for place, name in enumerate(("query", "key", "value"))]
    weights = [layer.in_proj_weight] * 3
    if not layer._qkv_same_embed_dim:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    bias = tracing.param(layer.in_proj_bias)
    for i, (target, label, tensor) in enumerate(zip((match, match, value), reads, weights, strict=True)):
        weight = tracing.param(tensor)
        assert weight is not None
        column, row = 0, width * i * layer._qkv_same_embed_dim
        for source in label.segments:
            draft = Draft(weight, target, source, None, source.kernel, row, column, inverse=i == 1)
            tracing.draft(draft)
            column += source.length
        if bias is not None:
            tracing.draft(Draft(bias, target, kind="bias", row=width * i, inverse=i == 1))
    weight = tracing.param(layer.out_proj.weight)
    assert weight is not None
    out = affine(call, Label(2, (value,)), weight, tracing.param(layer.out_proj.bias))
    return (out, None)


def _same_for_all_heads(call: Call) -> None:
    """Raise UnsupportedModuleError for masks that tell heads apart or depend on weights."""
    for place, name in ((3, "key_padding_mask"), (5, "attn_mask")):
        if call.mark(place, name) is not None:
            raise UnsupportedModuleError(f"its {name} depends on weights")
    mask = call.arg(5, "attn_mask")
    if mask is not None and mask.ndim > 2:
        raise UnsupportedModuleError("a mask for each head is not supported")


def _attended(call: Call, place: int, name: str) -> Label:
    """What queries, keys or values are computed from; the last axis."""
    value, mark = call.arg(place, name), call.mark(place, name)
    if isinstance(mark, Param):
        raise UnsupportedModuleError(f"its {name} is the parameter {mark.name!r} and no activation")
    if mark is None:
        return Label(value.ndim - 1, (call.tracing.input(value.shape[-1]),))
    if not isinstance(mark, Label) or mark.axis != value.ndim - 1:
        raise UnsupportedModuleError(f"the neurons of its {name} do not lie on the last axis")
    return mark


MODULES: dict[type[nn.Module], Callable[[Call], Mark]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.InstanceNorm1d: batch_norm,
    nn.InstanceNorm2d: batch_norm,
    nn.InstanceNorm3d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.PReLU: p_relu,
    nn.Embedding: embedding,
    nn.MultiheadAttention: attention,
}
"""Rules by exact type: a subclass may compute something else."""
