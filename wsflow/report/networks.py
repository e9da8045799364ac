r"""What a report measures of generated networks: all that an evaluation does not keep.

- *Reliability* and *scores* of the averaged prediction, and *error overlap*: :mod:`wsflow.bayes`.
- *Distance to the nearest training network*, rms difference of predictions (:mod:`wsflow.metrics.function_space`), of
  generated and of held-out networks.  At most :data:`SEARCHED` training networks are searched, for both alike.
- *Paths*: states :math:`x_{t_0}, \ldots, x_{t_K}` of a few samples in the flow's own coordinates, on the two directions
  in which others move most, the first singular vectors of their :math:`x_1 - x_0`.  Components of the states themselves
  would show the spread of the prior, which is wider in most directions than any way from it to trained networks.

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
from torch import Tensor

from wsflow.alignment import WeightMatching
from wsflow.alignment.barrier import Barriers, barriers
from wsflow.api import Flow
from wsflow.bayes import Reliability, members, predictive, reliability, scores
from wsflow.bayes.disagreement import error_overlap
from wsflow.description import build, named
from wsflow.fields import Request
from wsflow.flow import Sampler, StartsPrior, UniformGrid, integrate, sample_prior
from wsflow.geometry import Euclidean, Geometry
from wsflow.metrics.function_space import nearest, predict
from wsflow.report.runs import Case
from wsflow.tasks import BaseTask, ClassificationTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo import Zoo, ZooDataModule
from wsflow.zoo.write import MANIFEST

SEARCHED = 1000
"""Training networks among which the nearest is sought."""

PATHS, MOVED, CLOUD = 24, 100, 300
"""Samples whose paths are drawn, others that say where to look, and networks of each cloud beside them."""

PAIRED = 20
"""Networks of each kind whose pairs are looked at."""

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
            MissingError: where it is not known, or its zoo is not there.
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


def read_networks(case: Case, library: Library, most: int) -> Networks:
    """The networks of a case.

    Args:
        case: The evaluation.
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
    geometry = _geometry(case.manifest.get("geometry"), zoo.space)
    return Networks(data.task, case.split, generated, _formed(geometry, heldout[:most]), train)


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


def overlaps(networks: Networks) -> dict[str, Numbers]:
    """Error overlaps of pairs of networks, by kind of pair: intersection over union of what both get wrong.

    Raises:
        MissingError: for anything but classification.
    """
    _needs_classes(networks.task, "an overlap of errors")
    generated, heldout = networks.generated[:PAIRED], networks.heldout[:PAIRED]
    inputs, targets = networks.task.data(networks.split)
    group = members(networks.task, torch.cat([generated, heldout]))
    wrong = [(answers.argmax(-1) != targets[columns]).cpu() for columns, answers in group.stream(inputs)]
    matrix, first = error_overlap(torch.cat(wrong, 1)), len(generated)
    return {
        "two generated": _above(matrix[:first, :first]),
        "two held-out": _above(matrix[first:, first:]),
        "one of each": matrix[:first, first:].flatten().numpy(),
    }


def midpoint_barriers(networks: Networks) -> dict[str, Barriers]:
    """Barriers between trained networks and between generated ones, as they are and matched to the first of them.

    Raises:
        MissingError: for a task without data.
    """
    found, task = {}, networks.task
    if not task.has_data:
        raise MissingError("barriers need the data of a task")

    def evaluate(theta: Tensor) -> Mapping[str, Tensor]:
        return task.evaluate(theta, networks.split)

    for name, theta in (("held-out", networks.heldout[:PAIRED]), ("generated", networks.generated[:PAIRED])):
        perms = WeightMatching().align(task.space, theta, theta[0])
        found[f"{name}, as they are"] = barriers(evaluate, theta)
        found[f"{name}, matched to one"] = barriers(evaluate, task.space.permute(theta, perms))
    return found


@dataclass(frozen=True)
class Paths:
    """Paths of samples, and clouds, on two components.

    Args:
        states: (K + 1, n, 2).
        starts: (p, 2), draws of the prior.
        train: (m, 2), training networks.
        share: Of the squared distance that samples move, in each component.
    """

    states: Numbers
    starts: Numbers
    train: Numbers
    share: Numbers


@torch.no_grad()
def paths(case: Case, flow: Flow, networks: Networks) -> Paths:
    """Solve a few samples again, with the steps and the solver of the case, without noise or guidance.

    A solver that chooses its steps is shown at equal times.

    Raises:
        MissingError: for a flow that starts from given initial weights.
    """
    module, sampling = flow.module, case.sampling
    if isinstance(module.prior, StartsPrior):
        raise MissingError("the flow starts from given initial weights, which its checkpoint does not hold")
    words, weight = sampling.get("condition") or [], float(sampling.get("condition_weight", 1.0))
    request = Request.parse(words, weight) if words else None
    solver, grid = (build(sampling[name]) if sampling.get(name) else None for name in ("solver", "grid"))
    sampler = Sampler(solver, int(sampling.get("steps", 16)), power=float(sampling.get("power", 1.0)), grid=grid)
    times = UniformGrid().times(sampler.steps) if sampler.solver.adaptive else sampler.times
    seed = int(sampling.get("seed", 0))
    starts = sample_prior(module.path.start(module.prior), module.geometry, seed, range(CLOUD))
    states: list[Tensor] = []

    def keep(x: Tensor, t: float) -> tuple[Tensor, float]:
        states.append(x)
        return x, t

    velocity = module.generation(seed, sampler, request=request).velocity(range(PATHS + MOVED))
    end = module.parametrization.singular_end
    last, _ = integrate(velocity, module.geometry, sampler.solver, starts[: PATHS + MOVED], times, None, end, keep)
    states.append(module.geometry.finish(last))
    train = module.geometry.encode(networks.train[:CLOUD])
    return _projected(torch.stack(states).double(), starts.double(), train.double())


def _projected(states: Tensor, starts: Tensor, train: Tensor) -> Paths:
    """The first samples' states on the directions in which the others move."""
    moved = states[-1, PATHS:] - states[0, PATHS:]
    size, axes = torch.linalg.svd(moved, full_matrices=False)[1:]
    drawn, first, second = ((x @ axes[:2].T).numpy() for x in (states[:, :PATHS], starts, train))
    return Paths(drawn, first, second, (size[:2].square() / size.square().sum()).numpy())


def _above(matrix: Tensor) -> Numbers:
    """The entries above the diagonal."""
    return np.asarray(matrix[torch.ones_like(matrix).triu(1).bool()])


def _geometry(description: Mapping[str, Any] | None, space: WeightSpace) -> Geometry:
    """The geometry that generated networks name, Euclidean where they name none."""
    if description is None:
        return Euclidean(space)
    geometry = named(description["class_path"])(space, **(description.get("init_args") or {}))
    if not isinstance(geometry, Geometry):
        raise MissingError(f"{description['class_path']} is no geometry")
    return geometry


@torch.no_grad()
def _formed(geometry: Geometry, theta: Tensor) -> Tensor:
    return theta if geometry.lossy else geometry.decode(geometry.encode(theta))


def _needs_classes(task: BaseTask, what: str) -> None:
    if not isinstance(task, ClassificationTask):
        raise MissingError(f"{what} needs a classification task")
