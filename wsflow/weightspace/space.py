r"""The weight space of one base architecture.

A point of the space is one flat vector :math:`\theta \in R^D` that holds every weight of the network.  Four kinds of
objects describe it (:mod:`wsflow.weightspace.elements`): *neuron groups*, *weight blocks* that join two groups, *group
vectors* that sit on one, and *rescalings*.

Everything else follows from these: flat and named forms, permutations and rescalings of hidden neurons
(:mod:`wsflow.weightspace.symmetry`), the batched forward pass (:mod:`wsflow.weightspace.functional`), the index sets of
the spheres of the canonical form, and the graph that a vector field runs on.

Flat order: tensors in forward order, each weight row-major ``(out, in, *kernel)`` and then its bias, so that a neuron's
incoming weights lie side by side.

Running statistics of batch norm are functions of the weights and the data: no coordinates, but :math:`D_b` numbers
that may stand behind the D coordinates, in an *extended* vector of :math:`D + D_b`.  Permutations and rescalings move
them too.  Where a vector has D numbers alone, statistics are those of the template.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from wsflow.weightspace import functional, symmetry
from wsflow.weightspace.elements import GroupVector, NamedTensor, NeuronGroup, Rescaling, VectorKind, WeightBlock

CHECKED = 2**18
"""Parameters up to which a network that a description names has its symmetries proven each time it is built."""


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
        rescalings: The independent families of factors that keep the function, in forward order.
        input_shape: Shape of one input, without the batch axis; None where it is not known.
        description: ``{"class_path", "init_args", "output_activation"}`` of the network factory, from which a
            checkpoint rebuilds the space; None for a space built from a module instance.
        template: A network of the architecture in eval mode; its own values are only used for what is not part of
            the space (what ``select=`` froze, buffers).
        numbers: How many networks a point holds, weight by weight (:func:`wsflow.fields.stacks.stacked_space`).

    Raises:
        ValueError: where blocks and vectors name unknown groups, have other sizes than these, or do not lie one after
            another in the flat vector.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[WeightBlock, ...]
    vectors: tuple[GroupVector, ...]
    buffers: tuple[GroupVector, ...] = ()
    rescalings: tuple[Rescaling, ...] = ()
    input_shape: tuple[int, ...] | None = field(default=None, compare=False)
    description: Mapping[str, Any] | None = field(default=None, compare=False)
    template: nn.Module = field(default_factory=nn.Identity, compare=False, repr=False)
    numbers: int = 1

    def __post_init__(self) -> None:
        sizes = {group.name: group.size for group in self.groups}
        for piece in self.pieces:
            if any(sizes.get(name) != size for name, size in piece.ends):
                raise ValueError(f"tensor {piece.name!r} needs groups {dict(piece.ends)}, the space has {sizes}")
        end = 0
        for tensor in (*self.tensors, *self.buffer_tensors):
            held = sum(piece.numel for piece in self.pieces if piece.name == tensor.name)
            if tensor.start != end or held != tensor.numel:
                shape = tensor.shape
                raise ValueError(f"tensor {tensor.name!r} of shape {shape} must start at {end} in the flat vector")
            end += tensor.numel

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        example_input: Tensor | None = None,
        output_activation: str = "softmax",
        select: str | None = None,
        check: bool = True,
    ) -> WeightSpace:
        """Read the weight space off a network; see :func:`wsflow.weightspace.trace.trace`.

        Args:
            module: The network; it is copied.
            example_input: (N, ...), one batch of inputs; unless given, standard normal vectors for the first layer,
                which must be a Linear then.
            output_activation: ``softmax`` for a classifier, ``identity`` otherwise.
            select: A regular expression; parameters whose name it matches are the space, the rest is frozen.
            check: Whether the symmetries are proven on the network
                (:func:`wsflow.weightspace.check.check_symmetries`); skip it for large networks.

        Raises:
            UnsupportedModuleError: for a module whose symmetries are not known, with the node and the reason.
            SymmetryError: where a symmetry that was read off changes the network's outputs.
        """
        from wsflow.weightspace.check import check_symmetries
        from wsflow.weightspace.trace import trace

        space = trace(module, example_input, output_activation, select)
        if check:
            check_symmetries(space, module, example_input)
        return space

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> WeightSpace:
        """Build the network that a description names and trace it.

        Args:
            description: ``{"class_path": str, "init_args": dict}`` and, where they are needed, ``output_activation``,
                ``select`` and ``input_shape`` (a list, without the batch axis); plain data.

        The caller's random state is left as it is: the values of the network built here are a function of the
        description.

        Raises:
            ValueError: for a class path that cannot be imported or called with ``init_args``, and for other keys.
        """
        if unknown := set(description) - {"class_path", "init_args", "output_activation", "select", "input_shape"}:
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
        activation, select = description.get("output_activation", "softmax"), description.get("select")
        shape = description.get("input_shape")
        example = None
        if shape is not None:
            example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        small = sum(p.numel() for p in network.parameters()) <= CHECKED
        space = cls.from_module(network, example, activation, select, check=small)
        plain = {"class_path": path, "init_args": dict(args), "output_activation": activation}
        plain |= {"select": select} if select else {}
        plain |= {"input_shape": list(shape)} if shape is not None else {}
        object.__setattr__(space, "description", plain)
        return space

    @property
    def pieces(self) -> tuple[WeightBlock | GroupVector, ...]:
        """Blocks, vectors and buffers."""
        return (*self.blocks, *self.vectors, *self.buffers)

    @cached_property
    def tensors(self) -> tuple[NamedTensor, ...]:
        """The tensors that blocks and vectors are pieces of, in flat order."""
        return _tensors((*self.blocks, *self.vectors))

    @cached_property
    def buffer_tensors(self) -> tuple[NamedTensor, ...]:
        """Running statistics, in the order of the extended vector."""
        return _tensors(self.buffers)

    @cached_property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def full_dim(self) -> int:
        """D + D_b, the length of an extended vector."""
        return self.dim + sum(tensor.numel for tensor in self.buffer_tensors)

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
        blocks = (block for block in self.blocks if block.target == group)
        return torch.cat([none, *(block.view(self._places).flatten(1) for block in blocks)], dim=1)

    def outgoing(self, group: str) -> Tensor:
        """Coordinates of each neuron's outgoing weights, (size, fan_out) indices; fan_out is 0 without a block."""
        none = torch.empty(self.group(group).size, 0, dtype=torch.long)
        columns = []
        for block in self.blocks:
            if block.source == group:
                edges = block.view(self._places)
                parts = edges.reshape(block.parts, -1, *edges.shape[1:])
                columns.append(parts.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat([none, *columns], dim=1)

    def attached(self, group: str, kind: VectorKind = "bias") -> Tensor:
        """Coordinates of the vectors of that kind on a group, (size, k) indices; k is 0 where there is none."""
        none = torch.empty(self.group(group).size, 0, dtype=torch.long)
        found = (v for v in (*self.vectors, *self.buffers) if v.group == group and v.kind == kind)
        return torch.cat([none, *(vector.view(self._places) for vector in found)], dim=1)

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.full_dim)

    def flatten(self, state_dict: Mapping[str, Tensor], buffers: bool = False) -> Tensor:
        """Named tensors to the flat vector.

        Args:
            state_dict: Tensors by name, each with the same leading axes before its own shape; further entries
                (buffers, frozen parameters) are passed over.
            buffers: Whether running statistics follow, as an extended vector has them.

        Returns:
            (..., D) or (..., D + D_b), a copy.

        Raises:
            ValueError: where a tensor is missing or has another shape; the message names it.
        """
        parts = []
        for tensor in self.tensors + self.buffer_tensors * buffers:
            if tensor.name not in state_dict:
                raise ValueError(f"tensor {tensor.name!r} is missing; found {sorted(state_dict)}")
            value = state_dict[tensor.name].detach()
            lead = value.ndim - len(tensor.shape)
            if lead < 0 or tuple(value.shape[lead:]) != tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} has shape {tuple(value.shape)}, expected {tensor.shape}")
            parts.append(value.reshape(*value.shape[:lead], tensor.numel))
        return torch.cat(parts, dim=-1)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Flat vectors (..., D), or extended ones, to named tensors (..., *shape), as views.

        Raises:
            ValueError: where the last axis is neither D nor D + D_b.
        """
        self.check(theta)
        lead = theta.shape[:-1]
        tensors = self.tensors + self.buffer_tensors * (theta.shape[-1] > self.dim)
        parts = torch.split(theta, [t.numel for t in tensors], dim=-1)  # one node for derivatives, not one a tensor
        return {t.name: part.reshape((*lead, *t.shape)) for t, part in zip(tensors, parts, strict=True)}

    def check(self, theta: Tensor) -> None:
        """Raise ValueError unless the last axis of ``theta`` has D coordinates, or D + D_b."""
        if theta.shape[-1:] not in ((self.dim,), (self.full_dim,)):
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

    def layer(self, name: str) -> WeightSpace:
        """The same space with networks that are one layer alone, such as the last of a frozen network.

        Args:
            name: Of the layer, which holds all weights of the space.

        Returns:
            A space whose networks take what the layer reads.
        """
        part = self.template.get_submodule(name)
        for step in reversed(name.split(".")):
            part = nn.Sequential(OrderedDict({step: part}))
        return replace(self, template=part.eval(), input_shape=None)

    def to_module(self, theta: Tensor) -> nn.Module:
        """A ready network with its own copy of the weights ``theta`` (D,), in eval mode.

        Running statistics of batch norm are those that ``theta`` (D + D_b,) holds, or else those of the template, which
        are hardly ever this network's: that is warned of.  :meth:`wsflow.tasks.BaseTask.with_statistics` extends
        weights by their own.

        Raises:
            ValueError: where ``theta`` is not of shape (D,) or (D + D_b,).
        """
        if theta.ndim != 1:
            raise ValueError(f"to_module takes one network of shape ({self.dim},), got {tuple(theta.shape)}")
        if len(theta) == self.dim < self.full_dim:
            warnings.warn(
                "the weights lack the running statistics of batch norm, and the module has those of the template: "
                "extend them, task.with_statistics(theta), or keep a network's own, space.flatten(state, buffers=True)",
                stacklevel=2,
            )
        module = copy.deepcopy(self.template).to(theta)
        state = {name: value.detach().clone() for name, value in self.unflatten(theta).items()}
        unknown = module.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the space's template has no tensor {unknown[0]!r}; give WeightSpace its network")
        return module.eval().requires_grad_(True)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightSpace:
        """A space is a value: copies share it."""
        return self


def _tensors(pieces: Sequence[WeightBlock | GroupVector]) -> tuple[NamedTensor, ...]:
    """The tensors of some pieces, each once, in flat order."""
    found = {piece.name: NamedTensor(piece.name, piece.shape, piece.start) for piece in pieces}
    return tuple(sorted(found.values(), key=lambda tensor: tensor.start))
