r"""Approximations of the posterior over the weights of a base network, behind one interface.

With data D_train, a likelihood and a prior p0 over weights, the posterior predictive is

.. math:: p(y | x) = \int p(y | x, \theta)\, p(\theta | D_{train})\, d\theta
    \approx \frac{1}{n} \sum_{i=1}^{n} p(y | x, \theta_i)

(thesis, equation 2.1).  A method gives the n networks on the right, as weights or as functions of inputs, with what
they cost.  Networks from different methods are judged by the same code.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from torch import Tensor

from wsflow.tasks.base import BaseTask


@dataclass(frozen=True)
class Draws:
    """n networks from a posterior, and their cost.

    Attributes:
        theta: (n, D) weights; None where networks are given by their outputs alone.
        predict: Inputs (N, ...) to predictions (n, N, C), class probabilities or values; None where the predictions
            are those of the base network with weights ``theta``, otherwise what counts.
        seconds: Processor time of the whole fit, which other programs do not lengthen; all threads added up.
        gradient_evaluations: Gradients of the loss of one network on the whole train split, summed over networks; a
            mini-batch counts as its part of the split.
        notes: Further numbers by name, such as what was paid for once beforehand, or how well chains mix.

    Raises:
        ValueError: where there are neither weights nor outputs, or weights that are not finite.
    """

    theta: Tensor | None
    predict: Callable[[Tensor], Tensor] | None = None
    seconds: float = 0.0
    gradient_evaluations: float = 0.0
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.theta is None and self.predict is None:
            raise ValueError("draws need weights or outputs; both are None")
        if self.theta is not None and not (finite := self.theta.isfinite().all(1)).all():
            raise ValueError(
                f"{int((~finite).sum())} of {len(finite)} networks have weights that are not finite: the fit diverged; "
                "lower the learning rate of the method or of its recipe"
            )


class PosteriorMethod(ABC):
    """A way to draw networks.

    Variants are named in YAML by ``class_path``; init arguments are kept as attributes of the same name.

    Attributes:
        one_by_one: Whether every network is made on its own, so that cost grows with their number.
    """

    one_by_one: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    def reads(self, seed: int) -> list[Path]:
        """Files, beside the task's, that a fit with this seed depends on; none by default."""
        return []

    @abstractmethod
    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Fit to the train split of a task and draw n networks.

        Args:
            task: Data, network and loss; of its splits, only ``train`` and ``val`` are looked at.
            n: How many networks, at least 1.
            seed: Of everything random; the same seed gives the same networks.
        """


class MissingExtraError(ValueError):
    """A package of the extra ``baselines`` that is not installed."""


def extra(package: str) -> ModuleType:
    """Import a module of a package of the extra ``baselines``.

    Raises:
        MissingExtraError: where it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        name = {"laplace": "laplace-torch"}.get(error.name, error.name)
        raise MissingExtraError(f"this method needs {name}: pip install 'wsflow[baselines]'") from None
