"""From a network to its weight space.

The network is written down as a graph of operations (torch.fx) and run once on an example
(:mod:`wsflow.weightspace.graph`), while every activation is labelled with the neurons that its channel axis carries
(:mod:`wsflow.weightspace.labels`).  A rule per operation
(:mod:`wsflow.weightspace.layers` for what has parameters, :mod:`wsflow.weightspace.operations` for the rest) says which
tensors join which neurons, what must permute and rescale alike, and what lies on the output.  Nothing is guessed: an
operation without a rule is refused by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wsflow.weightspace.calls import Draft, Param
from wsflow.weightspace.elements import GroupVector, NeuronGroup, Partition, Rescaling, WeightBlock
from wsflow.weightspace.graph import walk
from wsflow.weightspace.labels import Neurons, Parts, Scale, Segment, UnsupportedModuleError
from wsflow.weightspace.space import WeightSpace


def trace(
    module: nn.Module,
    example_input: Tensor | None = None,
    output_activation: str = "softmax",
    select: str | None = None,
) -> WeightSpace:
    """The weight space of a feed-forward network.

    Args:
        module: The network; it is copied.
        example_input: (N, ...); unless given, standard normal vectors for the first layer, which must be a Linear.
        output_activation: ``softmax`` for a classifier, ``identity`` otherwise.
        select: A regular expression; parameters whose full name it matches are the space and the rest is frozen at
            the module's values.  A group with a frozen tensor no longer permutes.

    Raises:
        UnsupportedModuleError: where an operation is not known, with its node and the reason.
        ValueError: where ``select`` matches nothing, or the network cannot be run on the example.
    """
    if output_activation not in ("softmax", "identity"):
        raise ValueError(f"output_activation must be 'softmax' or 'identity', got {output_activation!r}")
    try:
        template = copy.deepcopy(module).eval().requires_grad_(False)
    except RuntimeError as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} cannot be copied, since a tensor of it is computed from its parameters; remove "
            "what computes it (torch.nn.utils.remove_weight_norm or parametrize.remove_parametrizations)"
        ) from error
    example = example_vectors(template) if example_input is None else example_input
    tracing = Tracing(template)
    tracing.run(example)
    return _build(tracing, template, tuple(example.shape[1:]), output_activation, select)


def example_vectors(module: nn.Module) -> Tensor:
    """Two standard normal vectors for a network whose first layer is a Linear.

    Raises:
        UnsupportedModuleError: where it is not, so that the shape of an input cannot be known.
    """
    first = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if first is None:
        raise UnsupportedModuleError(f"{type(module).__name__} has no layer with weights")
    if not isinstance(first, nn.Linear):
        raise UnsupportedModuleError(
            f"the first layer of {type(module).__name__} is {type(first).__name__} and not Linear: give an "
            "example_input (in a description, input_shape)"
        )
    values = torch.randn(2, first.in_features, generator=torch.Generator().manual_seed(0))
    return values.to(first.weight)


class Tracing:
    """One walk through a network.

    Args:
        module: The network, in eval mode.

    Attributes:
        drafts: Pieces found so far, by tensor and place in it.
        scales: All factors found so far.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.drafts: dict[tuple[str, int, int], Draft] = {}
        self.scales: list[Scale] = []
        self._names: dict[int, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self._names.setdefault(id(tensor), name)
        self._count = 0
        self._inputs: dict[int, Segment] = {}

    def run(self, example: Tensor) -> None:
        """Label every activation."""
        parameter = next(self.module.parameters(), None)
        if parameter is not None and example.is_floating_point():
            example = example.to(parameter)
        walk(self, self.module, example)

    def neurons(self, size: int, fixed: bool = False) -> Neurons:
        """A new class of neurons."""
        self._count += 1
        return Neurons(size, self._count, fixed)

    def scale(self, neurons: Neurons, fixed: bool = False) -> Scale:
        """New factors of a class of neurons."""
        self._count += 1
        self.scales.append(Scale(neurons, self._count, fixed=fixed))
        return self.scales[-1]

    def segment(self, neurons: Neurons, fixed: bool = False) -> Segment:
        """A class of neurons with new factors."""
        return Segment(neurons, self.scale(neurons, fixed))

    def input(self, size: int) -> Segment:
        """Neurons of the network's input, whose order and scale are what they are."""
        if size not in self._inputs:
            neurons = self.neurons(size, fixed=True)
            neurons.inputs = True
            self._inputs[size] = self.segment(neurons, fixed=True)
        return self._inputs[size]

    def param(self, tensor: Tensor | None) -> Param | None:
        """A parameter or buffer by its (first) name.

        Raises:
            UnsupportedModuleError: for another tensor.
        """
        if tensor is None:
            return None
        if id(tensor) not in self._names:
            raise UnsupportedModuleError("a tensor that it uses is computed, and no parameter of the network")
        return Param(self._names[id(tensor)], tuple(tensor.shape))

    def draft(self, draft: Draft) -> None:
        """Note a piece; one that was met before, since layers share it, ties both places together.

        Raises:
            UnsupportedModuleError: where a tensor is used in two ways.
        """
        known = self.drafts.setdefault((draft.tensor.name, draft.row, draft.column), draft)
        if known is not draft:
            known.tie(draft)


def _build(
    tracing: Tracing, template: nn.Module, input_shape: tuple[int, ...], output_activation: str, select: str | None
) -> WeightSpace:
    drafts = list(tracing.drafts.values())
    try:
        pattern = re.compile(select if select is not None else ".*")
    except re.error as error:
        raise ValueError(f"select={select!r} is no regular expression: {error}") from None
    kept = [draft for draft in drafts if pattern.fullmatch(draft.tensor.name)]
    if not any(not draft.buffer for draft in kept):
        raise ValueError(f"select={select!r} matches no parameter of the network")
    for draft in drafts:
        if draft not in kept:
            draft.freeze()
    groups = _groups(drafts, kept, output_activation)
    rescalings = _rescalings(tracing.scales, kept, {n: g.name for n, g in groups.items()})
    pieces = _place(kept, groups, rescalings)
    return WeightSpace(
        tuple(groups.values()),
        tuple(p for p in pieces if isinstance(p, WeightBlock)),
        tuple(p for p in pieces if isinstance(p, GroupVector) and not p.kind.startswith("running")),
        tuple(p for p in pieces if isinstance(p, GroupVector) and p.kind.startswith("running")),
        tuple(rescalings.values()),
        input_shape,
        template=template,
    )


def _groups(drafts: Sequence[Draft], kept: Sequence[Draft], output_activation: str) -> dict[Neurons, NeuronGroup]:
    """A group for every class of neurons that a kept piece touches; outputs last."""
    found = sorted({n for draft in drafts for n in draft.neurons()}, key=lambda n: (n.outputs, n.order))
    counts = {"input": 0, "hidden": 0, "output": 0}
    touched = {n for draft in kept for n in draft.neurons()}
    keys: dict[Parts, str] = {}
    for parts in _divided(found):
        parts.across = parts.across and not any(n.fixed for n in found if n.parts and n.parts.find() is parts)
    shared = [parts for parts in set(_divided(found)) if _divided(found).count(parts) > 1]
    keys.update((parts, f"parts{i + 1}") for i, parts in enumerate(sorted(shared, key=_divided(found).index)))
    groups = {}
    for neurons in found:
        kind = "output" if neurons.outputs else "input" if neurons.inputs else "hidden"
        counts[kind] += 1
        name = f"{kind}{counts[kind]}" if kind == "hidden" or counts[kind] > 1 else kind
        if neurons.outputs and neurons.inputs:
            raise UnsupportedModuleError(f"{name!r} is an input and an output of the network at once")
        if neurons in touched:
            groups[neurons] = _group(neurons, name, output_activation, keys)
    return groups


def _divided(found: Sequence[Neurons]) -> list[Parts]:
    """The divisions of some neurons, one entry for each that has one."""
    return [neurons.parts.find() for neurons in found if neurons.parts is not None]


def _group(neurons: Neurons, name: str, output_activation: str, keys: dict[Parts, str]) -> NeuronGroup:
    if neurons.outputs:
        if neurons.activation is not None:
            raise UnsupportedModuleError(
                f"the network ends in {neurons.activation}; it must end in a layer that gives logits or values"
            )
        return NeuronGroup(name, neurons.size, "output", output_activation)
    activation = neurons.activation or "identity"
    if neurons.fixed:
        return NeuronGroup(name, neurons.size, "input", activation)
    partition = None
    if neurons.parts is not None:
        parts = neurons.parts.find()
        partition = Partition(parts.count, parts.across, True, keys.get(parts, ""))
    return NeuronGroup(name, neurons.size, "hidden", activation, partition)


def _rescalings(scales: Sequence[Scale], kept: Sequence[Draft], names: Mapping[Neurons, str]) -> dict[Scale, Rescaling]:
    """The families of factors that are not all 1, each named by the first tensor that carries it."""
    carriers: dict[Scale, str] = {}
    for draft in kept:
        for scale in draft.scales():
            carriers.setdefault(scale, draft.tensor.name)
    free = {scale.find() for scale in scales if scale.find() in carriers}
    found: dict[Scale, Rescaling] = {}
    for scale in sorted(free, key=lambda scale: scale.order):
        scaling, neurons = scale.scaling, scale.neurons.find()
        if scaling is not None:
            size = scale.count if scale.count is not None else neurons.size
            name, group = carriers[scale], names[neurons]
            name = f"{name}@{group}" if any(other.name == name for other in found.values()) else name
            found[scale] = Rescaling(name, group, scaling, size)
    return found


def _place(
    kept: Sequence[Draft], groups: Mapping[Neurons, NeuronGroup], rescalings: Mapping[Scale, Rescaling]
) -> list[WeightBlock | GroupVector]:
    """Pieces with the offsets of their tensors: parameters in forward order, then running statistics."""
    starts: dict[str, int] = {}
    end = 0
    for draft in sorted(kept, key=lambda draft: draft.buffer):
        if draft.tensor.name not in starts:
            starts[draft.tensor.name] = end
            end += draft.tensor.numel
    names = {neurons: group.name for neurons, group in groups.items()}
    factors = {scale: rescaling.name for scale, rescaling in rescalings.items()}
    return [draft.piece(starts[draft.tensor.name], names, factors) for draft in kept]
