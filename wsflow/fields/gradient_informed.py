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

*What it is and what not.*  S is the same for every sample, so that :math:`f` is a vector field like any other: its
samples have a density, and the loss is plain flow matching, whose minimiser has the law of the trained networks.
Gradients are inputs; nothing is descended, and nothing is added to the velocity.  But a sample costs one gradient at
each evaluation of the field, beside the field itself, where training takes hundreds of steps.

*Parts of the data.*  S is cut into parts, and the field sees part

.. math:: k(t) = \lfloor K t^{1 / p} \rfloor

of K at time t.  What a small part gets wrong would add up along a trajectory if it were the same at every step; with
K = 16 and p = 3, each of 16 steps at the times :math:`(k / 16)^3` has data of its own, at the cost of one part.  The
field is then constant in t but for jumps at these times.

*Filters.*  Beside its gradient, the layer that reads the data can be shown filtered by the curvature of the data
(:mod:`wsflow.fields.curvature`).

*Symmetry.*  The loss does not change when hidden neurons are permuted, so its gradient moves as the weights do, and a
field that is equivariant on stacks (:func:`wsflow.fields.stacks.stacked_space`) is so here.

S travels with the checkpoint: sampling needs no data.  A training that begins or goes on from a checkpoint takes S and
filters anew, as its own task and settings say; scales stay those that the parameters were trained with.  The loss is
what the output says: cross-entropy after a softmax, squared error otherwise.

*The last layer of a frozen network.*  Where the task's data are what that layer reads
(:class:`wsflow.tasks.FashionMNISTHead`), S holds these features, and the trunk does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from os.path import commonpath
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from wsflow.fields.base import VectorField
from wsflow.fields.curvature import filtered, input_blocks, input_filters
from wsflow.fields.neuron_transformer import NeuronTransformer
from wsflow.fields.self_conditioned import SelfConditioned
from wsflow.fields.stacks import StackedField
from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.statistics import batch_statistics

EDGE = 1e-4
"""How far below the start of a part, in parts, a time may lie by rounding and still see it."""


class GradientInformed(StackedField):
    """Any field, given the gradient of the base task's train loss at its state.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights.
        field: Makes the field, on a space with a number for the state and one for each gradient, filtered or not, in
            the place of each weight; NeuronTransformer by default.
        points: Data points in a part; the first train data points are taken.
        parts: K, how many parts S has; each is seen for a while.
        power: p of the times at which parts change; choose that of the sampler's grid.
        damping: The dampings of the filters, in multiples of the mean eigenvalue; none by default.
        condition: Number of values that each network is conditioned on, 0 for none.

    Raises:
        ValueError: for less than one point or part, a power or damping that is not positive, a space without a network
            (inside SelfConditioned, say), dampings where no linear layer reads the inputs, or parts for a network with
            batch norm.
    """

    inputs: Tensor
    targets: Tensor
    filters: Tensor
    gradient_scale: Tensor
    _geometry: Geometry | None
    _head: WeightSpace | None

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        field: Callable[[WeightSpace, int], VectorField] | None = None,
        points: int = 1024,
        parts: int = 1,
        power: float = 1.0,
        damping: Sequence[float] = (),
        condition: int = 0,
    ) -> None:
        if points < 1 or parts < 1 or not power > 0:
            raise ValueError(
                f"points must be at least 1, parts at least 1 and power positive; got {points}, {parts}, {power}"
            )
        if any(not level > 0 for level in damping):
            raise ValueError(f"every damping must be positive, got {list(damping)}")
        if type(space.template) is nn.Identity:
            raise ValueError("GradientInformed takes the loss of its space's network, and this space has no network")
        if damping:
            input_blocks(space)
        if parts > 1 and space.buffers:
            raise ValueError("batch norm takes its statistics from one part of the data: give parts=1 for this network")
        super().__init__(space, extra, field or NeuronTransformer, 2 + len(damping), condition)
        self.points, self.parts, self.power, self.damping = points, parts, power, tuple(damping)
        self.register_buffer("gradient_scale", torch.ones(()))
        for name in ("inputs", "targets", "filters"):
            self.register_buffer(name, torch.empty(0))
        object.__setattr__(self, "_geometry", None)
        object.__setattr__(self, "_head", None)

    def place(self, geometry: Geometry) -> None:
        """Take the space that states live in; without one they are weights.  It is no part of the field."""
        object.__setattr__(self, "_geometry", geometry)

    def attach(self, task: Any) -> None:
        """Take S and filters from the train data of a base task (:class:`wsflow.tasks.BaseTask`), in place of others.

        Without a task that has data, those that are there are kept.

        Raises:
            ValueError: where there is no task, or one without data, and no S; where the data is too little for more
                than one part; for a SelfConditioned field within.
        """
        if isinstance(self.field, SelfConditioned):
            raise ValueError(
                "GradientInformed does not give SelfConditioned, the field within it, the estimate that it needs; nor "
                "can it be the field within SelfConditioned: leave one of the two out"
            )
        if not getattr(task, "has_data", False):
            if len(self.inputs):
                return
            what = "there is none" if task is None else f"task {getattr(task, 'name', type(task).__name__)} has no data"
            raise ValueError(
                f"GradientInformed needs the train data of the base task, and {what}; train with a data module whose "
                "task has data, or choose another field"
            )
        inputs, targets = task.data("train")
        wanted = self.points * self.parts
        if self.parts > 1 and wanted > len(inputs):
            raise ValueError(
                f"{self.parts} parts of {self.points} points need {wanted} train data points, and the task has "
                f"{len(inputs)}; choose fewer parts or points"
            )
        self.inputs = inputs[:wanted].to(self.input_scale)
        self.targets = targets[:wanted].to(self.input_scale.device)
        if self.damping:
            self.filters = input_filters(inputs, self.damping).to(self.input_scale)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at states x and times t.

        Raises:
            ValueError: where no task has been attached, and as every field does.
        """
        self._check(x, "states")
        return self._on_stack(self._seen(x, t), t, condition)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """g(x), (B, D + extra), on the part of the data that is seen at times t (B,); differentiable by x."""
        raw = self._raw_gradient(x, t)
        size = raw.square().mean(dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny).sqrt()
        return raw / (size * self.gradient_scale).sqrt()

    @torch.no_grad()
    def calibrate(self, x: Tensor, target: Tensor) -> None:
        """As every field does, each gradient by itself, on the first part of the data."""
        first = x.new_zeros(1).expand(len(x))
        raw = self._raw_gradient(x, first)
        if not raw.isfinite().all():
            raise ValueError("the task's gradient is not finite at some states")
        size = raw.square().mean(dim=1).sqrt().mean()
        self.gradient_scale.copy_(torch.where(size > 0, size, 1.0))
        self._calibrate(self._seen(x, first), target)

    def _seen(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """States and gradients, (B, D + extra) each."""
        gradient = self.gradient(x, t)
        if not self.damping:
            return [x, gradient]
        views = filtered(self.space, gradient, self.filters)
        return [x, gradient, *(view if self._geometry is None else self._geometry.tangent(x, view) for view in views)]

    def _raw_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        if not len(self.inputs):
            raise ValueError("GradientInformed has no train data yet: attach the base task before the field is used")
        with torch.autocast(x.device.type, enabled=False):  # gradients of half precision lose the small ones
            gradient = self._on_parts(x, t)
        return gradient if self._geometry is None else self._geometry.tangent(x, gradient)

    def _on_parts(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradients of the states' losses, each network's on the part that it sees.

        Solvers ask for all networks at one time, which has stride 0: they share a part, and nobody has to look which.
        Otherwise networks with the same part go together; where looking would wait for a device, each takes a copy.
        """
        if self.parts == 1:
            return self._gradients(x, self.inputs, self.targets)
        inputs, targets = (data.view(self.parts, self.points, *data.shape[1:]) for data in (self.inputs, self.targets))
        if len(t) and t.stride(0) == 0:
            part = self._part(t[:1])
            return self._gradients(x, inputs[part][0], targets[part][0])
        part = self._part(t)
        if x.device.type != "cpu":
            return self._gradients(x, inputs[part], targets[part], apart=True)
        order, counts = part.argsort(stable=True), part.bincount(minlength=self.parts).tolist()
        groups = enumerate(torch.split(x[order], counts))
        found = [self._gradients(group, inputs[k], targets[k]) for k, group in groups if len(group)]
        return torch.cat(found)[order.argsort()]

    def _part(self, t: Tensor) -> Tensor:
        """k(t), (B,)."""
        part: Tensor = (self.parts * t.clamp(0, 1) ** (1 / self.power) + EDGE).long()
        return part.clamp(max=self.parts - 1)

    def _gradients(self, x: Tensor, inputs: Tensor, targets: Tensor, apart: bool = False) -> Tensor:
        gradient: Tensor = grad(lambda state: self._losses(state, inputs, targets, apart).sum())(x)
        return gradient

    def _losses(self, x: Tensor, inputs: Tensor, targets: Tensor, apart: bool = False) -> Tensor:
        """Mean loss of each network, (B,), on data (N, ...) or, where it is apart, (B, N, ...)."""
        theta = x[:, : self.space.dim] if self._geometry is None else self._geometry.decode(x)
        if self.space.full_dim > self.space.dim:
            theta = batch_statistics(self.space, theta, inputs)
        logits = self._reader.forward(theta, inputs, apart)
        if self._classifies:
            return F.cross_entropy(logits.mT, targets.expand(logits.shape[:2]), reduction="none").mean(dim=1)
        return (logits - targets).square().flatten(1).mean(dim=1)

    @property
    def _reader(self) -> WeightSpace:
        """The space whose networks take S: those of the field's space or, where S are its features, a last layer."""
        shape, frozen = self.space.input_shape, "select" in (self.space.description or {})
        if shape is None or not frozen or self.inputs[0].numel() == prod(shape):
            return self.space
        if self._head is None:
            layers = [name.rpartition(".")[0].replace(".", "/") for name in self.space.names]
            object.__setattr__(self, "_head", self.space.layer(commonpath(layers).replace("/", ".")))
        assert self._head is not None
        return self._head

    @property
    def _classifies(self) -> bool:
        return any(group.role == "output" and group.activation == "softmax" for group in self.space.groups)

    def _bind(self, space: WeightSpace) -> None:
        super()._bind(space)
        object.__setattr__(self, "_geometry", None)
        object.__setattr__(self, "_head", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for the checkpoint's S and filters."""
        for name in ("inputs", "targets", "filters"):
            stored, held = state_dict.get(prefix + name), getattr(self, name)
            if stored is not None and stored.shape != held.shape:
                setattr(self, name, torch.empty_like(stored, device=held.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
