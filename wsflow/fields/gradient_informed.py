r"""Fields that see the base task's gradient at the state they are asked about.

What training does to a start is a function of the train data, and a field can only learn it from the zoo: with few runs
it remembers them instead.  This field is told what the data says about the very network it looks at,

.. math:: f(x_t, t, g(x_t)), \qquad g(x) = \frac{P_x \nabla_x L_S(\theta(x))}{\sqrt{r(x) \, r}} ,

with :math:`L_S` the mean train loss of the decoded weights on a fixed set S of train data points, :math:`P_x` the
projection to the tangent space, :math:`r(x)` the root mean square of the gradient of that network and r its mean over
the calibration batch: gradients fall by orders of magnitude from t = 0 to 1, and their square roots by few.  Samplers
of densities are given the score of their target for the same reason (Zhang and Chen 2022, "Path Integral Sampler",
section 4; Vargas, Grathwohl and Doucet 2023); learned optimizers take gradients as their input (Andrychowicz et al.
2016).

*What it is and what not.*  S does not change, so that :math:`f` is a vector field like any other: its samples have a
density, and the loss is plain flow matching, whose minimiser has the law of the trained networks.  Gradients are
inputs; nothing is descended, and nothing is added to the velocity.  But a sample costs one gradient on S at each
evaluation of the field, beside the field itself, where training takes hundreds of steps.

*Symmetry.*  The loss does not change when hidden neurons are permuted, so its gradient moves as the weights do, and a
field that is equivariant on pairs (:func:`wsflow.fields.pairs.pair_space`) is so here.

S travels with the checkpoint: sampling needs no data.  The loss is what the output says: cross-entropy after a softmax,
squared error otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from wsflow.fields.base import VectorField
from wsflow.fields.neuron_transformer import NeuronTransformer
from wsflow.fields.pairs import PairField
from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.statistics import batch_statistics


class GradientInformed(PairField):
    """Any field, given the gradient of the base task's train loss at its state.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights.
        field: Makes the field, on a space with two numbers for each weight; NeuronTransformer by default.
        points: Size of S; the first train data points are taken.
        condition: Number of values that each network is conditioned on, 0 for none.

    Raises:
        ValueError: for less than one point, or a space without a network (inside SelfConditioned, say).
    """

    inputs: Tensor
    targets: Tensor
    gradient_scale: Tensor
    _geometry: Geometry | None

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        field: Callable[[WeightSpace, int], VectorField] | None = None,
        points: int = 1024,
        condition: int = 0,
    ) -> None:
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        if type(space.template) is nn.Identity:
            raise ValueError("GradientInformed takes the loss of its space's network, and this space has no network")
        super().__init__(space, extra, field or NeuronTransformer, condition)
        self.points = points
        self.register_buffer("gradient_scale", torch.ones(()))
        self.register_buffer("inputs", torch.empty(0))
        self.register_buffer("targets", torch.empty(0))
        object.__setattr__(self, "_geometry", None)

    def place(self, geometry: Geometry) -> None:
        """Take the space that states live in; without one they are weights.  It is no part of the field."""
        object.__setattr__(self, "_geometry", geometry)

    def attach(self, task: Any) -> None:
        """Take S from the train data of a base task (:class:`wsflow.tasks.BaseTask`), unless there is one already.

        Raises:
            ValueError: where there is no task, or one without data.
        """
        if len(self.inputs):
            return
        if not getattr(task, "has_data", False):
            what = "there is none" if task is None else f"task {getattr(task, 'name', type(task).__name__)} has no data"
            raise ValueError(
                f"GradientInformed needs the train data of the base task, and {what}; train with a data module whose "
                "task has data, or choose another field"
            )
        inputs, targets = task.data("train")
        self.inputs = inputs[: self.points].to(self.input_scale)
        self.targets = targets[: self.points].to(self.input_scale.device)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at states x and times t.

        Raises:
            ValueError: where no task has been attached, and as every field does.
        """
        self._check(x, "states")
        return self._on_pair(x, self.gradient(x), t, condition)

    def gradient(self, x: Tensor) -> Tensor:
        """g(x), (B, D + extra); differentiable."""
        raw = self._raw_gradient(x)
        size = raw.square().mean(dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny).sqrt()
        return raw / (size * self.gradient_scale).sqrt()

    @torch.no_grad()
    def calibrate(self, x: Tensor, target: Tensor) -> None:
        """As every field does; gradients get scales of their own."""
        raw = self._raw_gradient(x)
        if not raw.isfinite().all():
            raise ValueError("the task's gradient is not finite at some states")
        size = raw.square().mean(dim=1).sqrt().mean()
        self.gradient_scale.copy_(torch.where(size > 0, size, 1.0))
        self.field.calibrate(self._pair(x, self.gradient(x)), self._pair(target, target))

    def _raw_gradient(self, x: Tensor) -> Tensor:
        if not len(self.inputs):
            raise ValueError("GradientInformed has no train data yet: attach the base task before the field is used")
        with torch.autocast(x.device.type, enabled=False):  # gradients of half precision lose the small ones
            gradient = grad(lambda state: self._losses(state).sum())(x)
        return gradient if self._geometry is None else self._geometry.tangent(x, gradient)

    def _losses(self, x: Tensor) -> Tensor:
        """Mean loss on S of each network, (B,)."""
        theta = x[:, : self.space.dim] if self._geometry is None else self._geometry.decode(x)
        if self.space.full_dim > self.space.dim:
            theta = batch_statistics(self.space, theta, self.inputs)
        logits = self.space.forward(theta, self.inputs)
        if self._classifies:
            rows = self.targets.expand(logits.shape[:2])
            losses = F.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="none")
            return losses.view(rows.shape).mean(dim=1)
        return (logits - self.targets).square().flatten(1).mean(dim=1)

    @property
    def _classifies(self) -> bool:
        return any(group.role == "output" and group.activation == "softmax" for group in self.space.groups)

    def _bind(self, space: WeightSpace) -> None:
        super()._bind(space)
        object.__setattr__(self, "_geometry", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for the checkpoint's S."""
        for name in ("inputs", "targets"):
            stored, held = state_dict.get(prefix + name), getattr(self, name)
            if stored is not None and stored.shape != held.shape:
                setattr(self, name, torch.empty_like(stored, device=held.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
