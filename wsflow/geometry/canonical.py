r"""The canonical form of a network: its scaling symmetry removed (thesis sections 4.4 and 6.2.2).

*Hidden neurons.*  Where the activation commutes with positive factors (ReLU), a neuron with incoming weights
:math:`w`, bias :math:`b` and outgoing weights :math:`v` computes the same as one with :math:`w / |w|`, :math:`b / |w|`
and :math:`|w| v`.  Groups are normalised in forward order, since each one changes the incoming weights of the next.
A neuron with one incoming weight has no sphere worth the name (S^0 is two points) and stays as it is.

*Last layer of a classifier.*  Its weight tensor is divided by its norm :math:`s`, its bias too: labels stay, the loss
does not.  Two ways lead back:

- ``keep_scale``: :math:`\log s` is one more coordinate, in the last place; ``decode`` multiplies by :math:`s`, and
  nothing is lost;
- otherwise ``decode`` multiplies by the thesis's radius :math:`\sqrt C`, C the number of classes.  That keeps labels
  only if the bias is scaled too; where ``select`` froze it, the space is refused.

The last layer of any other network stays as it is.

*Zeros.*  No value and no probability is changed:

- a hidden neuron whose incoming weights are all zero puts out the constant :math:`\sigma(b)`.  That constant times
  the outgoing weights moves into the biases of the groups it feeds, the outgoing weights and the bias become zero, and
  the incoming weights the unit vector with equal coordinates (where both ends of an edge are dead, that of its target
  decides; it changes nothing).  Without a bias to move it to, ``encode`` refuses;
- a last layer of zeros becomes the unit matrix with equal entries, at scale 1, its bias unchanged: the same number is
  added to all logits, which leaves the probabilities as they were.

The form is idempotent and commutes with permutations of hidden neurons.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from wsflow.geometry import sphere
from wsflow.geometry.base import Geometry
from wsflow.geometry.product import SphereProduct
from wsflow.weightspace import NeuronGroup, WeightSpace


class CanonicalForm(nn.Module):
    """Encodes networks of one weight space into canonical form, and decodes.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is kept, as a coordinate.

    Attributes:
        dim: Coordinates of a canonical form: D, or D + 1 with the log-scale.
        product: The spheres and the rest: per normalised hidden group its neurons, then the last layer.
        factors: Name and coordinates of each sphere, of the Euclidean rest of each tensor, and of the log-scale.

    Raises:
        ValueError: where a group to be normalised carries norm layers, or takes weights from a later one, and where
            the scale of a last layer with a frozen bias is not to be kept.
    """

    _weight: Tensor
    _bias: Tensor

    def __init__(self, space: WeightSpace, keep_scale: bool = True) -> None:
        super().__init__()
        self.space = space
        output = space.groups[-1]
        chosen = [group for group in space.groups if group.scaling == "positive" and _fan_in(space, group) > 1]
        _check(space, chosen)
        self._groups = nn.ModuleList(_HiddenGroup(space, group) for group in chosen)
        self._has_last = output.activation == "softmax" and _fan_in(space, output) * output.size > 1
        self._keeps = self._has_last and keep_scale
        if self._has_last and not keep_scale:
            _refuse_frozen_bias(space, output)
        self._radius = float(output.size) ** 0.5
        weight = space.incoming(output.name).flatten() if self._has_last else torch.empty(0, dtype=torch.long)
        self.register_buffer("_weight", weight, persistent=False)
        self.register_buffer("_bias", space.attached(output.name).flatten(), persistent=False)
        self.dim = space.dim + self._keeps
        named = [(group.name, space.incoming(group.name)) for group in chosen]
        named += [(output.name, weight[None])] * self._has_last
        self.product = SphereProduct(self.dim, [index for _, index in named])
        self.factors = _factors(space, named, self._keeps)

    def encode(self, theta: Tensor) -> Tensor:
        """Networks (B, D) to their canonical forms (B, dim).

        Raises:
            ValueError: where the weights do not fit, or a dead neuron's constant has no bias to move to.
        """
        self.space.check(theta)
        for group in self._groups:
            theta = group(theta)
        if not self._has_last:
            return theta
        unit, norm = sphere.direction(theta[:, self._weight])
        scale = torch.where(norm == 0, 1.0, norm)
        theta = theta.clone()
        theta[:, self._weight] = unit
        theta[:, self._bias] = theta[:, self._bias] / scale
        return torch.cat([theta, scale.log()], dim=1) if self._keeps else theta

    def decode(self, x: Tensor) -> Tensor:
        """Canonical forms (B, dim), or any points of that shape, to networks (B, D).

        Raises:
            ValueError: where the last axis is not ``dim``.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"points have shape {tuple(x.shape)}, this geometry has {self.dim} coordinates")
        if not self._has_last:
            return x
        scale = x[:, -1:].exp() if self._keeps else self._radius
        theta = x[:, : self.space.dim].clone()
        theta[:, self._weight] = theta[:, self._weight] * scale
        theta[:, self._bias] = theta[:, self._bias] * scale
        return theta

    def project(self, x: Tensor) -> Tensor:
        """``x`` (B, dim) with every sphere's coordinates divided by their norm."""
        spheres, rest = self.product.split(x)
        return self.product.join([sphere.project(part) for part in spheres], rest)


class CanonicalGeometry(Geometry):
    """A geometry whose points are canonical forms; a variant says what paths between them are.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is a coordinate (then dim is D + 1); otherwise
            every decoded network has a last layer of norm sqrt(C).

    Raises:
        ValueError: where the space has no canonical form; see :class:`CanonicalForm`.
    """

    def __init__(self, space: WeightSpace, keep_scale: bool = True) -> None:
        form = CanonicalForm(space, keep_scale)
        super().__init__(space, form.dim, form.factors)
        self.form = form

    @final
    def encode(self, theta: Tensor) -> Tensor:
        """Weights (B, D) to canonical forms (B, dim)."""
        return self.form.encode(theta)

    @final
    def decode(self, x: Tensor) -> Tensor:
        """Points (B, dim) to weights (B, D)."""
        return self.form.decode(x)

    @final
    def project(self, x: Tensor) -> Tensor:
        """``x`` with every sphere's coordinates divided by their norm."""
        return self.form.project(x)


class _HiddenGroup(nn.Module):
    """Normalises the neurons of one hidden group."""

    incoming: Tensor
    outgoing: Tensor
    bias: Tensor
    receiver: Tensor

    def __init__(self, space: WeightSpace, group: NeuronGroup) -> None:
        super().__init__()
        self.name = group.name
        self.slope = 0.0 if group.activation == "relu" else _leaky_slope(space)
        self.register_buffer("incoming", space.incoming(group.name), persistent=False)
        self.register_buffer("outgoing", space.outgoing(group.name), persistent=False)
        self.register_buffer("bias", space.attached(group.name), persistent=False)
        self.register_buffer("receiver", _receivers(space, group), persistent=False)

    def forward(self, theta: Tensor) -> Tensor:
        """Networks (B, D) that compute the same functions, the group's incoming weights unit vectors."""
        unit, norm = sphere.direction(theta[:, self.incoming])
        dead = norm == 0
        theta = self._move_constants(theta, dead) if bool(dead.any()) else theta.clone()
        theta[:, self.incoming] = unit
        theta[:, self.bias] = theta[:, self.bias] / torch.where(dead, 1.0, norm)
        theta[:, self.outgoing] = theta[:, self.outgoing] * norm
        return theta

    def _move_constants(self, theta: Tensor, dead: Tensor) -> Tensor:
        """A copy with what dead neurons put out added to the biases that receive it, and their own biases zero."""
        bias = torch.where(dead, theta[:, self.bias].sum(-1, keepdim=True), 0.0)
        if self.slope is None and bool((bias < 0).any()):
            raise ValueError(
                f"group {self.name!r}: a dead neuron's output needs the slope of its leaky_relu, not known"
            )
        constant = bias.clamp_min(0) + (self.slope or 0.0) * bias.clamp_max(0)
        moved = (constant * theta[:, self.outgoing]).sum(1)
        if bool((moved[:, self.receiver < 0] != 0).any()):
            raise ValueError(
                f"group {self.name!r} has a neuron with zero incoming weights and a constant output, and the next "
                "layer has no bias to move it to: such a network has no canonical form; use the Euclidean geometry"
            )
        kept = self.receiver >= 0
        theta = theta.index_add(1, self.receiver[kept], moved[:, kept])
        theta[:, self.bias] = torch.where(dead, 0.0, theta[:, self.bias])
        return theta


def _fan_in(space: WeightSpace, group: NeuronGroup) -> int:
    return sum(block.in_ * block.depth for block in space.blocks if block.target == group.name)


def _check(space: WeightSpace, chosen: list[NeuronGroup]) -> None:
    """Refuse what the one pass in forward order would get wrong."""
    names = [group.name for group in chosen]
    for vector in (*space.vectors, *space.buffers):
        if vector.group in names and vector.kind != "bias":
            raise ValueError(f"group {vector.group!r} has a norm layer ({vector.name!r}): no canonical form is known")
    for block in space.blocks:
        if {block.source, block.target} <= set(names) and names.index(block.source) >= names.index(block.target):
            raise ValueError(
                f"{block.name!r} leads from group {block.source!r} back to {block.target!r}: "
                "networks with residual connections have no canonical form here; use the Euclidean geometry"
            )


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


def _receivers(space: WeightSpace, group: NeuronGroup) -> Tensor:
    """The bias coordinate that each outgoing weight's target neuron adds, (fan_out,); -1 where there is none.

    A convolution's zero padding makes a constant input a constant output only in the interior: -1 as well.
    """
    columns = []
    for block in space.blocks:
        if block.source == group.name:
            bias = space.attached(block.target)
            movable = bias.shape[1] > 0 and (block.depth == 1 or len(block.shape) == 2)
            column = bias[:, 0] if movable else torch.full((block.out,), -1)
            columns.append(column.repeat_interleave(block.depth))
    return torch.cat(columns)


def _leaky_slope(space: WeightSpace) -> float | None:
    slopes = {m.negative_slope for m in space.template.modules() if isinstance(m, nn.LeakyReLU)}
    return slopes.pop() if len(slopes) == 1 else None


def _factors(space: WeightSpace, named: list[tuple[str, Tensor]], keeps: bool) -> list[tuple[str, Tensor]]:
    factors = []
    for name, index in named:
        numbers = [""] if index.shape[0] == 1 else [f"[{i}]" for i in range(index.shape[0])]
        factors += [(name + number, row) for number, row in zip(numbers, index, strict=True)]
    rest = torch.ones(space.dim, dtype=torch.bool)
    for _, row in factors:
        rest[row] = False
    for tensor in space.tensors:
        flat = torch.arange(tensor.start, tensor.start + tensor.numel)
        if bool(rest[flat].any()):
            factors.append((tensor.name, flat[rest[flat]]))
    return factors + [("log_scale", torch.tensor([space.dim]))] * keeps
