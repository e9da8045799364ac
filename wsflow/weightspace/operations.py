"""How operations without layers of their own pass neurons on.

- elementwise functions keep the order and limit the factors (Godfrey et al. 2022): positive for ReLU and its kin, signs
  for odd functions, none for the rest;
- what acts along other axes keeps the neurons (:mod:`wsflow.weightspace.positions`);
- sums tie what they add; concatenation lays segments side by side; flattening gives each neuron several positions;
- a constant that differs from channel to channel, or the network's input, gives the neurons it meets a fixed order.
"""

from __future__ import annotations

import operator
from math import prod
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, fx, nn

from wsflow.weightspace import layers
from wsflow.weightspace.calls import Call, Draft, Mark, Param
from wsflow.weightspace.elements import Scaling
from wsflow.weightspace.labels import Label, UnsupportedModuleError, merge
from wsflow.weightspace.layers import affine, convolve
from wsflow.weightspace.positions import Rule, average, maximum, pad, padding, resize
from wsflow.weightspace.reshaping import reshaped

ACTIVATIONS: dict[str, tuple[type[nn.Module] | None, Scaling | None]] = {
    "relu": (nn.ReLU, "positive"),
    "leaky_relu": (nn.LeakyReLU, "positive"),
    "rrelu": (nn.RReLU, "positive"),
    "tanh": (nn.Tanh, "sign"),
    "softsign": (nn.Softsign, "sign"),
    "tanhshrink": (nn.Tanhshrink, "sign"),
    "softshrink": (nn.Softshrink, "sign"),
    "hardshrink": (nn.Hardshrink, "sign"),
    "sin": (None, "sign"),
    "gelu": (nn.GELU, None),
    "silu": (nn.SiLU, None),
    "mish": (nn.Mish, None),
    "elu": (nn.ELU, None),
    "selu": (nn.SELU, None),
    "celu": (nn.CELU, None),
    "softplus": (nn.Softplus, None),
    "sigmoid": (nn.Sigmoid, None),
    "logsigmoid": (nn.LogSigmoid, None),
    "relu6": (nn.ReLU6, None),
    "hardtanh": (nn.Hardtanh, None),
    "hardswish": (nn.Hardswish, None),
    "hardsigmoid": (nn.Hardsigmoid, None),
    "softmax": (nn.Softmax, None),
    "log_softmax": (nn.LogSoftmax, None),
}
"""Activations by the name that a neuron group carries, with the factors they commute with (Godfrey et al. 2022)."""


def activation(name: str, scaling: Scaling | None) -> Rule:
    """The rule of an elementwise function."""

    def rule(call: Call) -> Mark:
        label = call.label
        if label is None:
            return None
        label.limit(scaling)
        for segment in label.segments:
            neurons = segment.neurons.find()
            neurons.activation = neurons.activation or name
        return label

    return rule


def keep(call: Call) -> Mark:
    """What leaves neurons and factors as they are."""
    return call.label


def dropped(call: Call) -> Mark:
    """Dropout and stochastic depth, which do nothing in evaluation."""
    place = 3 if call.name.startswith("stochastic_depth") else 2
    if call.arg(place, "training", call.kwargs.get("train", True)):
        raise UnsupportedModuleError("drops values in evaluation too; pass it training=self.training")
    return call.label


def forget(_: Call) -> Mark:
    """Sizes and other plain values."""
    return None


def add(call: Call) -> Mark:
    """Sums and differences."""
    return _combine(call, multiply=False)


def multiply(call: Call) -> Mark:
    """Products."""
    return _combine(call, multiply=True)


def divide(call: Call) -> Mark:
    """Quotients, which keep no factors of what they divide by."""
    below = call.mark(1, "other")
    if isinstance(below, Param) and below.numel > 1:
        raise UnsupportedModuleError(f"divides by the parameter {below.name!r}; multiply by one instead")
    if isinstance(below, Label):
        below.limit(None)
    return _combine(call, multiply=True)


def _combine(call: Call, multiply: bool) -> Mark:
    values = call.arg(0, "input"), call.arg(1, "other")
    marks = call.mark(0, "input"), call.mark(1, "other")
    if further := {name for name, value in call.kwargs.items() if value is not None} - {"input", "other", "alpha"}:
        raise UnsupportedModuleError(f"its arguments {sorted(further)} are not supported")
    if len(call.args) > 2 or isinstance(call.named.get("alpha"), Label | Param):
        raise UnsupportedModuleError("only numbers are supported as alpha, by name")
    labels = [mark for mark in marks if isinstance(mark, Label)]
    if not labels:
        raise UnsupportedModuleError("combines a parameter with inputs, constants or parameters only")
    if len(labels) == 2:
        label = merge(_aligned(labels, values), scales=not multiply)
        if multiply:
            for one in labels:
                one.limit(None)
        return label
    place = 0 if isinstance(marks[0], Label) else 1
    label, other, mark = labels[0], values[1 - place], marks[1 - place]
    label = label.at(label.axis + call.result.ndim - values[place].ndim)
    if isinstance(mark, Param):
        return _with_parameter(call, label, other, mark, multiply)
    return _with_constant(call, label, other, multiply)


def _aligned(labels: list[Label], values: tuple[Any, ...]) -> list[Label]:
    """Labels with axes counted as broadcasting does."""
    ndim = max(value.ndim for value in values)
    return [label.at(label.axis + ndim - value.ndim) for label, value in zip(labels, values, strict=True)]


def _axis_of(call: Call, label: Label, other: Tensor) -> int:
    """The axis of ``other`` that meets the channels, negative if it has none there."""
    ndim: int = call.result.ndim
    return label.axis - (ndim - other.ndim)


def _with_constant(call: Call, label: Label, other: Any, multiply: bool) -> Mark:
    if isinstance(other, Tensor):
        axis = _axis_of(call, label, other)
        if axis >= 0 and other.shape[axis] > 1:
            label.fix()
    if not multiply:
        label.limit(None)
    return label


def _with_parameter(call: Call, label: Label, other: Tensor, param: Param, multiply: bool) -> Mark:
    axis, tracing = _axis_of(call, label, other), call.tracing
    if prod(other.shape) != param.numel:
        raise UnsupportedModuleError(f"the parameter {param.name!r} is expanded in a way that is not supported")
    if axis < 0 or other.shape[axis] == 1:
        lone = tracing.segment(tracing.neurons(1, fixed=True), fixed=True)
        tracing.draft(Draft(param, lone, kind="slope", kernel=(param.numel,)))
        if not multiply:
            label.limit(None)
        return label
    before, behind = prod(other.shape[:axis]), prod(other.shape[axis + 1 :])
    if other.shape[axis] != label.length or (before > 1 and behind > 1):
        raise UnsupportedModuleError(f"the parameter {param.name!r} of shape {param.shape} has axes on both sides")
    segments, row = [], 0
    for segment in label.segments:
        neurons, kernel = segment.neurons.find(), (*segment.kernel, max(before, behind))
        if before > 1 and segment.kernel:
            raise UnsupportedModuleError(f"the parameter {param.name!r} meets flattened neurons")
        target = segment.rescaled(tracing.scale(neurons)) if multiply else segment
        for scale in (segment.scale.find(), target.scale.find()):
            scale.diagonal = scale.diagonal or multiply
        source, kind = (segment, "kernel") if multiply else (None, "embedding")
        tracing.draft(Draft(param, target, source, kind, kernel, row, leading=before > 1))  # type: ignore[arg-type]
        row += segment.length * behind
        segments.append(target)
    return Label(label.axis, tuple(segments))


def concatenate(call: Call) -> Mark:
    """Segments side by side along the channel axis; along another axis, all parts permute and rescale alike."""
    values, marks = call.arg(0, "tensors"), call.mark(0, "tensors")
    axis = call.arg(1, "dim", call.kwargs.get("axis", 0)) % call.result.ndim
    labels = [mark for mark in marks if isinstance(mark, Label)]
    if not labels:
        raise UnsupportedModuleError("parameters are concatenated before they meet an activation")
    if axis == labels[0].axis:
        if any(label.axis != axis for label in labels):
            raise UnsupportedModuleError(f"neurons lie on axes {[label.axis for label in labels]} of what it joins")
        if any(isinstance(mark, Param) for mark in marks):
            raise UnsupportedModuleError("a parameter cannot be concatenated along the channel axis")
        pairs = zip(values, marks, strict=True)
        parts = [m if m is not None else Label(axis, (call.tracing.input(v.shape[axis]),)) for v, m in pairs]
        return Label(axis, tuple(segment for part in parts for segment in part.segments))
    label = merge(labels)
    for value, mark in zip(values, marks, strict=True):
        if isinstance(mark, Param):
            _with_parameter(call, label, _once(value, mark), mark, multiply=False)
        elif mark is None:
            _with_constant(call, label, value, multiply=False)
    return label


def _once(value: Tensor, param: Param) -> Tensor:
    """An expanded parameter without the copies along its first axis."""
    return value[:1] if value.shape[0] > 1 and prod(value.shape[1:]) == param.numel else value


def expand(call: Call) -> Mark:
    """Copies along axes of size 1."""
    mark: Mark = call.mark(0, "input")
    if isinstance(mark, Label):
        return mark.at(mark.axis + call.result.ndim - call.input.ndim)
    return mark


def select(call: Call) -> Mark:
    """``x[...]``: along other axes than the channels'; an entry of a tuple."""
    mark, value, index = call.marks[0], call.args[0], call.args[1]
    if isinstance(mark, tuple):
        entry: Mark = mark[index]
        return entry
    if isinstance(mark, Param):
        if call.result.shape != value.shape:
            raise UnsupportedModuleError(f"takes a part of the parameter {mark.name!r}")
        return mark
    if not isinstance(mark, Label) or not isinstance(value, Tensor):
        return None
    entries = _entries(index if isinstance(index, tuple) else (index,), value.ndim)
    if entries[mark.axis] != slice(None):
        raise UnsupportedModuleError("takes a part of the channels")
    return mark.at(mark.axis - sum(isinstance(entry, int) for entry in entries[: mark.axis]))


def _entries(index: tuple[Any, ...], ndim: int) -> list[Any]:
    """An index with one integer or slice for every axis."""
    if any(isinstance(entry, bool) or not isinstance(entry, int | slice | EllipsisType) for entry in index):
        raise UnsupportedModuleError("only integers and slices are supported as an index")
    dots = [place for place, entry in enumerate(index) if isinstance(entry, EllipsisType)]
    place = dots[0] if dots else len(index)
    missing = ndim - len(index) + len(dots)
    return [*index[:place], *[slice(None)] * missing, *index[place + 1 :]]


def linear(call: Call) -> Mark:
    """``torch.nn.functional.linear``."""
    weight, bias = _parameter(call, 1, "weight"), _optional(call, 2, "bias")
    return affine(call, call.label_on(-1), weight, bias)


def convolution(call: Call) -> Mark:
    """``torch.nn.functional.conv1d`` to ``conv3d``."""
    weight, bias = _parameter(call, 1, "weight"), _optional(call, 2, "bias")
    return convolve(call, weight, bias, call.arg(6, "groups", 1))


def layer_norm(call: Call) -> Mark:
    """``torch.nn.functional.layer_norm``."""
    weight, bias = _optional(call, 2, "weight"), _optional(call, 3, "bias")
    return layers.normalise_layer(call, call.arg(1, "normalized_shape"), weight, bias, call.arg(4, "eps", 1e-5))


def group_norm(call: Call) -> Mark:
    """``torch.nn.functional.group_norm``."""
    weight, bias = _optional(call, 2, "weight"), _optional(call, 3, "bias")
    return layers.normalise_groups(call, call.arg(1, "num_groups"), weight, bias, call.arg(4, "eps", 1e-5))


def batch_norm(_: Call) -> Mark:
    """``torch.nn.functional.batch_norm``, whose statistics could not be recomputed."""
    raise UnsupportedModuleError("only the layers nn.BatchNorm1d to 3d are supported")


def _parameter(call: Call, place: int, name: str) -> Param:
    found = _optional(call, place, name)
    if found is None:
        raise UnsupportedModuleError(f"its {name} is missing")
    return found


def _optional(call: Call, place: int, name: str) -> Param | None:
    mark = call.mark(place, name)
    if not isinstance(mark, Param) and call.arg(place, name) is not None:
        raise UnsupportedModuleError(f"its {name} is not a parameter of the network")
    return mark if isinstance(mark, Param) else None


def output(call: Call) -> None:
    """The neurons of the network's outputs have a fixed order and scale."""
    for mark in call.flat_marks():
        if mark is None:
            continue
        if not isinstance(mark, Label):
            raise UnsupportedModuleError("the network returns a parameter")
        mark.fix()
        for segment in mark.segments:
            segment.neurons.find().outputs = True
    if not any(isinstance(mark, Label) for mark in call.flat_marks()):
        raise UnsupportedModuleError("the network's output does not come from a layer with weights")


def name_of(node: fx.Node) -> str:
    """An operation's name: a method's, or a function's."""
    return str(getattr(node.target, "__name__", node.target)).removesuffix("_") or "output"


def rule_of(node: fx.Node) -> Rule:
    """The rule of a function or method.

    Raises:
        UnsupportedModuleError: where there is none, or the function only has the name of a known one.
    """
    name = name_of(node)
    rule = FUNCTIONS.get(name)
    places = (torch, nn.functional, operator, Tensor)
    known = (
        node.op == "call_method"
        or (name in FOREIGN and str(getattr(node.target, "__module__", "")).startswith("torchvision."))
        or any(getattr(place, n, None) is node.target for place in places for n in (name, f"{name}_"))
        or node.target is getattr
    )
    if rule is None or not known:
        raise UnsupportedModuleError("this operation is not supported")
    return rule


FOREIGN = ("stochastic_depth",)
"""Functions of torchvision that do nothing in evaluation."""

_DROPOUTS = ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", *FOREIGN]
_SIDES = (1, 2, 3)

FUNCTIONS: dict[str, Rule] = {
    **{name: activation(name, scaling) for name, (_, scaling) in ACTIVATIONS.items()},
    **dict.fromkeys(["add", "iadd", "sub", "isub"], add),
    **dict.fromkeys(["mul", "imul"], multiply),
    **dict.fromkeys(["div", "truediv", "itruediv"], divide),
    **dict.fromkeys(["contiguous", "clone", "detach", "neg"], keep),
    **dict.fromkeys(_DROPOUTS, dropped),
    **{f"{kind}avg_pool{d}d": average(d) for kind in ("", "adaptive_") for d in _SIDES},
    **{f"{kind}_pool{d}d": maximum(d) for kind in ("max", "adaptive_max", "lp") for d in _SIDES},
    **{f"{kind}_pool{d}d_with_indices": maximum(d) for kind in ("max", "adaptive_max") for d in _SIDES},
    "pad": pad,
    "interpolate": resize,
    **dict.fromkeys(
        ["flatten", "view", "reshape", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"], reshaped
    ),
    **dict.fromkeys(["mean", "sum", "amax"], reshaped),
    **dict.fromkeys(["size", "dim", "getattr", "numel"], forget),
    **dict.fromkeys(["cat", "concat", "concatenate"], concatenate),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    "getitem": select,
    "expand": expand,
    "linear": linear,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
}
"""Rules of functions and methods by name; in-place forms, with an underscore, have the same."""

_KEPT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_PADS = ("Zero", "Constant", "Reflection", "Replication", "Circular")

MODULES: dict[type[nn.Module], Rule] = {
    **{cls: activation(name, scaling) for name, (cls, scaling) in ACTIVATIONS.items() if cls is not None},
    **dict.fromkeys(_KEPT, keep),
    **{getattr(nn, f"{kind}AvgPool{d}d"): average(d) for kind in ("", "Adaptive") for d in _SIDES},
    **{getattr(nn, f"{kind}Pool{d}d"): maximum(d) for kind in ("Max", "AdaptiveMax", "LP") for d in _SIDES},
    **{getattr(nn, f"{kind}Pad{d}d"): padding(d) for kind in _PADS for d in _SIDES},
    nn.Upsample: resize,
    **dict.fromkeys([nn.Flatten, nn.Unflatten], reshaped),
}
"""Rules of layers without parameters, by exact type."""
