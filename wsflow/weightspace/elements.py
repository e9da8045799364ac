r"""What a weight space is made of.

*Neuron groups* are layers of interchangeable neurons or channels.  *Pieces* say which group each axis of a weight
tensor belongs to: a *block* joins two groups, a *vector* sits on one.  One tensor can hold several pieces, side by
side: the inputs of a layer that reads a concatenation, or queries, keys and values of attention.  *Rescalings* are
the families of factors that keep the network's function.

A tensor is seen as a matrix ``(rows, columns)``, its first axis against all others.  A block is a rectangle of it,
``out`` rows from ``row`` on and ``in * depth`` columns from ``column`` on; depth counts the numbers that one edge
carries: the positions of a kernel, or those of a feature map that was flattened.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

Role = Literal["input", "hidden", "output"]
Scaling = Literal["positive", "sign", "linear"]
VectorKind = Literal["bias", "norm_weight", "norm_bias", "running_mean", "running_var", "kernel", "embedding", "slope"]


def split_last(values: Tensor, *sizes: int) -> Tensor:
    """A view of ``values`` whose last axis is cut into axes of these sizes, one of which may be -1."""
    rest = values.shape[-1] // -prod(sizes) if -1 in sizes else 0  # by hand: torch cannot where another axis is empty
    return values.view(*values.shape[:-1], *(rest if size == -1 else size for size in sizes))


@dataclass(frozen=True)
class Partition:
    """Equal parts of a neuron group, where only structured permutations are symmetries.

    Args:
        parts: The number of equal parts, such as attention heads or the groups of a GroupNorm.
        across: Whole parts may change places.
        within: Neurons may change places inside their part.
        key: Groups with the same key, unless empty, share the permutation of whole parts.
    """

    parts: int
    across: bool = True
    within: bool = True
    key: str = ""


@dataclass(frozen=True)
class NeuronGroup:
    """One layer of interchangeable neurons or channels; residual connections tie layers into one group.

    Args:
        name: A unique name.
        size: The number of neurons.
        role: ``hidden`` groups permute; ``input`` and ``output`` groups do not.
        activation: What is first applied to the group's neurons.  On the output, ``softmax`` says that the network is
            a classifier (labels do not change with the scale of the last layer) and ``identity`` that it is not.
        partition: Set where only structured permutations are allowed.
    """

    name: str
    size: int
    role: Role
    activation: str = "identity"
    partition: Partition | None = None


@dataclass(frozen=True)
class Rescaling:
    """Factors by which a group's neurons may be multiplied, and undone where they are read.

    Args:
        name: The tensor that carries the factors first, in forward order.
        group: Name of the group.
        scaling: ``positive`` factors, ``sign`` for factors 1 and -1, ``linear`` where even every invertible matrix
            keeps the function (no nonlinearity in between) and positive factors are only a part of the symmetry.
        size: Number of factors; equal runs of neurons share one, so that 1 is a single factor for the group.
    """

    name: str
    group: str
    scaling: Scaling
    size: int


@dataclass(frozen=True)
class NamedTensor:
    """One tensor of the space.

    Args:
        name: The key in the state_dict.
        shape: Shape in the state_dict.
        start: Offset in the flat vector.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """Where the tensor lies in the flat vector."""
        return slice(self.start, self.start + self.numel)


@dataclass(frozen=True)
class WeightBlock:
    """All edges from a source group to a target group: a weight tensor or a rectangle of one.

    Args:
        name: The tensor's key in the state_dict.
        source: Name of the group whose neurons the block reads.
        target: Name of the group whose neurons it feeds.
        out: Size of the target group.
        in_: Size of the source group.
        kernel: Trailing axes carried by each edge; the spatial positions of a convolution, or of the feature map that
            a flattened layer reads.
        shape: The tensor's shape in the state_dict.
        start: The tensor's offset in the flat vector.
        row: First row of the block in the tensor.
        column: First column of the block in the tensor.
        parts: Of a grouped convolution, the number of equal parts of both groups; only equal parts are joined.
        source_scale: Name of the rescaling whose factors divide the columns.
        target_scale: Name of the rescaling whose factors multiply the rows.
        inverse: Whether the target's factors divide instead, as in the keys of attention.
    """

    name: str
    source: str
    target: str
    out: int
    in_: int
    kernel: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    row: int = 0
    column: int = 0
    parts: int = 1
    source_scale: str | None = None
    target_scale: str | None = None
    inverse: bool = False

    @property
    def ends(self) -> tuple[tuple[str, int], ...]:
        """The groups at its ends, with the sizes it needs them to have."""
        return ((self.source, self.in_), (self.target, self.out))

    @property
    def depth(self) -> int:
        """Numbers carried by one edge."""
        return prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """Source neurons that each target neuron reads."""
        return self.in_ // self.parts

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return self.out * self.fan_in * self.depth

    @property
    def contiguous(self) -> bool:
        """Whether the block is its whole tensor, so that :attr:`slice` is exactly the block."""
        return self.numel == prod(self.shape)

    @property
    def slice(self) -> slice:
        """Where the block's tensor lies in the flat vector."""
        return slice(self.start, self.start + prod(self.shape))

    def view(self, theta: Tensor) -> Tensor:
        """The block in flat vectors (..., D): a view (..., out, fan_in, depth), through which they can be written."""
        matrix = split_last(theta[..., self.slice], self.shape[0], -1)
        rows = matrix[..., self.row : self.row + self.out, self.column : self.column + self.fan_in * self.depth]
        return split_last(rows, self.fan_in, self.depth)


@dataclass(frozen=True)
class GroupVector:
    """A tensor, or a part of one, with one number or one kernel per neuron of a group.

    Args:
        name: The tensor's key in the state_dict.
        group: Name of the group.
        kind: What the numbers are.  ``kernel`` holds the kernels of a depthwise convolution or the factors of a layer
            scale, ``embedding`` what is added to the group at every position, ``slope`` that of a PReLU; running
            statistics are buffers and not coordinates of the flow.
        size: Size of the group.
        start: The tensor's offset in the flat vector; buffers lie behind the D coordinates.
        shape: The tensor's shape in the state_dict; (size,) unless given.
        row: Where the group's first number lies in the tensor, or in each position's part of it if ``leading``.
        depth: Numbers per neuron.
        leading: Whether the tensor lists, for each of the ``depth`` positions, all neurons, and not the reverse.
        scale: Name of the rescaling whose factors multiply the numbers.
        source_scale: Of a ``kernel``, the rescaling whose factors divide them.
        eps: Of a running variance, what batch norm adds to it.
        inverse: Whether the factors divide, as in the keys of attention.
    """

    name: str
    group: str
    kind: VectorKind
    size: int
    start: int
    shape: tuple[int, ...] = (-1,)
    row: int = 0
    depth: int = 1
    leading: bool = False
    scale: str | None = None
    source_scale: str | None = None
    eps: float = 0.0
    inverse: bool = False

    def __post_init__(self) -> None:
        if self.shape == (-1,):
            object.__setattr__(self, "shape", (self.size,))

    @property
    def ends(self) -> tuple[tuple[str, int], ...]:
        """The group it sits on, with the size it needs that to have."""
        return ((self.group, self.size),)

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return self.size * self.depth

    @property
    def contiguous(self) -> bool:
        """Whether the vector is its whole tensor, so that :attr:`slice` is exactly the vector."""
        return self.numel == prod(self.shape)

    @property
    def slice(self) -> slice:
        """Where the vector's tensor lies in the flat vector."""
        return slice(self.start, self.start + prod(self.shape))

    def view(self, theta: Tensor) -> Tensor:
        """The vector in flat vectors (..., D): a view (..., size, depth), through which they can be written."""
        flat = theta[..., self.slice]
        if self.leading:
            return split_last(flat, self.depth, -1)[..., self.row : self.row + self.size].mT
        return split_last(flat[..., self.row : self.row + self.numel], self.size, self.depth)
