"""What a rule of tracing is given, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from wsflow.weightspace.elements import GroupVector, VectorKind, WeightBlock
from wsflow.weightspace.labels import Label, Neurons, Scale, Segment, UnsupportedModuleError

if TYPE_CHECKING:
    from wsflow.weightspace.trace import Tracing


@dataclass(frozen=True)
class Param:
    """A parameter or buffer of the network.

    Attributes:
        name: Its first name in the state_dict.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.shape)


Mark: TypeAlias = "Label | Param | tuple[Any, ...] | None"
"""What is known of a value: its label, that it is a parameter, or nothing (then it comes from inputs and constants)."""


@dataclass(frozen=True)
class Call:
    """One operation of the network.

    Attributes:
        tracing: The walk through the network.
        module: The layer, where the operation is one.
        name: The node's name.
        args: Values of the positional arguments.
        kwargs: Values of the named arguments.
        marks: Marks of the positional arguments, nested as they are.
        named: Marks of the named arguments.
        result: The value.
    """

    tracing: Tracing
    module: nn.Module | None
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    marks: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any

    def arg(self, place: int, name: str, default: Any = None) -> Any:
        """The value of an argument."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def mark(self, place: int, name: str) -> Any:
        """The mark of an argument."""
        return self.marks[place] if len(self.marks) > place else self.named.get(name)

    @property
    def input(self) -> Tensor:
        """The first argument."""
        value: Tensor = self.arg(0, "input")
        return value

    @property
    def label(self) -> Label | None:
        """The label of the first argument; None for inputs and constants.

        Raises:
            UnsupportedModuleError: for a parameter.
        """
        mark = self.mark(0, "input")
        if isinstance(mark, Param):
            raise UnsupportedModuleError(f"is applied to the parameter {mark.name!r} and not to an activation")
        return mark if isinstance(mark, Label) else None

    def label_on(self, axis: int) -> Label:
        """The label of the first argument, whose channels the layer reads along ``axis``.

        Raises:
            UnsupportedModuleError: where they lie on another axis.
        """
        axis %= self.input.ndim
        label = self.label
        if label is None:
            return Label(axis, (self.tracing.input(self.input.shape[axis]),))
        if label.axis != axis:
            raise UnsupportedModuleError(
                f"acts along axis {axis} of an activation {tuple(self.input.shape)} whose neurons lie on axis "
                f"{label.axis}"
            )
        return label

    def flat_marks(self) -> Iterator[Mark]:
        """Marks of all arguments, nested ones one by one."""
        stack: list[Any] = [*self.marks, *self.named.values()]
        while stack:
            mark = stack.pop(0)
            if isinstance(mark, Mapping):
                mark = tuple(mark.values())
            if isinstance(mark, list | tuple):
                stack = [*mark, *stack]
            else:
                yield mark


@dataclass(eq=False)
class Draft:
    """A piece of a tensor whose groups and factors are not yet named.

    Attributes:
        tensor: The tensor.
        target: The neurons that a block feeds, or that a vector sits on, with their factors; None for a running
            statistic's or a slope's factors.
        source: The neurons that a block reads, with their factors; of a kernel, the factors that divide it.
        kind: The kind of a vector; None for a block.
        kernel: Positions of an edge, or of a vector's neurons.
        row: First row (blocks), or first number (vectors).
        column: First column.
        parts: Of a grouped convolution.
        inverse: Whether the target's factors divide.
        leading: Whether a vector's positions come before its neurons.
        eps: Of a running variance.
    """

    tensor: Param
    target: Segment
    source: Segment | None = None
    kind: VectorKind | None = None
    kernel: tuple[int, ...] = ()
    row: int = 0
    column: int = 0
    parts: int = 1
    inverse: bool = False
    leading: bool = False
    eps: float = 0.0

    @property
    def buffer(self) -> bool:
        """Whether this is a running statistic."""
        return self.kind is not None and self.kind.startswith("running")

    def neurons(self) -> list[Neurons]:
        """The classes of neurons it touches."""
        ends = [self.target] if self.kind is not None or self.source is None else [self.source, self.target]
        return [end.neurons.find() for end in ends]

    def scales(self) -> list[Scale]:
        """The factors it carries."""
        return [end.scale.find() for end in (self.target, self.source) if end is not None]

    def freeze(self) -> None:
        """Let what it touches keep its order and scale."""
        for neurons in self.neurons():
            neurons.fixed = True
        for scale in self.scales():
            scale.fixed = True

    def tie(self, other: Draft) -> None:
        """Let two uses of one piece permute and rescale alike.

        Raises:
            UnsupportedModuleError: where the uses differ.
        """
        ends = [(self.target, other.target)]
        if self.source is not None and other.source is not None:
            ends.append((self.source, other.source))
        uses = [(use.kind, use.kernel, use.parts, use.inverse, use.leading, use.eps) for use in (self, other)]
        same = uses[0] == uses[1] and (self.source is None) == (other.source is None)
        for a, b in ends:
            if not same or a.neurons.find().size != b.neurons.find().size:
                raise UnsupportedModuleError(f"the parameter {self.tensor.name!r} is used in two different ways")
            a.neurons.merge(b.neurons)
            a.scale.merge(b.scale)

    def piece(
        self, start: int, names: Mapping[Neurons, str], factors: Mapping[Scale, str]
    ) -> WeightBlock | GroupVector:
        """The finished piece.

        Args:
            start: Offset of the tensor in the (extended) flat vector.
            names: Names of the groups.
            factors: Names of the rescalings.
        """
        target, scale = self.target.neurons.find(), factors.get(self.target.scale.find())
        source_scale = factors.get(self.source.scale.find()) if self.source is not None else None
        name, shape, depth = self.tensor.name, self.tensor.shape, prod(self.kernel)
        if self.kind is not None:
            return GroupVector(
                name,
                names[target],
                self.kind,
                target.size,
                start,
                shape,
                self.row,
                depth,
                self.leading,
                scale,
                source_scale,
                self.eps,
                self.inverse,
            )
        assert self.source is not None
        source = self.source.neurons.find()
        ends = (names[source], names[target], target.size, source.size)
        scales = (source_scale, scale, self.inverse)
        return WeightBlock(name, *ends, self.kernel, shape, start, self.row, self.column, self.parts, *scales)
