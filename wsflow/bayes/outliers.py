r"""Inputs that a base network was never trained for, and whether uncertainty tells them from its own.

The score is the area under the ROC curve of a measure of uncertainty, inputs of the task against outliers: the
probability that an outlier has the larger one, ties half (torchmetrics).  1 is perfect, 1/2 is chance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from wsflow.bayes.predictive import ClassPredictive, Predictive, ValuePredictive
from wsflow.tasks import BaseTask


class OutlierSource(ABC):
    """Where outliers come from."""

    @abstractmethod
    def inputs(self, task: BaseTask, split: str, generator: torch.Generator) -> Tensor:
        """Outliers (M, ...), of the shape of the task's inputs, as its networks would be given them.

        Args:
            task: The task whose networks are asked.
            split: ``val`` or ``test``; data of another split, but for train statistics, are not touched.
            generator: Of what is drawn.
        """

    @property
    def name(self) -> str:
        """As tables show it."""
        return type(self).__name__


class Noise(OutlierSource):
    """Gaussian noise with the mean and standard deviation that each feature has on train data.

    As many as the split has data points.
    """

    def inputs(self, task: BaseTask, split: str, generator: torch.Generator) -> Tensor:
        """(N, ...)."""
        train = task.data("train")[0]
        noise = torch.randn(task.data(split)[0].shape, generator=generator)
        return (train.mean(0) + train.std(0, correction=0) * noise).to(train)


class ShuffledFeatures(OutlierSource):
    """The split's own inputs, each feature shuffled on its own: its law stays, what joins it to others is lost."""

    def inputs(self, task: BaseTask, split: str, generator: torch.Generator) -> Tensor:
        """(N, ...)."""
        own = task.data(split)[0]
        flat = own.flatten(1)
        order = torch.rand(flat.shape, generator=generator).argsort(0)
        return flat.gather(0, order).view_as(own)


class OtherTask(OutlierSource):
    """The same split of another task's data, such as Fashion-MNIST for networks of MNIST.

    A network sees a foreign image through its own task's preprocessing.  Tasks scale their data each by its own
    statistics; the other's inputs are therefore brought from their range on train data to the range that the task's
    inputs have.  For images of 8 bits that use all of these, that is the task's own preprocessing exactly.

    Args:
        task: The other task.
        same_range: Whether the range is matched; otherwise inputs come as the other task scales them.
    """

    def __init__(self, task: BaseTask, same_range: bool = True) -> None:
        self.task, self.same_range = task, same_range

    @property
    def name(self) -> str:
        """The other task's name."""
        return type(self.task).__name__

    def inputs(self, task: BaseTask, split: str, generator: torch.Generator) -> Tensor:
        """(M, ...).

        Raises:
            ValueError: where inputs of the two tasks have different shapes.
        """
        found, own = self.task.data(split)[0], task.data("train")[0]
        if found.shape[1:] != own.shape[1:]:
            raise ValueError(
                f"inputs of {self.task.name} have shape {tuple(found.shape[1:])}, those of {task.name} "
                f"{tuple(own.shape[1:])}: choose a task with inputs of the same shape"
            )
        if not self.same_range:
            return found
        theirs = self.task.data("train")[0]
        low, high = theirs.min(), theirs.max()
        return own.min() + (found - low) * ((own.max() - own.min()) / (high - low))


def auroc(inside: Predictive, outside: Predictive, uncertainty: Callable[[Predictive], Tensor] | None = None) -> Tensor:
    """How well uncertainty tells outliers from the task's inputs, (S,).

    Args:
        inside: Predictions of S ensembles for the task's inputs.
        outside: Those of the same ensembles for outliers.
        uncertainty: From predictions to (S, N), higher for outliers; entropy for classifiers, the variance of members'
            values for regressions by default.

    Raises:
        ValueError: where the two are of different numbers of ensembles.
    """
    measure = default_uncertainty if uncertainty is None else uncertainty
    own, foreign = measure(inside), measure(outside)
    if len(own) != len(foreign):
        raise ValueError(f"{len(own)} ensembles inside, {len(foreign)} outside: predict both with the same weights")
    labels = torch.cat([torch.zeros(own.shape[1]), torch.ones(foreign.shape[1])]).long()
    return torch.stack([binary_auroc(_ranks(row), labels) for row in torch.cat([own, foreign], 1)]).double()


def default_uncertainty(predictive: Predictive) -> Tensor:
    """Entropy of the averaged prediction, or the epistemic variance of a regression, (S, N)."""
    return predictive.entropy if isinstance(predictive, ClassPredictive) else epistemic(predictive)


def epistemic(predictive: Predictive) -> Tensor:
    """Mutual information, or the epistemic variance of a regression, (S, N)."""
    if isinstance(predictive, ValuePredictive):
        return predictive.epistemic.mean(-1)
    return predictive.mutual_information


def _ranks(values: Tensor) -> Tensor:
    """Dense ranks in [0, 1]: torchmetrics puts other values through a sigmoid, which makes ties of close ones."""
    rank: Tensor = torch.unique(values, return_inverse=True)[1].double()
    return rank.div(rank.max().clamp(min=1))
