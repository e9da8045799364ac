"""Which neurons each axis of each activation carries.

Tracing walks through a network and labels every activation: along its channel axis lie *segments*, each the neurons of
one class (times a kernel of positions, after a flatten).  Whatever forces two layers to permute alike merges their
classes (a residual sum, for instance); whatever forces their factors to be alike merges their scales.  A class of
neurons can hold several scales, since batch norm lets the factors change while the order stays.

Both are union-find forests: after ``merge(a, b)``, ``a.find() is b.find()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import lcm, prod
from typing import Self

from wsflow.weightspace.elements import Scaling


class UnsupportedModuleError(ValueError):
    """A network whose symmetries wsflow does not know."""


@dataclass(eq=False)
class Class:
    """A node of a union-find forest."""

    parent: Self | None = field(default=None, init=False, repr=False)

    def find(self) -> Self:
        """The representative of the class."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def merge(self, other: Self) -> Self:
        """Make two classes one; the representative, into which :meth:`_absorb` has gathered what both knew."""
        a, b = self.find(), other.find()
        if a is not b:
            a._absorb(b)
            b.parent = a
        return a

    def _absorb(self, other: Self) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class Parts(Class):
    """Equal parts that permute whole, shared by all classes of neurons that name it.

    Attributes:
        count: The number of parts.
        across: Whether they may change places.
    """

    count: int = 1
    across: bool = True

    def _absorb(self, other: Parts) -> None:
        self.across = self.across and other.across


@dataclass(eq=False)
class Neurons(Class):
    """A layer of neurons, or several that permute alike.

    Attributes:
        size: Their number.
        order: Place of first appearance.
        fixed: Whether they have an order of their own: inputs, outputs, what a frozen tensor touches.
        inputs: Whether they are inputs of the network.
        outputs: Whether they are outputs of the network.
        activation: What is first applied to them.
        parts: Equal parts that keep together.
    """

    size: int
    order: int
    fixed: bool = False
    inputs: bool = False
    outputs: bool = False
    activation: str | None = None
    parts: Parts | None = None

    def _absorb(self, other: Neurons) -> None:
        self.fixed, self.inputs = self.fixed or other.fixed, self.inputs or other.inputs
        self.outputs = self.outputs or other.outputs
        first, second = (self, other) if self.order < other.order else (other, self)
        self.activation = first.activation or second.activation
        self.order = first.order
        if other.parts is not None:
            self.divide(other.parts)

    def divide(self, parts: Parts) -> None:
        """Let equal parts keep together; of two divisions, only what lies within both may permute."""
        mine = self.parts.find() if self.parts is not None else None
        parts = parts.find()
        if mine is None or mine is parts:
            self.parts = parts
        elif mine.count == parts.count:
            self.parts = mine.merge(parts)
        else:
            mine.across = parts.across = False
            self.parts = Parts(lcm(mine.count, parts.count), across=False)


@dataclass(eq=False)
class Scale(Class):
    """Factors of a class of neurons.

    Attributes:
        neurons: Whose factors.
        order: Place of first appearance.
        limits: What activations allow: ``positive``, ``sign``; both together allow nothing.
        fixed: Whether every factor must be 1.
        diagonal: Whether something acts on single neurons in between, so that only factors are symmetries and not
            every matrix.
        count: Number of factors, where several neurons must share one.
    """

    neurons: Neurons
    order: int
    limits: set[Scaling] = field(default_factory=set)
    fixed: bool = False
    diagonal: bool = False
    count: int | None = None

    def _absorb(self, other: Scale) -> None:
        self.limits |= other.limits
        self.fixed, self.diagonal = self.fixed or other.fixed, self.diagonal or other.diagonal
        self.order = min(self.order, other.order)
        counts = {count for count in (self.count, other.count) if count is not None}
        self.fixed = self.fixed or len(counts) > 1
        self.count = next(iter(counts), None)

    @property
    def scaling(self) -> Scaling | None:
        """The factors that are allowed; None where there are none but 1."""
        if self.fixed or len(self.limits) > 1:
            return None
        return next(iter(self.limits), "positive" if self.diagonal else "linear")


@dataclass(frozen=True)
class Segment:
    """Neurons along a part of an axis, each with a kernel of positions.

    Attributes:
        neurons: Their class.
        scale: Their factors.
        kernel: Axes that were flattened into this one behind the neurons.
    """

    neurons: Neurons
    scale: Scale
    kernel: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """Positions of a neuron."""
        return prod(self.kernel)

    @property
    def length(self) -> int:
        """Entries of the axis."""
        return self.neurons.size * self.depth

    def rescaled(self, scale: Scale) -> Segment:
        """The same neurons with other factors."""
        return replace(self, scale=scale)


@dataclass(frozen=True)
class Label:
    """What an activation carries.

    Attributes:
        axis: Its channel axis.
        segments: What lies along it.
    """

    axis: int
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Entries of the channel axis."""
        return sum(segment.length for segment in self.segments)

    def at(self, axis: int) -> Label:
        """The same along another axis."""
        return replace(self, axis=axis)

    def limit(self, scaling: Scaling | None) -> None:
        """Let factors be only of this kind, or only 1 for None."""
        for segment in self.segments:
            scale = segment.scale.find()
            scale.diagonal = True
            if scaling is None:
                scale.fixed = True
            else:
                scale.limits.add(scaling)

    def fix(self) -> None:
        """Let nothing permute or rescale."""
        self.limit(None)
        for segment in self.segments:
            segment.neurons.find().fixed = True


def merge(labels: Sequence[Label], scales: bool = True) -> Label:
    """Let activations permute alike and, unless told otherwise, rescale alike.

    Raises:
        UnsupportedModuleError: where their channel axes are not made up alike.
    """
    first = labels[0]
    for other in labels[1:]:
        forms = [[(s.neurons.size, s.depth) for s in label.segments] for label in (first, other)]
        if first.axis != other.axis or forms[0] != forms[1]:
            raise UnsupportedModuleError(
                f"joins activations whose channels are made up differently: {forms[0]} on axis {first.axis} "
                f"and {forms[1]} on axis {other.axis} (neurons, positions)"
            )
        for a, b in zip(first.segments, other.segments, strict=True):
            a.neurons.merge(b.neurons)
            if scales:
                a.scale.merge(b.scale)
    return first
