r"""Base tasks: the data, the network trained on it and how a network is judged.

For the weights :math:`\theta` of B networks and N data points, a task gives logits or values (B, N, C), predictions
(probabilities or values), a loss per network :math:`L_b = \frac{1}{N} \sum_n \ell(f_{\theta_b}(x_n), y_n)`, and the
scores of the averaged prediction :math:`\bar f(x_n) = \frac{1}{B} \sum_b f_{\theta_b}(x_n)` (Bayesian model averaging).
Networks and data points are streamed so that activations stay within a memory limit; means weigh every data point
alike, whatever the batches.

*Batch norm.*  Running statistics are no part of :math:`\theta`.  Wherever a task judges weights (B, D) it first
recomputes them, for each network, on the same train inputs (:meth:`BaseTask.with_statistics`); validation and test
inputs never enter.  An extended vector (B, D + D_b) is judged with the statistics it holds.

A task of your own subclasses :class:`~wsflow.tasks.ClassificationTask` or :class:`~wsflow.tasks.RegressionTask` and
gives two things: ``network``, the description of the base network, and ``load``, the data.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsflow.description import build, describe
from wsflow.weightspace import Objective, WeightSpace, batch_statistics
from wsflow.weightspace.randomness import common, draw_rows
from wsflow.weightspace.transfer import send

SPLITS = ("train", "val", "test")
"""The names of the splits of a task's data."""


class BaseTask(ABC):
    """Data splits, base network and loss.

    Init arguments are kept as attributes of the same name, so that a zoo's manifest can name the task and rebuild it.

    Attributes:
        memory: Bytes that the activations of a streamed forward pass may take.
        statistics_points: How many train inputs, the first ones, running statistics of batch norm are recomputed on.
        local: Init arguments that say where data lies on this machine and not what the task is; descriptions leave
            them out.
        has_data: Whether there is data to train on; without it, networks are drawn.
        terms: Whose the data are and under what licence, for model cards; empty where that is not known.
    """

    memory: int = 256 * 2**20
    statistics_points: int = 1000
    local: ClassVar[tuple[str, ...]] = ()
    has_data: bool = True
    terms: ClassVar[str] = ""

    @property
    @abstractmethod
    def network(self) -> Mapping[str, Any]:
        """The base network: ``{"class_path", "init_args", "output_activation", "input_shape"}``, plain data.

        The class path names a function or class that returns the network and that can be imported.  The shape of an
        input, without the batch axis, can be left out where the first layer is linear.
        """

    @abstractmethod
    def load(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Inputs (N, ...) and targets (N, ...) of ``train``, ``val`` and ``test``; called once."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Probabilities or values (B, N, C) of logits (B, N, C)."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of every data point, (B, N).

        Args:
            logits: (B, N, C).
            targets: (N, ...) shared by all networks, or (B, N, ...).
        """

    @abstractmethod
    def scores(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Further scores of every data point, each (B, N); the arguments are those of :meth:`losses`."""

    @abstractmethod
    def ensemble(self, theta: Tensor, split: str) -> dict[str, float]:
        """Scores of the prediction averaged over the B networks ``theta`` (B, D)."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n networks (n, D) from p1, where the task states that law.

        Raises:
            ValueError: for a task whose networks are trained on data.
        """
        raise ValueError(f"task {self.name} has no law of networks to draw from; its networks are trained")

    def mean_network(self) -> Tensor | None:
        """The mean (D,) of the law that :meth:`draw` draws from; None where the task states no such law."""
        return None

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> BaseTask:
        """The task that :attr:`description` describes.

        Raises:
            ValueError: where the class cannot be imported, is no task, or refuses its arguments.
        """
        task = build(description)
        if not isinstance(task, BaseTask):
            raise ValueError(f"{description['class_path']} is not a BaseTask")
        return task

    @property
    def description(self) -> dict[str, Any]:
        """``{"class_path", "init_args"}``, plain data that rebuilds the task."""
        return describe(self, leave_out=self.local)

    @property
    def name(self) -> str:
        """The class's name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @cached_property
    def space(self) -> WeightSpace:
        """The weight space of the base network."""
        return WeightSpace.from_description(self.network)

    def data(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs (N, ...) and targets (N, ...) of a split.

        Raises:
            ValueError: for an unknown split, a task without data, or inputs and targets of different lengths.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
        if not self.has_data:
            raise ValueError(f"task {self.name} has no data")
        return self._data[split]

    def probe(self, n: int, seed: int = 0) -> Tensor:
        """Up to n inputs to compare functions on: the first of the validation data or, without data, Gaussian ones."""
        if self.has_data:
            return self.data("val")[0][:n]
        size = next(group.size for group in self.space.groups if group.role == "input")
        return torch.randn(n, *(self.space.input_shape or (size,)), generator=torch.Generator().manual_seed(seed))

    @cached_property
    def layer_sizes(self) -> list[int]:
        """Numbers that each layer puts out for one data point and one network."""
        sizes: list[int] = []
        hooks = [
            module.register_forward_hook(lambda _m, _i, output: sizes.append(_numbers(output)))
            for module in self.space.template.modules()
            if not isinstance(module, (nn.Sequential, nn.Flatten))
        ]
        with torch.no_grad():
            self.space.template(self.probe(1).to(next(self.space.template.parameters())))
        for hook in hooks:
            hook.remove()
        return sizes

    def with_statistics(self, theta: Tensor) -> Tensor:
        """Networks with running statistics of batch norm, recomputed on the first train inputs; differentiable.

        Args:
            theta: (B, D); extended vectors, and networks without batch norm, are given back as they are.

        Returns:
            (B, D + D_b).
        """
        if theta.shape[-1] == self.space.full_dim or not self.has_data:
            return theta
        inputs = send(self.data("train")[0][: self.statistics_points], theta)
        nets = max(1, self.memory // (4 * max(self.layer_sizes) * len(inputs)))
        return torch.cat([batch_statistics(self.space, part, inputs) for part in torch.split(theta, nets)])

    def logits(self, theta: Tensor, split: str) -> Tensor:
        """Outputs of B networks on a split, (B, N, C).

        Args:
            theta: (B, D), or extended by running statistics; so it is wherever a task takes weights.
            split: ``train``, ``val`` or ``test``.
        """
        inputs, _ = self.data(split)
        inputs, theta = inputs.to(theta), self.with_statistics(theta)
        nets, points = self._chunks(len(theta), len(inputs))
        parts = torch.split(inputs, points)
        return torch.cat([torch.cat([self.space.forward(t, x) for x in parts], 1) for t in torch.split(theta, nets)])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of every network, (B,): the mean of :meth:`losses` over data points; differentiable."""
        return self.losses(logits, targets).mean(1)

    @torch.no_grad()
    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        """Scores of every network on a split, each (B,); ``loss`` is one of them.  None for a task without data.

        Args:
            theta: (B, D).
            split: ``train``, ``val`` or ``test``.
        """
        if not self.has_data:
            return {}
        means = self._means(theta, split)
        return {**means, **self.derived(theta, split, means)}

    def derived(self, theta: Tensor, split: str, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores that follow from the means over data points, each (B,); none by default."""
        return {}

    def objective(
        self, split: str = "train", batch_size: int | None = None, shared: bool = True, scale: float = 1.0
    ) -> Objective:
        """The loss on a split as a function of weights.

        Args:
            split: ``train``, ``val`` or ``test``.
            batch_size: Data points drawn with the objective's generator at each call; None for the whole split.
            shared: Whether all networks see the same data points; otherwise each draws its own, with replacement.
            scale: Multiplies the outputs before the loss is taken.

        Raises:
            ValueError: for an unknown split, a task without data or a batch larger than the split.
        """
        return TaskObjective(self, split, batch_size, shared, scale)

    @cached_property
    def _data(self) -> dict[str, tuple[Tensor, Tensor]]:
        data = dict(self.load())
        for split in SPLITS:
            if split not in data:
                raise ValueError(f"load() of task {self.name} gives no {split!r} split")
            inputs, targets = data[split]
            if len(inputs) != len(targets) or not len(inputs):
                raise ValueError(f"{split} split of task {self.name}: {len(inputs)} inputs, {len(targets)} targets")
        return data

    def _chunks(self, networks: int, points: int) -> tuple[int, int]:
        """How many networks and data points one forward pass takes."""
        limit = max(1, self.memory // (4 * max(self.layer_sizes)))
        points = max(1, min(points, limit))
        return max(1, min(networks, limit // points)), points

    def _stream(self, theta: Tensor, split: str) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Networks, data points, their logits and targets, chunk by chunk."""
        inputs, targets = self.data(split)
        inputs, targets = inputs.to(theta), targets.to(theta.device)
        theta = self.with_statistics(theta)
        nets, points = self._chunks(len(theta), len(inputs))
        for i in range(0, len(theta), nets):
            for j in range(0, len(inputs), points):
                rows, columns = slice(i, i + nets), slice(j, j + points)
                yield rows, columns, self.space.forward(theta[rows], inputs[columns]), targets[columns]

    def _means(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for rows, _, logits, targets in self._stream(theta, split):
            for name, value in {"loss": self.losses(logits, targets), **self.scores(logits, targets)}.items():
                sums.setdefault(name, theta.new_zeros(len(theta)))[rows] += value.sum(1).to(theta.dtype)
        count = len(self.data(split)[0])
        return {name: total / count for name, total in sums.items()}


class TaskObjective(Objective):
    """A task's loss on a split; made by :meth:`BaseTask.objective`.

    The split moves to the device of the weights once and stays there.
    """

    def __init__(
        self, task: BaseTask, split: str, batch_size: int | None, shared: bool = True, scale: float = 1.0
    ) -> None:
        self.task, self.split, self.batch_size, self.shared, self.scale = task, split, batch_size, shared, scale
        count = len(task.data(split)[0])
        if batch_size is not None and not 1 <= batch_size <= count:
            raise ValueError(
                f"batch_size {batch_size} does not fit the {count} data points of split {split!r}; null takes them all"
            )
        if shared and batch_size == count:
            self.batch_size = None  # nothing to draw
        self._placed = task.data(split)

    @property
    def inputs(self) -> Tensor:
        """All inputs (N, ...) of the split, for aligners that look at activations."""
        return self.task.data(self.split)[0]

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Loss of each network, (B,)."""
        inputs, targets = self._at(theta.device)
        per_network = self.batch_size is not None and not self.shared
        if self.batch_size is not None:
            index = send(self._draw(len(theta), len(inputs), self.batch_size, generator), theta.device)
            inputs, targets = inputs[index], targets[index]
        logits = self.task.space.forward(self.task.with_statistics(theta), inputs.to(theta), per_network)
        return self.task.loss(logits if self.scale == 1 else self.scale * logits, targets)

    def _draw(self, networks: int, points: int, size: int, generator: torch.Generator | None) -> Tensor:
        """Indices of data points, (size,) or, where each network has its own, (B, size)."""
        if self.shared:
            return torch.randperm(points, generator=common(generator))[:size]
        return draw_rows(lambda n, source: torch.randint(points, (n, size), generator=source), networks, generator)

    def _at(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._placed[0].device != device:
            inputs, targets = self._placed
            self._placed = inputs.to(device), targets.to(device)
        return self._placed


def _numbers(output: object) -> int:
    """Numbers in what a layer puts out: a tensor, or several, as of attention."""
    if isinstance(output, Tensor):
        return output.numel()
    return sum(map(_numbers, output)) if isinstance(output, tuple | list) else 0
