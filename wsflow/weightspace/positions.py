"""Operations along the axes of positions: pooling, padding, resizing.

They treat all channels alike, so that neurons keep their order.  Means, zero padding and interpolation are linear and
keep the factors too; maxima and power means keep positive ones, and padding with another constant keeps none.  Along
the axis that holds the neurons they are refused.
"""

from __future__ import annotations

from collections.abc import Callable

from wsflow.weightspace.calls import Call, Mark
from wsflow.weightspace.labels import Label, UnsupportedModuleError

Rule = Callable[[Call], Mark]


def average(axes: int) -> Rule:
    """Means over windows of the last axes."""

    def rule(call: Call) -> Mark:
        return _apart(call, axes)

    return rule


def maximum(axes: int) -> Rule:
    """Maxima or power means over windows of the last axes."""

    def rule(call: Call) -> Mark:
        label = _apart(call, axes)
        if label is not None:
            label.limit("positive")
        return (label, None) if isinstance(call.result, tuple) else label

    return rule


def padding(axes: int) -> Rule:
    """``nn.ZeroPad2d`` and its kin."""

    def rule(call: Call) -> Mark:
        return _padded(_apart(call, axes), getattr(call.module, "value", 0.0))

    return rule


def pad(call: Call) -> Mark:
    """``torch.nn.functional.pad``."""
    widths, mode = call.arg(1, "pad"), call.arg(2, "mode", "constant")
    axes = max((i // 2 + 1 for i, width in enumerate(widths) if width), default=0)
    return _padded(_apart(call, axes), call.arg(3, "value") if mode == "constant" else 0.0)


def resize(call: Call) -> Mark:
    """Interpolation along all axes behind the second."""
    return _apart(call, call.input.ndim - 2)


def _padded(label: Label | None, value: float | None) -> Label | None:
    if label is not None and value:
        label.limit(None)
    return label


def _apart(call: Call, axes: int) -> Label | None:
    """The label of the first argument, whose neurons must not lie on the last axes."""
    label = call.label
    if label is not None and label.axis >= call.input.ndim - axes:
        raise UnsupportedModuleError(
            f"acts along axis {label.axis} of an activation {tuple(call.input.shape)}, which holds its neurons"
        )
    return label
