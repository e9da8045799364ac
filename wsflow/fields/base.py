r"""Vector fields on weight space.

A field is a function :math:`f(x, t)` from states (B, D + extra) and times (B,) to (B, D + extra), where ``extra``
counts the trailing coordinates that a geometry adds to the D weights.  What its output means, a velocity or an
endpoint, is the business of :mod:`wsflow.fields.parametrization`.

*Preconditioning.*  Weights of different tensors differ in size by orders of magnitude.  Each field therefore divides
its input and multiplies its output by one scale per tensor of the space (and one for the extra coordinates),

.. math:: f(x, t) = s_{out} \odot g(x / s_{in}, t),

with :math:`s` the root mean square of each tensor, set once by :meth:`VectorField.calibrate` and saved with the
parameters.  The coordinates of the flow, and with them its prior, transport and likelihood, stay as they are.

*Binding.*  Parameters that do not depend on widths run on networks of other widths: :meth:`VectorField.bind`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace

RMS_FLOOR = 1e-3
"""Least scale of a tensor, as a fraction of the scale of all coordinates; keeps tensors that are zero finite."""

ROWS = 64
"""States whose squares are summed at once."""


class VectorField(nn.Module, ABC):
    """A function of state and time on one weight space.

    Subclasses compute ``self._scaled_out(g(self._scaled_in(x), t))`` and, where they hold index buffers that follow
    from the space, rebuild them in :meth:`_bind`.

    Args:
        space: The weight space.
        extra: ``geometry.dim - space.dim``, the number of trailing coordinates that are no weights; negative in a
            latent space, whose coordinates are no weights at all and have one scale in common.

    Attributes:
        latent: Whether the field takes the coordinates of a latent space, and not only weights.

    Raises:
        ValueError: for a negative ``extra``, but for fields that take a latent space.
    """

    latent: ClassVar[bool] = False
    input_scale: Tensor
    output_scale: Tensor
    _entry: Tensor

    def __init__(self, space: WeightSpace, extra: int = 0) -> None:
        super().__init__()
        if extra < 0:
            self._refuse_latent(space, extra)
        self.space = space
        self.extra = extra
        entries = len(space.tensors) + (extra > 0) if extra >= 0 else 1
        self.register_buffer("input_scale", torch.ones(entries))
        self.register_buffer("output_scale", torch.ones(entries))
        self.register_buffer("_entry", _entries(space, extra), persistent=False)

    @property
    def dim(self) -> int:
        """Number of coordinates of a state, D + extra."""
        return self.space.dim + self.extra

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's raw output.

        Args:
            x: (B, D + extra), states.
            t: (B,), times in [0, 1].
            condition: (B, K), labels of a conditional field, or None.

        Returns:
            (B, D + extra).

        Raises:
            ValueError: where ``x`` has another number of coordinates.
        """

    def bind(self, space: WeightSpace) -> Self:
        """The same field, with the same (shared) parameters, on another space.

        Each tensor keeps the scales of the tensor at its place in flat order.

        Args:
            space: A space with as many tensors, of the same kinds, such as another width of the same depth.

        Raises:
            ValueError: where the spaces do not correspond, or the field's parameters depend on what differs.
        """
        kinds, others = _kinds(self.space), _kinds(space)
        if kinds != others:
            raise ValueError(
                f"a field on a space of {len(kinds)} tensors cannot be bound to one of {len(others)}: "
                "each tensor of one space must correspond to a tensor of the other"
            )
        bound = copy.copy(self)
        for registry in ("_parameters", "_buffers", "_modules"):
            bound.__dict__[registry] = self.__dict__[registry].copy()
        bound._bind(space)
        bound.space = space
        bound._entry = _entries(space, self.extra).to(self._entry.device)
        return bound

    def place(self, geometry: Geometry) -> None:
        """Take the space that states live in; a flow calls this once.  Most fields need not know."""

    def attach(self, task: Any) -> None:
        """Take what the field needs of the base task's train data, before training.  Most fields need none.

        Raises:
            ValueError: where something is needed that the task does not have.
        """

    @torch.no_grad()
    def calibrate(self, x: Tensor, target: Tensor) -> None:
        """Set the scales to the root mean square of each tensor, over networks and coordinates.

        A tensor whose values are (nearly) all zero gets :data:`RMS_FLOOR` times the scale of all coordinates.

        Args:
            x: (n, D + extra), states as the field will see them.
            target: (n, D + extra), outputs that the field should give
                (:meth:`wsflow.fields.Parametrization.target`).

        Raises:
            ValueError: for no states, another number of coordinates, or values that are not finite.
        """
        self.input_scale.copy_(self._rms(x, "states"))
        self.output_scale.copy_(self._rms(target, "targets"))

    def _bind(self, space: WeightSpace) -> None:
        """Hook of :meth:`bind`: replace what follows from the space, or refuse it with a ValueError.

        It runs on the bound copy, whose ``self.space`` is still the old space.  Replace buffers and submodules by
        assignment; in-place changes would reach the original.
        """

    def _scaled_in(self, x: Tensor) -> Tensor:
        """States divided by the input scale of their tensor, (B, D + extra)."""
        self._check(x, "states")
        return x / self.input_scale[self._entry]

    def _scaled_out(self, y: Tensor) -> Tensor:
        """Outputs multiplied by the output scale of their tensor, (B, D + extra)."""
        return y * self.output_scale[self._entry]

    def _refuse_latent(self, space: WeightSpace, extra: int) -> None:
        if not self.latent or space.dim + extra < 1:
            raise ValueError(
                f"extra must not be negative, got {extra}: {type(self).__name__} takes the {space.dim} weights of its "
                f"networks and not {space.dim + extra} coordinates of a latent space; use MLPField there"
            )

    def _check(self, x: Tensor, what: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"{what} have shape {tuple(x.shape)}, this field takes (B, {self.dim}): "
                f"{self.space.dim} weights and {self.extra} extra coordinates"
            )

    def _rms(self, x: Tensor, what: str) -> Tensor:
        self._check(x, what)
        square = torch.zeros(self.dim, dtype=torch.float64, device=self.input_scale.device)
        for part in torch.split(x, ROWS):  # copies in double precision are large
            square += part.to(square).square().sum(dim=0) / max(len(x), 1)
        if not len(x) or not square.isfinite().all():
            raise ValueError(f"cannot calibrate on {what} of shape {tuple(x.shape)}: they must be some, and all finite")
        count = torch.bincount(self._entry, minlength=len(self.input_scale))
        total = torch.zeros_like(count, dtype=torch.float64).index_add_(0, self._entry, square)
        overall = square.mean().sqrt()
        rms = (total / count).sqrt().clamp_min(RMS_FLOOR * overall)
        return rms.to(self.input_scale) if overall > 0 else torch.ones_like(self.input_scale)


def check_same_ends(old: WeightSpace, new: WeightSpace) -> None:
    """Raise ValueError unless both spaces have the same input and output groups, for fields that embed each of them."""
    ends, others = ([(g.role, g.size) for g in space.groups if g.role != "hidden"] for space in (old, new))
    if ends != others:
        raise ValueError(
            f"the field has one embedding per input and per output neuron and was made for {ends}; "
            f"it cannot be bound to a space with {others}"
        )


def _kinds(space: WeightSpace) -> list[set[type]]:
    """What each tensor holds, in flat order: blocks, vectors or both."""
    return [{type(piece) for piece in space.pieces if piece.name == tensor.name} for tensor in space.tensors]


def _entries(space: WeightSpace, extra: int) -> Tensor:
    """Index of the scale of each coordinate, (D + extra,)."""
    if extra < 0:
        return torch.zeros(space.dim + extra, dtype=torch.long)
    counts = [tensor.numel for tensor in space.tensors] + ([extra] if extra else [])
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
