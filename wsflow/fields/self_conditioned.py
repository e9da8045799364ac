r"""Fields that see what they predicted before (self-conditioning, Chen, Zhang and Hinton 2023, "Analog Bits").

A field that predicts the endpoint does so anew at every step of the solver, and forgets.  Here it is given its last
estimate :math:`\tilde x_1` too,

.. math:: f(x_t, t, \tilde x_1) , \quad \tilde x_1 = \text{endpoint predicted by } f(x_t, t, 0) ,

in training in half of the steps (else 0), without derivative through the estimate; in sampling the estimate of one
evaluation is handed on to the next, at no cost.  The validation loss is taken with an estimate, as sampling has one.

*No field has to know of it.*  The pair :math:`(x_t, \tilde x_1)` is a point of the weight space of the same network
with two numbers in the place of each weight, a kernel of twice the size: the field runs on that space
(:mod:`wsflow.fields.stacks`), and half of its output is used.  A field equivariant there is so in both arguments.

What samples follow is no longer the flow of one vector field, as the velocity depends on the steps before; nothing here
needs that it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsflow.fields.base import VectorField
from wsflow.fields.parametrization import Parametrization
from wsflow.fields.relational_transformer import RelationalTransformer
from wsflow.fields.stacks import StackedField
from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace


class SelfConditioned(StackedField):
    """Any field, given its last estimate of the endpoint.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights.
        field: Makes the field, on a space with two numbers for each weight; RelationalTransformer by default.
        probability: Of a training step with an estimate.
        condition: Number of values that each network is conditioned on, 0 for none.

    Raises:
        ValueError: for a probability out of [0, 1].
    """

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        field: Callable[[WeightSpace, int], VectorField] | None = None,
        probability: float = 0.5,
        condition: int = 0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        super().__init__(space, extra, field or RelationalTransformer, 2, condition)
        self.probability = probability

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, estimate: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at states x, times t and estimates (B, D + extra); 0 where None."""
        self._check(x, "states")
        return self._on_stack([x, torch.zeros_like(x) if estimate is None else estimate], t, condition)

    @torch.no_grad()
    def calibrate(self, x: Tensor, target: Tensor) -> None:
        """As every field does; estimates get the scale of states."""
        self._calibrate([x, x], target)

    def draws_estimate(self, generator: torch.Generator | None) -> bool:
        """Whether a training step has an estimate."""
        return float(torch.rand((), generator=generator)) < self.probability


def predict(
    field: VectorField,
    parametrization: Parametrization,
    geometry: Geometry,
    x: Tensor,
    t: Tensor,
    condition: Tensor | None = None,
    estimate: bool = True,
) -> Tensor:
    """A field's output (B, dim); a self-conditioned one first predicts an endpoint, unless ``estimate`` is False."""
    output: Tensor
    if not isinstance(field, SelfConditioned):
        output = field(x, t, condition)
        return output
    end = None
    if estimate:
        with torch.no_grad():
            end = parametrization.endpoint(field(x, t, condition), geometry, x, t)
        torch.clear_autocast_cache()  # it holds weights that were cast without derivative
    output = field(x, t, condition, end)  # called, not its forward: a compiled field is compiled in its call
    return output


def follow(
    field: VectorField, parametrization: Parametrization, geometry: Geometry, condition: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of one solution of the flow; a self-conditioned field's estimates go from call to call."""
    last: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(field, SelfConditioned):
            return parametrization.velocity(field(x, t, condition), geometry, x, t)
        output = field(x, t, condition, last[0] if last else None)
        last[:] = [parametrization.endpoint(output, geometry, x, t)]
        return parametrization.velocity(output, geometry, x, t)

    return velocity
