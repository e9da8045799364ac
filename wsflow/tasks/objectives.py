r"""Objectives that a base task gives: what guidance can be told to lower.

*Loss.*  :math:`L(\theta) = \frac1n \sum_i \ell(f_\theta(x_i), y_i)` on the train split or on mini-batches of it.

*Robustness.*  The loss at inputs that an attacker moved within a ball of radius :math:`\epsilon` in the maximum norm,

.. math:: L(\theta) = \frac1n \sum_i \ell\bigl(f_\theta(x_i + \delta_i(\theta)), y_i\bigr), \quad
          |\delta_i|_\infty \le \epsilon ,

in the units of the task's (standardised) inputs.  The gradient takes the moved inputs as given, which at the
worst point of the ball is exact (Danskin's theorem; Madry et al. 2018).

Both read train data only.  A task that is given to an objective stays; otherwise the flow's own is attached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.base import BaseTask, TaskObjective
from wsflow.weightspace import Objective
from wsflow.weightspace.randomness import common, draw_rows
from wsflow.weightspace.transfer import send


class TaskLoss(Objective):
    """The train loss of a base task.

    Args:
        task: The task; the flow's own by default.
        batch_size: Data points drawn at each call; None for the whole train split.
        shared: Whether all networks see the same data points, which is faster; by default each draws its own.

    Raises:
        ValueError: for a task without data, or a batch larger than its train split.
    """

    def __init__(self, task: BaseTask | None = None, batch_size: int | None = None, shared: bool = False) -> None:
        self.task, self.batch_size, self.shared = task, batch_size, shared
        self._loss: Objective | None = None

    def attach(self, task: Any) -> None:
        """Take the flow's own task, unless there is one."""
        if task is not None or self._loss is None:
            self._loss = _known(self, self.task, task).objective("train", self.batch_size, self.shared)

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,)."""
        if self._loss is None:
            self.attach(None)
        assert isinstance(self._loss, TaskObjective)
        _refuse_misfit(self._loss.task, theta)
        return self._loss(theta, generator)


class Attack(ABC):
    """Moves inputs to where the loss is higher, within a ball."""

    @abstractmethod
    def __call__(
        self, loss: Callable[[Tensor], Tensor], inputs: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Moved inputs.

        Args:
            loss: The sum of the losses of inputs (B, n, ...).
            inputs: (B, n, ...), n for each network.
            generator: Source of the attack's randomness.
        """


class FGSM(Attack):
    """The fast gradient sign method (Goodfellow et al. 2015): one step to a corner of the ball.

    Args:
        epsilon: Radius.

    Raises:
        ValueError: for a negative radius.
    """

    def __init__(self, epsilon: float) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        self.epsilon = epsilon

    def __call__(
        self, loss: Callable[[Tensor], Tensor], inputs: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Inputs plus epsilon times the sign of their gradient."""
        slope: Tensor = torch.func.grad(loss)(inputs)
        return inputs + self.epsilon * slope.sign()


class PGD(Attack):
    """Projected gradient ascent from a random place of the ball (Madry et al. 2018).

    Args:
        epsilon: Radius.
        iterations: Steps.
        step: Their size; 2.5 epsilon / iterations by default, which can cross the ball.

    Raises:
        ValueError: for a negative radius or step, or less than one iteration.
    """

    def __init__(self, epsilon: float, iterations: int = 5, step: float | None = None) -> None:
        if not epsilon >= 0 or iterations < 1 or (step is not None and not step >= 0):
            raise ValueError(
                "epsilon and step must not be negative and iterations at least 1; "
                f"got {epsilon}, {step} and {iterations}"
            )
        self.epsilon, self.iterations, self.step = epsilon, iterations, step

    def __call__(
        self, loss: Callable[[Tensor], Tensor], inputs: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Inputs after the ascent."""
        step = 2.5 * self.epsilon / self.iterations if self.step is None else self.step
        shape = inputs.shape[1:]
        start = draw_rows(lambda n, source: torch.rand(n, *shape, generator=source), len(inputs), generator)
        moved = inputs + self.epsilon * (2 * send(start, inputs.device).to(inputs) - 1)
        for _ in range(self.iterations):
            moved = moved + step * torch.func.grad(loss)(moved).sign()
            moved = inputs + (moved - inputs).clamp(-self.epsilon, self.epsilon)
        return moved


class AdversarialLoss(Objective):
    """The train loss of a base task under attack; every network is attacked at its own weakness.

    Args:
        attack: How inputs are moved.
        task: The task; the flow's own by default.
        batch_size: Train data points drawn at each call, the same for all networks; None for the whole train split.

    Raises:
        ValueError: for a task without data, or a batch larger than its train split.
    """

    def __init__(self, attack: Attack, task: BaseTask | None = None, batch_size: int | None = 128) -> None:
        self.attack, self.task, self.batch_size = attack, task, batch_size
        self._known: BaseTask | None = None

    def attach(self, task: Any) -> None:
        """Take the flow's own task, unless there is one."""
        known = self._known if task is None and self._known is not None else _known(self, self.task, task)
        if self.batch_size is not None and not 1 <= self.batch_size <= len(known.data("train")[0]):
            raise ValueError(f"batch_size {self.batch_size} does not fit the train split of task {known.name}")
        self._known = known

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,)."""
        if self._known is None:
            self.attach(None)
        assert self._known is not None
        task, (inputs, targets) = self._known, self._known.data("train")
        _refuse_misfit(task, theta)
        if self.batch_size not in (None, len(inputs)):
            index = torch.randperm(len(inputs), generator=common(generator))[: self.batch_size]
            inputs, targets = inputs[index], targets[index]
        inputs, targets = send(inputs, theta.device), send(targets, theta.device)
        batch = inputs.to(theta).expand(len(theta), *inputs.shape)
        network = task.with_statistics(theta)
        fixed = network.detach()

        def total(moved: Tensor) -> Tensor:
            return task.loss(task.space.forward(fixed, moved, per_network=True), targets).sum()

        moved = self.attack(total, batch, generator).detach()
        return task.loss(task.space.forward(network, moved, per_network=True), targets)


def _known(objective: Objective, given: BaseTask | None, task: Any) -> BaseTask:
    """The task of an objective, with its space built: within a derivative it could not be."""
    found = given if given is not None else task
    if isinstance(found, BaseTask) and found.has_data and found.space.dim:
        return found
    what = "there is none" if found is None else f"task {getattr(found, 'name', type(found).__name__)} has no data"
    raise ValueError(f"{type(objective).__name__} needs a base task with train data, and {what}: give it a task")


def _refuse_misfit(task: BaseTask, theta: Tensor) -> None:
    if theta.shape[1] not in (task.space.dim, task.space.full_dim):
        raise ValueError(
            f"task {task.name} judges networks of {task.space.dim} weights and is asked about ones of "
            f"{theta.shape[1]}: give the task the base network's widths"
        )
