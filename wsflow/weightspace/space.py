r"""The weight space of one base architecture.

A point of the space is one flat vector :math:`\theta \in R^D` that holds every weight of the network.  Three kinds of
objects describe it:

- *neuron groups*: the input, every layer of interchangeable neurons or channels, and the output;
- *weight blocks*: one weight tensor each, a complete bipartite block from a source group to a target group, of shape
  ``(out, in, *kernel)``;
- *group vectors*: tensors with one number per neuron of a group (bias, norm weight, norm bias).

Everything else follows from these: flat and named forms, permutations and rescalings of hidden neurons
(:mod:`wsflow.weightspace.symmetry`), the batched forward pass (:mod:`wsflow.weightspace.functional`), the index sets of
the spheres of the canonical form, and the graph that a vector field runs on.

Flat order: blocks in forward order, each weight row-major ``(out, in, *kernel)`` and then its bias, so that a neuron's
incoming weights lie side by side.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsflow.weightspace import functional, symmetry

Role = Literal["input", "hidden", "output"]
Scaling = Literal["positive", "sign", "none"]
VectorKind = Literal["bias", "norm_weight", "norm_bias", "running_mean", "running_var"]

SCALINGS: dict[str, Scaling] = {
    "relu": "positive",
    "leaky_relu": "positive",
    "identity": "none",
    "tanh": "sign",
    "gelu": "none",
    "silu": "none",
    "sigmoid": "none",
    "softmax": "none",
}
"""The group of elementwise rescalings that each activation commutes with (Godfrey et al. 2022, Table 1)."""


@dataclass(frozen=True)
class Partition:
    """Equal parts of a neuron group, where only structured permutations are symmetries.

    Args:
        parts: The number of equal parts, such as attention heads or the groups of a GroupNorm.
        across: Whole parts may change places.
        within: Neurons may change places inside their part.
    """

    parts: int
    across: bool = True
    within: bool = True


@dataclass(frozen=True)
class NeuronGroup:
    """One layer of interchangeable neurons or channels; residual connections tie layers into one group.

    Args:
        name: A unique name.
        size: The number of neurons.
        role: ``hidden`` groups permute; ``input`` and ``output`` groups do not.
        activation: What is applied to the group's neurons.  On the output, ``softmax`` says that the network is a
            classifier (labels do not change with the scale of the last layer) and ``identity`` that it is not.
        partition: Set where only structured permutations are allowed.
    """

    name: str
    size: int
    role: Role
    activation: str = "identity"
    partition: Partition | None = None

    @property
    def scaling(self) -> Scaling:
        """The rescalings of single neurons that keep the network's function."""
        return SCALINGS[self.activation] if self.role == "hidden" else "none"


@dataclass(frozen=True)
class WeightBlock:
    """One weight tensor: all edges from a source group to a target group.

    Args:
        name: The key in the state_dict.
        source: Name of the group whose neurons the block reads.
        target: Name of the group whose neurons it feeds.
        out: Size of the target group.
        in_: Size of the source group.
        kernel: Trailing axes carried by each edge; the spatial positions of a convolution, or of the feature map that
            a flattened layer reads.
        shape: Shape in the state_dict; it has ``out * in_ * prod(kernel)`` elements in the same row-major order.
        start: Offset in the flat vector.
    """

    name: str
    source: str
    target: str
    out: int
    in_: int
    kernel: tuple[int, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def ends(self) -> tuple[tuple[str, int], ...]:
        """The groups at its ends, with the sizes it needs them to have."""
        return ((self.source, self.in_), (self.target, self.out))

    @property
    def depth(self) -> int:
        """Numbers carried by one edge."""
        return prod(self.kernel)

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return self.out * self.in_ * self.depth

    @property
    def slice(self) -> slice:
        """Where the block lies in the flat vector."""
        return slice(self.start, self.start + self.numel)


@dataclass(frozen=True)
class GroupVector:
    """A tensor with one number per neuron of a group.

    Args:
        name: The key in the state_dict.
        group: Name of the group.
        kind: What the numbers are; running statistics are buffers and not coordinates of the flow.
        size: Size of the group.
        start: Offset in the flat vector (for buffers: in the vector of buffers).
    """

    name: str
    group: str
    kind: VectorKind
    size: int
    start: int

    @property
    def ends(self) -> tuple[tuple[str, int], ...]:
        """The group it sits on, with the size it needs that to have."""
        return ((self.group, self.size),)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the state_dict."""
        return (self.size,)

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return self.size

    @property
    def slice(self) -> slice:
        """Where the vector lies in the flat vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class WeightSpace:
    """The set of all weights of one base architecture, with its symmetries.

    Build one with :meth:`from_module` or :meth:`from_description`.  Two spaces are equal when their groups, blocks
    and vectors are.

    Args:
        groups: In forward order.
        blocks: In forward order.
        vectors: Biases and norm parameters, in forward order.
        buffers: Running statistics, moved by permutations and rescalings but not part of ``theta``.
        description: ``{"class_path", "init_args", "output_activation"}`` of the network factory, from which a
            checkpoint rebuilds the space; None for a space built from a module instance.
        template: A network of the architecture in eval mode; its own values are only used for what is not part of
            the space (what ``select=`` froze, buffers).

    Raises:
        ValueError: where blocks and vectors name unknown groups, have other sizes than these, or do not lie one after
            another in the flat vector.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[WeightBlock, ...]
    vectors: tuple[GroupVector, ...]
    buffers: tuple[GroupVector, ...] = ()
    description: Mapping[str, Any] | None = field(default=None, compare=False)
    template: nn.Module = field(default_factory=nn.Identity, compare=False, repr=False)

    def __post_init__(self) -> None:
        sizes = {group.name: group.size for group in self.groups}
        end = 0
        for tensor in self.tensors:
            if any(sizes.get(name) != size for name, size in tensor.ends):
                raise ValueError(f"tensor {tensor.name!r} needs groups {dict(tensor.ends)}, the space has {sizes}")
            if tensor.start != end or prod(tensor.shape) != tensor.numel:
                shape = tuple(tensor.shape)
                raise ValueError(f"tensor {tensor.name!r} of shape {shape} must start at {end} in the flat vector")
            end += tensor.numel

    @classmethod
    def from_module(
        cls, module: nn.Module, output_activation: str = "softmax", select: str | None = None
    ) -> WeightSpace:
        """Read the weight space off a network; see :func:`wsflow.weightspace.trace.trace`.

        Args:
            module: The network; it is copied.
            output_activation: ``softmax`` for a classifier, ``identity`` otherwise.
            select: A regular expression; parameters whose name it matches are the space, the rest is frozen.

        Raises:
            UnsupportedModuleError: for a module whose symmetries are not known.
        """
        from wsflow.weightspace.trace import trace

        return trace(module, output_activation=output_activation, select=select)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> WeightSpace:
        """Build the network that a description names and trace it.

        Args:
            description: ``{"class_path": str, "init_args": dict, "output_activation": str}``, plain data.

        The caller's random state is left as it is: the values of the network built here are a function of the
        description.

        Raises:
            ValueError: for a class path that cannot be imported or called with ``init_args``, and for other keys.
        """
        if unknown := set(description) - {"class_path", "init_args", "output_activation", "select"}:
            raise ValueError(f"unknown keys {sorted(unknown)} in the description of a network")
        path, args = description.get("class_path") or "", description.get("init_args") or {}
        module_name, _, name = path.rpartition(".")
        try:
            factory = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"network factory {path!r} cannot be imported: {error}") from error
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                network = factory(**args)
        except TypeError as error:
            raise ValueError(f"network factory {path!r} cannot be called with {dict(args)}: {error}") from error
        activation = description.get("output_activation", "softmax")
        space = cls.from_module(network, output_activation=activation, select=description.get("select"))
        plain = {"class_path": path, "init_args": dict(args), "output_activation": activation}
        if description.get("select"):
            plain["select"] = description["select"]
        object.__setattr__(space, "description", plain)
        return space

    @cached_property
    def tensors(self) -> tuple[WeightBlock | GroupVector, ...]:
        """Blocks and vectors in flat order."""
        return tuple(sorted((*self.blocks, *self.vectors), key=lambda tensor: tensor.start))

    @cached_property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the tensors that are coordinates."""
        return frozenset(tensor.name for tensor in self.tensors)

    @cached_property
    def joins(self) -> tuple[tuple[int, int], ...]:
        """Of each block, the places of its target and its source in ``groups``."""
        place = {group.name: i for i, group in enumerate(self.groups)}
        return tuple((place[block.target], place[block.source]) for block in self.blocks)

    @property
    def hidden(self) -> tuple[NeuronGroup, ...]:
        """The groups that permute."""
        return tuple(group for group in self.groups if group.role == "hidden")

    def group(self, name: str) -> NeuronGroup:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)

    def incoming(self, group: str) -> Tensor:
        """Coordinates of each neuron's incoming weights, (size, fan_in) indices; fan_in is 0 without a block."""
        none = torch.empty(self.group(group).size, 0, dtype=torch.long)
        return torch.cat([none, *(self._index(block) for block in self.blocks if block.target == group)], dim=1)

    def outgoing(self, group: str) -> Tensor:
        """Coordinates of each neuron's outgoing weights, (size, fan_out) indices; fan_out is 0 without a block."""
        none = torch.empty(self.group(group).size, 0, dtype=torch.long)
        blocks = (block for block in self.blocks if block.source == group)
        return torch.cat([none, *(self._index(block, by_source=True) for block in blocks)], dim=1)

    def attached(self, group: str, kind: VectorKind = "bias") -> Tensor:
        """Coordinates of the vectors of that kind on a group, (size, k) indices; k is 0 where there is none."""
        starts = [vector.start for vector in self.vectors if vector.group == group and vector.kind == kind]
        return torch.arange(self.group(group).size)[:, None] + torch.tensor(starts, dtype=torch.long)[None, :]

    @staticmethod
    def _index(block: WeightBlock, by_source: bool = False) -> Tensor:
        index = torch.arange(block.start, block.start + block.numel).view(block.out, block.in_, block.depth)
        return index.transpose(0, 1).flatten(1) if by_source else index.flatten(1)

    def flatten(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Named tensors to the flat vector.

        Args:
            state_dict: Tensors by name, each with the same leading axes before its own shape; further entries
                (buffers, frozen parameters) are passed over.

        Returns:
            (..., D), a copy.

        Raises:
            ValueError: where a tensor is missing or has another shape; the message names it.
        """
        parts = []
        for tensor in self.tensors:
            if tensor.name not in state_dict:
                raise ValueError(f"tensor {tensor.name!r} is missing; found {sorted(state_dict)}")
            value = state_dict[tensor.name].detach()
            lead = value.ndim - len(tensor.shape)
            if lead < 0 or tuple(value.shape[lead:]) != tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} has shape {tuple(value.shape)}, expected {tensor.shape}")
            parts.append(value.reshape(*value.shape[:lead], tensor.numel))
        return torch.cat(parts, dim=-1)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Flat vectors (..., D) to named tensors (..., *shape), as views.

        Raises:
            ValueError: where the last axis is not D.
        """
        self.check(theta)
        lead = theta.shape[:-1]
        return {t.name: theta[..., t.slice].reshape(*lead, *t.shape) for t in self.tensors}

    def check(self, theta: Tensor) -> None:
        """Raise ValueError unless the last axis of ``theta`` has D coordinates."""
        if theta.shape[-1:] != (self.dim,):
            raise ValueError(f"weights have shape {tuple(theta.shape)}, this weight space has D = {self.dim}")

    def permute(self, theta: Tensor, perms: Sequence[Tensor]) -> Tensor:
        """Permute hidden neurons; see :func:`wsflow.weightspace.symmetry.permute`."""
        return symmetry.permute(self, theta, perms)

    def rescale(self, theta: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """Rescale hidden neurons; see :func:`wsflow.weightspace.symmetry.rescale`."""
        return symmetry.rescale(self, theta, scales)

    def forward(self, theta: Tensor, inputs: Tensor, per_network: bool = False) -> Tensor:
        """Outputs of B networks at once; see :func:`wsflow.weightspace.functional.forward`."""
        return functional.forward(self, theta, inputs, per_network)

    def to_module(self, theta: Tensor) -> nn.Module:
        """A ready network with its own copy of the weights ``theta`` (D,), in eval mode.

        Raises:
            ValueError: where ``theta`` is not of shape (D,).
        """
        if theta.ndim != 1:
            raise ValueError(f"to_module takes one network of shape ({self.dim},), got {tuple(theta.shape)}")
        module = copy.deepcopy(self.template).to(theta)
        state = {name: value.detach().clone() for name, value in self.unflatten(theta).items()}
        unknown = module.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the space's template has no tensor {unknown[0]!r}; give WeightSpace its network")
        return module.eval().requires_grad_(True)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightSpace:
        """A space is a value: copies share it."""
        return self
