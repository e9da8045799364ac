r"""The canonical form of a network: its scaling symmetry removed (thesis sections 4.4 and 6.2.2).

*Hidden neurons.*  Where an activation commutes with positive factors (ReLU), a neuron with incoming weights :math:`w`,
bias :math:`b` and outgoing weights :math:`v` computes the same as one with :math:`w / |w|`, :math:`b / |w|` and
:math:`|w| v`.  The same holds of filters, of what batch norm reads, of what it gives and of residual streams;
:mod:`wsflow.geometry.scaling` says what becomes a unit vector, and which factors are left as they are.

*Last layer of a classifier.*  Its weights are divided by their norm :math:`s`, its bias too: labels stay, the loss does
not.  Two ways lead back:

- ``keep_scale``: :math:`\log s` is one more coordinate, behind the others (one for each head, if there are several);
  ``decode`` multiplies by :math:`s`, and nothing is lost;
- otherwise ``decode`` multiplies by the thesis's radius :math:`\sqrt C`, C the number of classes.  That keeps labels
  only if the bias is scaled too; where ``select`` froze it, the space is refused.

The last layer of any other network stays as it is, and so does one that ends in a norm or that other layers read.

*Running statistics* of batch norm are no coordinates: they are functions of the weights and the data.  An extended
vector (B, D + D_b) is encoded with them, moved along, behind the point, and decodes to exactly the same function.  A
variance :math:`f^2 (v + \epsilon) - \epsilon` may become negative, but stays above :math:`-\epsilon`, which is all that
batch norm needs; it is as exact as its number type tells it from :math:`-\epsilon`.  Of (B, D) alone the factors before
a batch norm are removed all the same, and statistics are to be recomputed on train images after ``decode``
(:func:`wsflow.weightspace.batch_statistics`).  The norm's :math:`\epsilon` stays what it is while the variance v
changes, so that outputs then change by about :math:`\epsilon / v` relative.

*Zeros.*  No value and no probability is changed:

- what dead neurons put out is moved to where it acts (:mod:`wsflow.geometry.constants`), and their sphere takes the
  unit vector with equal coordinates (where both ends of an edge are dead, that of its target decides; it changes
  nothing);
- a last layer of zeros becomes the unit matrix with equal entries, at scale 1, its bias unchanged: the same number is
  added to all logits, which leaves the probabilities as they were.

The form is idempotent and commutes with permutations of hidden neurons.
"""

from __future__ import annotations

from collections import Counter
from typing import final

import torch
from torch import Tensor, nn

from wsflow.geometry import sphere
from wsflow.geometry.base import Geometry
from wsflow.geometry.constants import Constants
from wsflow.geometry.product import SphereProduct
from wsflow.geometry.scaling import Normalisation, measure, normalisations
from wsflow.weightspace import NeuronGroup, WeightSpace

CHUNK = 2**22
"""Weights that are encoded at once."""


class CanonicalForm(nn.Module):
    """Encodes networks of one weight space into canonical form, and decodes.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is kept, as a coordinate.

    Attributes:
        dim: Coordinates of a canonical form: D and the log-scales of the heads.
        product: The spheres and the rest: per normalised rescaling its neurons, then the last layers.
        factors: Name and coordinates of each sphere, of the Euclidean rest of each tensor, and of the log-scales.

    Raises:
        ValueError: where a group has a full linear symmetry, and where the scale of a last layer with a frozen bias is
            not to be kept.
    """

    def __init__(self, space: WeightSpace, keep_scale: bool = True) -> None:
        super().__init__()
        self.space = space
        self._steps = normalisations(space)
        self._constants = Constants(space)
        heads = [group for group in space.groups if _is_head(space, group)]
        if not keep_scale:
            for head in heads:
                _refuse_frozen_bias(space, head)
        self._heads = nn.ModuleList(_Head(space, group) for group in heads)
        scales = [group.name for group in heads] * keep_scale
        self._keeps = keep_scale
        self.dim = space.dim + len(scales)
        named = [*_named(self._steps), *((head.name, head.weight[None]) for head in self.heads)]
        self.product = SphereProduct(self.dim, [index for _, index in named])
        self.factors = _factors(space, named, scales)

    @property
    def heads(self) -> list[_Head]:
        """The last layers that are normalised."""
        return [head for head in self._heads if isinstance(head, _Head)]

    def encode(self, theta: Tensor) -> Tensor:
        """Networks (B, D) to their canonical forms (B, dim), or extended ones to (B, dim + D_b).

        Raises:
            ValueError: where the weights do not fit, or a dead neuron's constant cannot be moved.
        """
        self.space.check(theta)
        if not len(theta):
            return theta.new_empty(0, self.dim + theta.shape[1] - self.space.dim)
        rows = max(1, CHUNK // max(1, self.space.dim))
        return torch.cat([self._encode(part) for part in torch.split(theta, rows)])

    def _encode(self, theta: Tensor) -> Tensor:
        factors, dead = measure(self._steps, theta)
        if dead and bool(torch.stack([where.any() for where in dead]).any()):
            theta, factors, dead = self._settle(theta, dead)
            x = self.space.rescale(theta, factors)
            for step, where in zip(self._steps, dead, strict=True):
                if step.has_spheres:
                    index = step.index.to(x.device)
                    x[:, index] = torch.where(where[..., None], index.shape[1] ** -0.5, x[:, index])
        else:
            x = self.space.rescale(theta, factors)
        _hold_variances(self.space, x)
        scales = [head.normalise(x) for head in self.heads]
        return torch.cat([x[:, : self.space.dim], *scales * self._keeps, x[:, self.space.dim :]], dim=1)

    def _settle(self, theta: Tensor, dead: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Networks whose dead neurons nobody reads, their factors, and the dead."""
        before, constant = theta, theta.new_zeros(len(theta), dtype=torch.bool)
        new = dead
        while any(bool(where.any()) for where in new):
            for step, where in zip(self._steps, new, strict=True):
                if bool(where.any()):
                    theta, moved = self._constants.move(theta, step, where)
                    constant = constant | moved
            handled = dead
            factors, dead = measure(self._steps, theta)
            new = [now & ~old for now, old in zip(dead, handled, strict=True)]
        if bool(constant.any()):
            self._constants.verify(before[constant], theta[constant])
        return theta, factors, dead

    def decode(self, x: Tensor) -> Tensor:
        """Canonical forms (B, dim), or any points of that shape, to networks (B, D); extended ones to extended ones.

        Raises:
            ValueError: where the last axis is neither ``dim`` nor ``dim + D_b``.
        """
        space = self.space
        if x.shape[-1] not in (self.dim, self.dim + space.full_dim - space.dim):
            raise ValueError(f"points have shape {tuple(x.shape)}, this geometry has {self.dim} coordinates")
        if not self._heads:
            return x
        theta = torch.cat([x[:, : space.dim], x[:, self.dim :]], dim=1)
        for i, head in enumerate(self.heads):
            head.multiply(theta, x[:, space.dim + i, None].exp() if self._keeps else head.radius)
        return theta

    def project(self, x: Tensor) -> Tensor:
        """``x`` (B, dim) with every sphere's coordinates divided by their norm; running statistics pass through."""
        spheres, rest = self.product.split(x[:, : self.dim])
        point = self.product.join([sphere.project(part) for part in spheres], rest)
        return torch.cat([point, x[:, self.dim :]], dim=1)


class CanonicalGeometry(Geometry):
    """A geometry whose points are canonical forms; a variant says what paths between them are.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is a coordinate (then dim is D + 1, or D and the
            number of heads); otherwise every decoded network has a last layer of norm sqrt(C).

    Raises:
        ValueError: where the space has no canonical form; see :class:`CanonicalForm`.
    """

    def __init__(self, space: WeightSpace, keep_scale: bool = True) -> None:
        form = CanonicalForm(space, keep_scale)
        super().__init__(space, form.dim, form.factors)
        self.form = form

    @final
    def encode(self, theta: Tensor) -> Tensor:
        """Weights (B, D) to canonical forms (B, dim); running statistics follow where they are given."""
        return self.form.encode(theta)

    @final
    def decode(self, x: Tensor) -> Tensor:
        """Points (B, dim) to weights (B, D); running statistics follow where they are given."""
        return self.form.decode(x)

    @final
    def project(self, x: Tensor) -> Tensor:
        """``x`` with every sphere's coordinates divided by their norm."""
        return self.form.project(x)


class _Head(nn.Module):
    """The last layer of a classifier, or of one of its heads."""

    weight: Tensor
    bias: Tensor

    def __init__(self, space: WeightSpace, group: NeuronGroup) -> None:
        super().__init__()
        self.name, self.radius = group.name, float(group.size) ** 0.5
        self.even = all(block.parts == 1 for block in space.blocks if block.target == group.name)
        self.register_buffer("weight", space.incoming(group.name).flatten(), persistent=False)
        self.register_buffer("bias", space.attached(group.name).flatten(), persistent=False)

    def normalise(self, theta: Tensor) -> Tensor:
        """Divide by the norm of the weights, in place; its logarithm (B, 1)."""
        weight = theta[:, self.weight]
        norm = sphere.direction(weight.double())[1]
        norm = torch.where(norm.square() < torch.finfo(theta.dtype).tiny, 0.0, norm)
        dead, scale = norm == 0, torch.where(norm == 0, 1.0, norm)
        if not self.even and bool(dead.any()):
            raise ValueError(f"the last layer {self.name!r} is zero and a grouped convolution: it has no direction")
        theta[:, self.weight] = torch.where(dead, self.weight.numel() ** -0.5, (weight / scale).to(theta))
        theta[:, self.bias] = (theta[:, self.bias] / scale).to(theta)
        return scale.log().to(theta)

    def multiply(self, theta: Tensor, scale: Tensor | float) -> None:
        """Multiply weights and bias by a scale (B, 1), in place."""
        theta[:, self.weight] = theta[:, self.weight] * scale
        theta[:, self.bias] = theta[:, self.bias] * scale


def _hold_variances(space: WeightSpace, x: Tensor) -> None:
    """Keep running variances, in place, from being rounded to -eps, where batch norm would divide by zero."""
    for vector in space.buffers * (x.shape[-1] > space.dim):
        if vector.kind == "running_var":
            view = vector.view(x)
            view[...] = torch.maximum(view.clone(), torch.nextafter(x.new_tensor(-vector.eps), x.new_zeros(())))


def _is_head(space: WeightSpace, group: NeuronGroup) -> bool:
    """Whether the logits of a group are linear in the weights and biases that enter it."""
    if group.role != "output" or group.activation != "softmax" or space.incoming(group.name).numel() < 2:
        return False
    blocks = [b for b in space.blocks if b.target == group.name]
    plain = all(v.kind == "bias" for v in (*space.vectors, *space.buffers) if v.group == group.name)
    return plain and not any(b.target_scale for b in blocks) and all(b.source != group.name for b in space.blocks)


def _refuse_frozen_bias(space: WeightSpace, output: NeuronGroup) -> None:
    """Refuse a last layer whose weights would be rescaled and whose bias, which is no coordinate, would not."""
    weights = [block.name for block in space.blocks if block.target == output.name]
    biases = {weight.removesuffix("weight") + "bias" for weight in weights}
    for name, _ in space.template.named_parameters():
        if name in biases - space.names:
            raise ValueError(
                f"{name!r} is frozen, so that the scale of the last layer decides over labels: keep_scale=False would "
                "change them; use keep_scale=True, or select the bias too"
            )


def _named(steps: list[Normalisation]) -> list[tuple[str, Tensor]]:
    """Index sets of the spheres, named by the group and, where it has several, by their first tensor."""
    chosen = [step for step in steps if step.has_spheres]
    count = Counter(step.rescaling.group for step in chosen)
    names = [s.rescaling.group + f":{s.rescaling.name}" * (count[s.rescaling.group] > 1) for s in chosen]
    return [(name, step.index) for name, step in zip(names, chosen, strict=True)]


def _factors(space: WeightSpace, named: list[tuple[str, Tensor]], scales: list[str]) -> list[tuple[str, Tensor]]:
    factors = []
    for name, index in named:
        numbers = [""] if index.shape[0] == 1 else [f"[{i}]" for i in range(index.shape[0])]
        factors += [(name + number, row) for number, row in zip(numbers, index, strict=True)]
    rest = torch.ones(space.dim, dtype=torch.bool)
    for _, index in named:
        rest[index] = False
    for tensor in space.tensors:
        flat = torch.arange(tensor.start, tensor.start + tensor.numel)
        if bool(rest[flat].any()):
            factors.append((tensor.name, flat[rest[flat]]))
    for i, head in enumerate(scales):
        factors.append((f"log_scale:{head}" if len(scales) > 1 else "log_scale", torch.tensor([space.dim + i])))
    return factors
