r"""What a report measures of generated networks: all that an evaluation does not keep.

- *Reliability* and *scores* of the averaged prediction, and *error overlap*: :mod:`wsflow.bayes`.
- *Distance to the nearest training network*, rms difference of predictions (:mod:`wsflow.metrics.function_space`), of
  generated and of held-out networks.  At most :data:`SEARCHED` training networks are searched, for both alike.
- *Paths*: states :math:`x_{t_0}, \ldots, x_{t_K}` of a few samples in the flow's own coordinates, on the first two
  principal components of training networks and prior draws taken together, so that the way from one to the other shows.

Held-out networks go through the canonical form of the flow's geometry, as generated ones do, but for latent spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from wsflow.api import Flow
from wsflow.bayes import Reliability, predictive, reliability, scores
from wsflow.description import build
from wsflow.fields import follow
from wsflow.flow import Euler, Solver, StartsPrior, integrate, sample_prior
from wsflow.metrics.function_space import nearest, predict
from wsflow.report.runs import Case
from wsflow.tasks import BaseTask, ClassificationTask
from wsflow.zoo import Zoo, ZooDataModule
from wsflow.zoo.write import MANIFEST

SEARCHED = 1000
"""Training networks among which the nearest is sought."""

PATHS, CLOUD = 24, 300
"""Samples whose paths are drawn, and networks of each cloud beside them."""

Numbers = NDArray[np.float64]


class MissingError(ValueError):
    """What a page says instead of a figure: why there is none."""


@dataclass(frozen=True)
class Networks:
    """Networks of one case, and the task that they are of.

    Args:
        task: The base task.
        split: Whose data they are judged on.
        generated: (n, D).
        heldout: (h, D), in the flow's canonical form.
        train: (m, D), as the flow saw them.
    """

    task: BaseTask
    split: str
    generated: Tensor
    heldout: Tensor
    train: Tensor


@dataclass
class Library:
    """Data modules that have been opened, so that the runs of a report share what they read."""

    opened: dict[str, ZooDataModule] = field(default_factory=dict)

    def data(self, description: Mapping[str, Any] | None) -> ZooDataModule:
        """The data module of a flow's training.

        Raises:
            Missing: where it is not known, or its zoo is not there.
        """
        if not description:
            raise MissingError("the networks do not say which zoo their flow was trained on")
        key = json.dumps(description, sort_keys=True)
        if key not in self.opened:
            data = build(description)
            if not isinstance(data, ZooDataModule):
                raise MissingError("the flow was trained on data of another data module")
            if not Path(data.path, MANIFEST).exists():
                raise MissingError(f"the zoo {data.path} is not there")
            self.opened[key] = data
        return self.opened[key]


def read_networks(case: Case, flow: Flow, library: Library, most: int) -> Networks:
    """The networks of a case.

    Args:
        case: The evaluation.
        flow: That generated them.
        library: Of data modules.
        most: Generated and held-out networks that are looked at, the first ones.

    Raises:
        MissingError: where the networks or the zoo are not there.
    """
    if case.samples is None:
        raise MissingError("the generated networks are not there any more")
    zoo = Zoo.open(case.samples)
    data = library.data(case.manifest.get("data"))
    generated = zoo.rows(zoo.final().sort().values[:most])
    heldout, train = (data.networks(split).x1 for split in (case.split, "train"))
    return Networks(data.task, case.split, generated, _formed(flow, heldout[:most]), train)


def ensemble_scores(networks: Networks) -> dict[str, dict[str, float]]:
    """Scores of averaged predictions of equally many generated and held-out networks, by ``generated``, ``heldout``."""
    size = min(len(networks.generated), len(networks.heldout))
    found = {"generated": networks.generated[:size], "heldout": networks.heldout[:size]}
    values = {name: scores(predictive(networks.task, theta, networks.split)) for name, theta in found.items()}
    return {name: {key: float(value) for key, value in each.items()} for name, each in values.items()}


def reliabilities(networks: Networks) -> dict[str, Reliability]:
    """Reliability of the averages of generated and of held-out networks, and of single generated networks, by name.

    Raises:
        MissingError: for anything but classification.
    """
    _needs_classes(networks.task, "a reliability diagram")
    generated, heldout = networks.generated, networks.heldout
    size = min(len(generated), len(heldout))
    found = {
        f"average of {size} generated": predictive(networks.task, generated[:size], networks.split),
        f"average of {size} held-out": predictive(networks.task, heldout[:size], networks.split),
        "single generated": predictive(networks.task, generated[:1], networks.split),
    }
    return {name: reliability(one) for name, one in found.items()}


def nearest_distances(networks: Networks) -> dict[str, Numbers]:
    """Sorted distances to the nearest training network, of generated and of held-out networks."""
    train = predict(networks.task, networks.train[:SEARCHED])
    found = {"generated": networks.generated, "held-out": networks.heldout}
    distances = {name: nearest(predict(networks.task, theta), train).distance[:, 0] for name, theta in found.items()}
    return {name: np.sort(value.numpy()) for name, value in distances.items()}


@dataclass(frozen=True)
class Paths:
    """Paths of samples, and clouds, on two principal components.

    Args:
        times: (K + 1,), from 0 to 1.
        states: (K + 1, n, 2).
        starts: (p, 2), draws of the prior.
        train: (m, 2), training networks.
        share: Of the variance, that each component holds.
    """

    times: Numbers
    states: Numbers
    starts: Numbers
    train: Numbers
    share: Numbers


@torch.no_grad()
def paths(case: Case, flow: Flow, networks: Networks) -> Paths:
    """Solve a few samples again, with the steps and the solver of the case, without noise or guidance.

    Raises:
        MissingError: for a flow that starts from given initial weights or takes a condition.
    """
    module, sampling = flow.module, case.sampling
    if isinstance(module.prior, StartsPrior):
        raise MissingError("the flow starts from given initial weights, which its checkpoint does not hold")
    solver = build(sampling["solver"]) if sampling.get("solver") else Euler()
    steps, power = int(sampling.get("steps", 16)), float(sampling.get("power", 1.0))
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    starts = sample_prior(module.prior, module.geometry, int(sampling.get("seed", 0)), range(CLOUD))
    states: list[Tensor] = []

    def keep(x: Tensor, t: float) -> tuple[Tensor, float]:
        states.append(x)
        return x, t

    velocity = follow(module.field, module.parametrization, module.geometry)
    known = solver if isinstance(solver, Solver) else Euler()
    end = module.parametrization.singular_end
    last, _ = integrate(velocity, module.geometry, known, starts[:PATHS], times, None, end, keep)
    states.append(module.geometry.finish(last))
    train = module.geometry.encode(networks.train[:CLOUD])
    return _projected(torch.stack(states), starts, train, times)


def _projected(states: Tensor, starts: Tensor, train: Tensor, times: Tensor) -> Paths:
    both = torch.cat([starts, train]).double().numpy()
    components = PCA(2, svd_solver="randomized", random_state=0).fit(both)
    flat, first, second = (components.transform(x.double().numpy()) for x in (states.flatten(0, 1), starts, train))
    share = np.asarray(components.explained_variance_ratio_)
    shown = np.linspace(0, 1, len(states)) if len(states) != len(times) else times.numpy()
    return Paths(shown, flat.reshape(*states.shape[:2], 2), first, second, share)


def _formed(flow: Flow, theta: Tensor) -> Tensor:
    geometry = flow.module.geometry
    with torch.no_grad():
        return theta if geometry.lossy else geometry.decode(geometry.encode(theta))


def _needs_classes(task: BaseTask, what: str) -> None:
    if not isinstance(task, ClassificationTask):
        raise MissingError(f"{what} needs a classification task")
