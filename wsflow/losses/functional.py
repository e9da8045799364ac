r"""The base task's own loss of the network that a flow predicts.

At a state :math:`x_t` the field predicts an endpoint :math:`\hat x_1` (:meth:`wsflow.fields.Parametrization.endpoint`),
which decodes to weights :math:`\hat\theta`.  With the task's train loss on a mini-batch S,
:math:`L_S(\theta) = \frac{1}{|S|} \sum_{n \in S} \ell(f_\theta(x_n), y_n)`, training adds

.. math:: \lambda \, w(t) \, L_S(\hat\theta), \quad w(t) = t^p \, [t \ge t_0] .

The flow loss counts every coordinate alike, though some directions in weight space change the function much and others
not at all; this term pulls on those that the function feels.

*It is no proper loss of a flow.*  The flow loss alone is least at the conditional mean :math:`E[x_1 | x_t]`, whose flow
has exactly the law of the trained networks; with this term the minimiser moves towards better networks, and samples may
be better, and more alike, than trained ones: watch dispersion and novelty.  At small t the best endpoint is a mean over
many networks and no network, so that its own loss says little: p and :math:`t_0` leave such times out.

*Scale.*  Geometries without the last layer's scale (``keep_scale=False``) decode to networks of its labels and not of
its loss, and lowering their loss as they stand would turn them away from the trained ones, towards confidence that the
form does not have.  ``scale`` gives the outputs back what the form leaves out: the mean over train networks.

*Batch norm.*  Predicted weights have no running statistics, so every step recomputes them for every network on the
task's first ``statistics_points`` train inputs, with derivatives: by default this costs as much as a mini-batch of
1,000, however small ``batch_size`` is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsflow.weightspace import Objective


class FunctionalTerm:
    """Adds the base task's train loss of the predicted endpoint; in training only.

    Args:
        weight: Of the term, beside a flow loss per coordinate.
        batch_size: Train data points at each step; None for all.
        power: Exponent of the time in the term's weight; 0 for equal weight at all times.
        after: Least time at which the term counts.
        shared: Whether all networks of a step see the same data points, which costs less memory; otherwise each draws
            its own, with replacement.
        scale: Multiplies the outputs of predicted networks.

    Raises:
        ValueError: for a negative weight or power, a batch size below 1, a time out of [0, 1), or a scale that is not
            positive.
    """

    def __init__(
        self,
        weight: float = 0.1,
        batch_size: int | None = 128,
        power: float = 1.0,
        after: float = 0.0,
        shared: bool = True,
        scale: float = 1.0,
    ) -> None:
        if not (weight >= 0 and power >= 0 and scale > 0):
            raise ValueError(
                f"weight and power must not be negative and scale must be positive, got {weight}, {power} and {scale}"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= after < 1:
            raise ValueError(f"after must lie in [0, 1), got {after}")
        self.weight, self.batch_size, self.power, self.after, self.shared = weight, batch_size, power, after, shared
        self.scale = scale
        self._objective: Objective | None = None

    def attach(self, task: Any) -> None:
        """Take the objective of a base task (:class:`wsflow.tasks.BaseTask`).

        Raises:
            ValueError: where there is no task, or one without data.
        """
        if not getattr(task, "has_data", False):
            raise ValueError(
                f"{type(self).__name__} needs the train data of the base task, and {_what(task)}; "
                "train with a data module whose task has data, or leave the term out"
            )
        self._objective = task.objective("train", self.batch_size, self.shared, self.scale)

    def time_weight(self, t: Tensor) -> Tensor:
        """w(t), elementwise."""
        return torch.where(t >= self.after, t**self.power, 0.0)

    def __call__(self, theta: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The task's loss of each predicted network times w(t); not yet times ``weight``.

        Args:
            theta: (B, D), predicted weights.
            t: (B,), the times they were predicted at.
            generator: Draws the data points.

        Returns:
            (B,).

        Raises:
            ValueError: where no task has been attached.
        """
        if self._objective is None:
            self.attach(None)
        assert self._objective is not None
        return self.time_weight(t) * self._objective(theta, generator)


def _what(task: Any) -> str:
    return "there is none" if task is None else f"task {getattr(task, 'name', type(task).__name__)} has no data"
