"""Where the channel axis goes when axes are merged, moved, dropped or added.

Flattening the axes behind the channels gives each neuron several positions, in the order (neuron, position).  Merging
axes that come before the channels would mix the neurons with them, and is refused; so is splitting the channels.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from wsflow.weightspace.calls import Call, Mark
from wsflow.weightspace.labels import Label, UnsupportedModuleError


def reshaped(call: Call) -> Mark:
    """Views, moved axes, and sums, means and maxima over axes."""
    label = call.label
    if label is None:
        return None
    name = call.name.rstrip("_0123456789") if call.module is None else ""
    if name in ("mean", "sum", "amax"):
        if name == "amax":
            label.limit("positive")
        return _reduce(call, label)
    if name in ("permute", "transpose"):
        return label.at(_moved(call, name).index(label.axis))
    return view(label, tuple(call.input.shape), tuple(call.result.shape))


def _reduce(call: Call, label: Label) -> Mark:
    ndim = call.input.ndim
    given: Any = call.arg(1, "dim")
    axes = range(ndim) if given is None else [given] if isinstance(given, int) else given
    gone = {axis % ndim for axis in axes}
    if label.axis in gone:
        raise UnsupportedModuleError("reduces over the channels")
    if call.arg(2, "keepdim", False):
        return label
    return label.at(label.axis - sum(axis < label.axis for axis in gone))


def _moved(call: Call, name: str) -> list[int]:
    """Old places of the new axes."""
    ndim = call.input.ndim
    if name == "transpose":
        first, second = call.arg(1, "dim0") % ndim, call.arg(2, "dim1") % ndim
        order = list(range(ndim))
        order[first], order[second] = second, first
        return order
    given: Any = call.arg(1, "dims")
    axes = given if isinstance(given, list | tuple) else call.args[1:]
    return [axis % ndim for axis in axes]


def view(label: Label, old: tuple[int, ...], new: tuple[int, ...]) -> Label:
    """The label after a reshape from shape ``old`` to shape ``new``.

    Raises:
        UnsupportedModuleError: where the channels are split, or merged with axes before them.
    """
    size, before = old[label.axis], prod(old[: label.axis])
    for axis, length in enumerate(new):
        if prod(new[:axis]) == before and length % size == 0 and length >= size:
            kernel = _merged(old[label.axis + 1 :], length // size)
            if kernel is not None:
                segments = tuple(replace(s, kernel=s.kernel + kernel) for s in label.segments)
                return Label(axis, segments)
    raise UnsupportedModuleError(
        f"reshapes {old} to {new}, which splits the neurons of axis {label.axis} or merges them with axes before it"
    )


def _merged(behind: tuple[int, ...], positions: int) -> tuple[int, ...] | None:
    """The axes that were merged into the channels', of so many positions in all; None where they do not fit."""
    if positions == 1:
        return ()
    for count in range(1, len(behind) + 1):
        if prod(behind[:count]) == positions:
            return behind[:count]
    return None
