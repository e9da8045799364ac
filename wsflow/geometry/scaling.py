r"""Factors that take networks to canonical form (thesis section 4.4; Godfrey et al. 2022 for what has factors).

A network keeps its function when a family of factors acts on it (:class:`wsflow.weightspace.elements.Rescaling`): what
enters neuron i is multiplied by :math:`f_i`, what leaves it divided.  The canonical form chooses :math:`f_i` from what
enters the neuron *first*: all weights (or kernels, or norm weights and biases) whose own source comes earlier in
forward order and therefore has its factor already,

.. math:: f_i = 1 / |w_i|, \qquad w_{i, j} = W_{i, j} / f_j.

This vector becomes a unit vector, a point of the neuron's *sphere*:

- behind a linear layer or a convolution the incoming weights, one sphere per neuron or filter; the kernel of a
  depthwise convolution;
- behind a norm the weight and the bias of the neuron, a circle; where several norms are added, theirs together;
- on a residual stream without norms what enters it at its start.  What the branches add later is multiplied along;
- where several neurons must share a factor (a LayerNorm with eps 0), all their weights, one sphere.

One pass in forward order is exact.  A neuron with one such number has no sphere worth the name (S^0 is two points) and
keeps its factor.  Factors that are signs make the number of largest magnitude positive.  Norms are summed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.weightspace import GroupVector, Rescaling, WeightBlock, WeightSpace
from wsflow.weightspace.elements import split_last


@dataclass(frozen=True)
class Normalisation:
    """What one family of factors is chosen by.

    Args:
        rescaling: The family.
        count: Number of neurons in its group.
        pieces: What enters the neurons first.
        biases: Biases that are multiplied along.
        index: Coordinates of ``pieces``, (size, K), one row per factor.
    """

    rescaling: Rescaling
    count: int
    pieces: tuple[WeightBlock | GroupVector, ...]
    biases: tuple[GroupVector, ...]
    index: Tensor

    @property
    def has_spheres(self) -> bool:
        """Whether each row of ``index`` becomes a unit vector."""
        return self.rescaling.scaling == "positive" and self.index.shape[1] > 1

    def spread(self, factor: Tensor) -> Tensor:
        """Factors or marks (B, size), for each neuron: (B, count)."""
        return factor.repeat_interleave(self.count // self.rescaling.size, dim=1)


def normalisations(space: WeightSpace) -> list[Normalisation]:
    """What each rescaling of a space is chosen by, in forward order.

    Raises:
        ValueError: for a family of which factors are only a part, with its group and its tensors.
    """
    refuse_linear(space)
    earlier: list[str | None] = [None]
    places = torch.arange(space.dim)
    found = []
    for rescaling in space.rescalings:
        group = space.group(rescaling.group)
        pieces = _first(space, rescaling, earlier)
        biases = tuple(v for v in space.vectors if v.scale == rescaling.name and v.kind == "bias" and not v.inverse)
        columns = [torch.empty(group.size, 0, dtype=torch.long), *(piece.view(places).flatten(1) for piece in pieces)]
        index = torch.cat(columns, dim=1).reshape(rescaling.size, -1)
        found.append(Normalisation(rescaling, group.size, pieces, biases, index))
        earlier.append(rescaling.name)
    return found


def refuse_linear(space: WeightSpace) -> None:
    """Raise where the symmetry is every invertible matrix: no choice of factors makes such a form unique."""
    for rescaling in space.rescalings:
        if rescaling.scaling == "linear":
            ends = [b.name for b in space.blocks if rescaling.name in (b.target_scale, b.source_scale)]
            raise ValueError(
                f"group {rescaling.group!r} between {', '.join(map(repr, dict.fromkeys(ends)))} has no nonlinearity: "
                "every invertible matrix (within a head, for attention) keeps the function there, and no canonical "
                "form is known; use the Euclidean geometry"
            )


def _first(
    space: WeightSpace, rescaling: Rescaling, earlier: Sequence[str | None]
) -> tuple[WeightBlock | GroupVector, ...]:
    """What enters the neurons of a rescaling from where factors are known; embeddings if nothing else does."""
    blocks = tuple(
        b for b in space.blocks if b.target_scale == rescaling.name and b.source_scale in earlier and not b.inverse
    )
    vectors = tuple(
        v for v in space.vectors if v.scale == rescaling.name and v.source_scale in earlier and not v.inverse
    )
    weights = tuple(v for v in vectors if v.kind in ("kernel", "norm_weight", "norm_bias"))
    return blocks + weights or tuple(v for v in vectors if v.kind == "embedding")


def measure(steps: Sequence[Normalisation], theta: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The factors that take networks to canonical form.

    Args:
        steps: What the factors are chosen by, in forward order.
        theta: (B, D) or extended.

    Returns:
        For each rescaling its factors (B, size) in float64, and which of its spheres are dead (B, size): the vector is
        zero, or its squared norm is no normal number of its type.  Their factor is 1.
    """
    known: dict[str | None, Tensor] = {}
    factors, dead = [], []
    for step in steps:
        zero = theta.new_zeros(len(theta), step.rescaling.size, dtype=torch.bool)
        factor = torch.ones_like(zero, dtype=torch.float64)
        if step.rescaling.scaling == "sign":
            factor = _signs(step, theta, known)
        elif step.has_spheres:
            square = _total(step, [_values(piece, theta, known).square().sum(-1) for piece in step.pieces])
            zero = square < torch.finfo(theta.dtype).tiny
            factor = torch.where(zero, 1.0, square).rsqrt()
        known[step.rescaling.name] = step.spread(factor)
        factors.append(factor)
        dead.append(zero)
    return factors, dead


def _signs(step: Normalisation, theta: Tensor, known: Mapping[str | None, Tensor]) -> Tensor:
    """Signs (B, size) of the numbers of largest magnitude; of ties the sum decides, and of a zero sum the biases."""
    none = theta.new_zeros(len(theta), step.count, dtype=torch.float64)
    values = [_values(piece, theta, known) for piece in step.pieces]
    largest = torch.stack([none, *(v.amax(-1) for v in values)]).amax(0)
    smallest = torch.stack([none, *(v.amin(-1) for v in values)]).amin(0)
    sums = [v.sum(-1) for v in values]
    biases = [bias.view(theta).double().sum(-1) for bias in step.biases]
    sign = none[:, : step.rescaling.size]
    for terms in ([largest, smallest], sums, biases):
        sign = torch.where(sign == 0, _total(step, [none, *terms]).sign(), sign)
    return torch.where(sign == 0, 1.0, sign)


def _total(step: Normalisation, terms: Sequence[Tensor]) -> Tensor:
    """Sums (B, size) of terms (B, count) over pieces, and over neurons that share a factor."""
    return split_last(torch.stack(list(terms)).sum(0), step.rescaling.size, -1).sum(-1)


def _values(piece: WeightBlock | GroupVector, theta: Tensor, known: Mapping[str | None, Tensor]) -> Tensor:
    """What enters each neuron through a piece, (B, size, numbers), the factors of its source taken off."""
    value = piece.view(theta).double()
    source = known.get(piece.source_scale)
    if isinstance(piece, GroupVector):
        return value if source is None else value / source[..., None]
    if source is not None:
        split = source.view(len(theta), piece.parts, 1, piece.fan_in, 1)
        value = (value.reshape(len(theta), piece.parts, -1, *value.shape[2:]) / split).flatten(1, 2)
    return value.flatten(2)
