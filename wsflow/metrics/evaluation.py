"""The evaluation of generated networks, beside real ones and beside baselines.

An :class:`Evaluation` is prepared once with training and held-out networks and then asked about any number of sets of
generated networks.  Scores are of the data of ``split``; distances between functions are measured on validation inputs
always.  Every network, whether real, generated or a baseline's, is first brought through
``geometry.decode(geometry.encode(theta))``, so that a geometry that changes losses changes them on both sides of a
comparison.  A latent space is the exception: what it loses is its flow's own fault, and networks stay as they are.
There, independent Gaussian coordinates (``baselines.latent_gaussian``) stand beside the samples whatever else does.

A report is flat, so that it can be logged and stored as it is::

    samples.accuracy, samples.accuracy.std, samples.loss, samples.loss.std, samples.ensemble_nll, ...,
    samples.ensemble_size, samples.nn_ratio.function, samples.nn_ratio.weight, samples.z_u,
    samples.dispersion, samples.dispersion.<tensor>,
    heldout.<any key of samples but dispersions of tensors>, where ratios and dispersion are 1 and z_u is 0,
    baselines.<name>.<any key of samples>, baselines.<name>.noise,
    baselines.<name>.function_matched.<any key of the baseline>, timing.evaluation

:meth:`Evaluation.beside` adds what is asked for once, at the end::

    heldout.raw.accuracy, heldout.raw.loss, ...: of held-out networks as they were trained, in no canonical form,
    heldout.projected.accuracy, ...: of held-out networks brought through a latent space, where there is one,
    best_single.accuracy, best_single.loss: of the training network with the least loss on validation data,
    samples.ensemble50_accuracy, samples.ensemble50_nll, heldout.ensemble50_...: of the first 50 networks

Ensembles are of one size, the smaller of the numbers of samples and held-out networks (or of all there are of a
baseline that makes fewer).  A baseline gets noise (:mod:`wsflow.metrics.matching`) until neither its ratio of functions
nor that of weights is more than 2 % below the samples'.  Noise until it is so of functions alone is less, and leaves
better networks: where the two differ, the latter are reported as ``function_matched``.

A task with no data is judged by its weights alone: by their moments and, unless it states their law, by
``nn_ratio.weight`` and ``dispersion`` as above and by ``z_u`` of the distances between weights.  Training networks are
matched one by one to each network that they are near to once both are matched to the reference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wsflow.alignment import Aligner
from wsflow.geometry import Geometry, PrincipalComponents
from wsflow.metrics.baselines import Baseline, LatentGaussianBaseline, Material, default_baselines
from wsflow.metrics.diversity import dispersion, moments
from wsflow.metrics.function_space import Nearest, nearest, predict
from wsflow.metrics.matching import Noisy, match_noise
from wsflow.metrics.novelty import nn_ratio, z_u
from wsflow.metrics.quality import Quality, best_single, ensemble, quality
from wsflow.metrics.weight_space import CanonicalWeights, nearest_distance
from wsflow.tasks import BaseTask

ENSEMBLE = 50
"""Networks in the ensembles of :meth:`Evaluation.beside`."""


@dataclass(frozen=True)
class Family:
    """Networks of one origin and what was measured of them.

    Args:
        theta: (n, D).
        x: (n, dim), canonical coordinates, matched to the reference.
        function_distance: (n,), to the nearest training network as a function.
        weight_distance: (n,), to the nearest of the functionally nearest training networks, matched.
        quality: Scores on the data.
    """

    theta: Tensor
    x: Tensor
    function_distance: Tensor
    weight_distance: Tensor
    quality: Quality


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    Args:
        values: All numbers by flat key.
        families: ``samples``, ``heldout`` and every baseline by name, and as ``<name>.function_matched`` where that is
            reported; empty for a task with no data.
        train: (m, dim), canonical coordinates of the training networks, matched to the reference; None likewise.
    """

    values: dict[str, float]
    families: dict[str, Family]
    train: Tensor | None = None


class Evaluation:
    """Compares generated networks with training and held-out networks.

    Args:
        task: The base task.
        train: (m, D), the training networks, one final snapshot of each run.
        heldout: (h, D), runs that no flow was trained on, one final snapshot each.
        split: Whose data scores are of: ``val`` with validation runs, ``test`` with test runs.
        geometry: Of the flow; every network goes through its canonical form.  None, or a latent space, leaves networks
            as they are.
        starts: (m, D), the start of each training run, its neurons in the order of ``train``'s; needed by the
            displacement baseline.
        fresh: (r, D), starts of no training run; needed by the displacement and equal-cost baselines.
        baselines: None for :func:`~wsflow.metrics.baselines.default_baselines`; an empty list for none.
        aligner: Matches neurons; weight matching by default.
        candidates: Functionally nearest training networks among which the nearest in weights is sought.
        count: Networks of either kind that Z_U is computed of.
        seed: Of the baselines.

    Raises:
        ValueError: for weights that are not of the task's space or not finite, and fewer than two networks.
    """

    def __init__(
        self,
        task: BaseTask,
        train: Tensor,
        heldout: Tensor,
        split: str = "val",
        *,
        geometry: Geometry | None = None,
        starts: Tensor | None = None,
        fresh: Tensor | None = None,
        baselines: Sequence[Baseline] | None = None,
        aligner: Aligner | None = None,
        candidates: int = 10,
        count: int = 200,
        seed: int = 0,
    ) -> None:
        self.task, self.split, self.geometry = task, split, geometry
        self.candidates, self.count, self.seed = candidates, count, seed
        self.form = CanonicalWeights(task.space, aligner)
        self.train = self._like("training", train)
        self._heldout, self._raw = self._like("held-out", heldout), heldout.detach()
        for given in (starts, fresh):
            if given is not None:
                task.space.check(given)
        if starts is not None and starts.shape != train.shape:
            raise ValueError(f"{len(starts)} starts do not fit {len(train)} training networks: give one for each")
        self._trained, self._starts, self._fresh, self._baselines = train.detach(), starts, fresh, baselines
        self._latent = geometry if geometry is not None and geometry.lossy else None
        if isinstance(geometry, PrincipalComponents) and not geometry.fitted:
            geometry.fit(train)  # a flow's description names it without its numbers, and these networks give them

    def __call__(self, samples: Tensor) -> Report:
        """Evaluate generated networks (n, D).

        Raises:
            ValueError: for weights that are not of the task's space or not finite, and fewer than two networks.
        """
        begin = time.perf_counter()
        theta = self._like("generated", samples)
        report = self._with_data(theta) if self.task.has_data else self._without_data(theta)
        report.values["timing.evaluation"] = time.perf_counter() - begin
        return report

    @cached_property
    def material(self) -> Material:
        """What baselines are made of."""
        x = self.form(self.train)
        return Material(self.form, self._trained, self.form.match(x, self.reference), self._starts, self._fresh)

    @cached_property
    def reference(self) -> Tensor:
        """(dim,), the canonical form of the first training network, to which all others are matched."""
        return self.form(self.train[:1])[0]

    @cached_property
    def heldout(self) -> Family:
        """The held-out networks."""
        return self.measure(self._heldout)

    def measure(self, theta: Tensor) -> Family:
        """Measure networks (n, D) against the training networks."""
        x = self._matched(theta)
        function, weight = self._distances(theta, x)
        return Family(theta, x, function, weight, quality(self.task, theta, self.split))

    def summary(self, family: Family, size: int) -> dict[str, float]:
        """Every number that is reported of a family, against the held-out networks.

        Args:
            family: What was measured.
            size: Networks in the ensemble.
        """
        other = self.heldout
        values = family.quality.summary() | ensemble(self.task, family.theta, self.split, size)
        values["nn_ratio.function"] = nn_ratio(family.function_distance, other.function_distance)
        values["nn_ratio.weight"] = nn_ratio(family.weight_distance, other.weight_distance)
        values["z_u"] = z_u(family.function_distance, other.function_distance, self.count)
        for name, value in dispersion(self.form.tensors(family.x), self.form.tensors(other.x)).items():
            values[f"dispersion.{name}".rstrip(".")] = value
        return values

    def beside(self, report: Report) -> dict[str, float]:
        """Scores to hold a report against: the best training network, held-out networks as trained, ensembles of 50."""
        if not self.task.has_data:
            return {}
        values = _keyed("heldout.raw", quality(self.task, self._raw, self.split).summary())
        if self._latent is not None:
            projected = self._latent.decode(self._latent.encode(self._raw))
            values |= _keyed("heldout.projected", quality(self.task, projected, self.split).summary())
        values |= _keyed("best_single", best_single(self.task, self.train, self.split))
        for name in ("samples", "heldout"):
            theta = report.families[name].theta
            if len(theta) >= ENSEMBLE:
                scores = ensemble(self.task, theta, self.split, ENSEMBLE)
                scores = {key.replace("ensemble", f"ensemble{ENSEMBLE}"): value for key, value in scores.items()}
                values |= _keyed(name, {key: value for key, value in scores.items() if not key.endswith("_size")})
        return values

    def _with_data(self, theta: Tensor) -> Report:
        families, noises = {"samples": self.measure(theta), "heldout": self.heldout}, dict[str, float]()
        baselines = default_baselines(self.material) if self._baselines is None else self._baselines
        if self._latent is not None:
            baselines = [LatentGaussianBaseline(self._latent), *baselines]
        for baseline in baselines:
            for name, (family, noise) in self._baseline(baseline, families["samples"]).items():
                families[name], noises[name] = family, noise
        size = min(len(theta), len(self._heldout))
        values = dict[str, float]()
        for name, family in families.items():
            added = {"noise": noises[name]} if name in noises else {}
            prefix = f"baselines.{name}" if name in noises else name
            values |= _keyed(prefix, self.summary(family, size) | added)
        values = {key: value for key, value in values.items() if not key.startswith("heldout.dispersion.")}
        return Report(values, families, self.material.x)

    def _without_data(self, theta: Tensor) -> Report:
        stated = self.task.mean_network()
        mean = self._heldout.double().mean(dim=0) if stated is None else stated
        values = _keyed("samples", moments(theta, mean)) | _keyed("heldout", moments(self._heldout, mean))
        return Report(values if stated is not None else values | self._of_weights(theta), {})

    def _of_weights(self, theta: Tensor) -> dict[str, float]:
        """How new and how diverse networks are in weights, where functions are not known."""
        found = {"samples": self._matched(theta), "heldout": self._matched(self._heldout)}
        train, other, values = self.material.x, found["heldout"], dict[str, float]()
        near = {
            name: nearest_distance(self.form, x, train, nearest(x, train, self.candidates).place)
            for name, x in found.items()
        }
        for name, x in found.items():
            novelty = {
                "nn_ratio.weight": nn_ratio(near[name], near["heldout"]),
                "z_u": z_u(near[name], near["heldout"], self.count),
            }
            spreads = dispersion(self.form.tensors(x), self.form.tensors(other)).items()
            values |= _keyed(name, novelty | {f"dispersion.{part}".rstrip("."): value for part, value in spreads})
        return {key: value for key, value in values.items() if not key.startswith("heldout.dispersion.")}

    def _baseline(self, baseline: Baseline, samples: Family) -> dict[str, tuple[Family, float]]:
        """A baseline's networks and their noise: as new as the samples, and in function alone where that differs."""
        generator = torch.Generator().manual_seed(self.seed)
        theta = self._like(baseline.name, baseline.generate(self.material, len(samples.theta), generator))
        noisy = Noisy(theta, self.material, generator)

        def networks(size: float) -> Tensor:
            return self._formed(noisy(size))

        @cache
        def distances(size: float) -> tuple[Tensor, Tensor]:
            theta = networks(size)
            return self._distances(theta, self._matched(theta))

        def in_function(size: float) -> float:
            return _relative(self._nearest(networks(size), 1).distance[:, 0], samples.function_distance)

        def in_both(size: float) -> float:
            function, weight = distances(size)
            return min(_relative(function, samples.function_distance), _relative(weight, samples.weight_distance))

        if not baseline.compared:
            return {baseline.name: (self.measure(networks(0.0)), 0.0)}
        least = match_noise(in_function)
        most = match_noise(in_both, least)
        found = {baseline.name: (self.measure(networks(most)), most)}
        if least != most:
            found[f"{baseline.name}.function_matched"] = (self.measure(networks(least)), least)
        return found

    def _matched(self, theta: Tensor) -> Tensor:
        """Canonical coordinates (n, dim), matched to the reference."""
        return self.form.match(self.form(theta), self.reference)

    def _distances(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to the nearest training networks, in function and in weights, (n,) each."""
        close = self._nearest(theta, self.candidates)
        return close.distance[:, 0], nearest_distance(self.form, x, self.material.x, close.place)

    def _nearest(self, theta: Tensor, k: int) -> Nearest:
        return nearest(predict(self.task, theta), self._predictions, k)

    @cached_property
    def _predictions(self) -> Tensor:
        return predict(self.task, self.train)

    def _like(self, what: str, theta: Tensor) -> Tensor:
        """Checked, and in the geometry's form."""
        self.task.space.check(theta)
        if theta.ndim != 2 or len(theta) < 2:
            raise ValueError(f"evaluation needs at least 2 {what} networks of shape (n, D), got {tuple(theta.shape)}")
        bad = int((~theta.isfinite().all(dim=1)).sum())
        if bad:
            raise ValueError(f"{bad} of {len(theta)} {what} networks hold NaN or infinite weights")
        return self._formed(theta)

    @torch.no_grad()
    def _formed(self, theta: Tensor) -> Tensor:
        """What the geometry makes of networks."""
        if self.geometry is None or self.geometry.lossy:
            return theta.detach()
        return self.geometry.decode(self.geometry.encode(theta))


class EvaluationMetric(Metric):
    """An :class:`Evaluation` of networks that arrive in batches, on any number of processes.

    Args:
        evaluation: What is computed of all of them together.
    """

    full_state_update = False

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.theta: list[Tensor]
        self.add_state("theta", default=[], dist_reduce_fx="cat")

    def update(self, theta: Tensor) -> None:
        """Add generated networks (B, D)."""
        self.theta.append(theta.detach())

    def compute(self) -> dict[str, float]:
        """The report's values over all networks of all processes.

        Raises:
            ValueError: where no networks came, and as :class:`Evaluation` does.
        """
        if not len(self.theta):
            raise ValueError("no networks were generated, so there is nothing to evaluate")
        return self.evaluation(dim_zero_cat(self.theta)).values


def evaluate(
    samples: Tensor,
    train: Tensor,
    heldout: Tensor,
    task: BaseTask,
    split: str = "val",
    *,
    geometry: Geometry | None = None,
    starts: Tensor | None = None,
    fresh: Tensor | None = None,
    baselines: Sequence[Baseline] | None = None,
    aligner: Aligner | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate generated networks once; see :class:`Evaluation` for the arguments and errors.

    Returns:
        All numbers by flat key.
    """
    begin = time.perf_counter()
    evaluation = Evaluation(
        task,
        train,
        heldout,
        split,
        geometry=geometry,
        starts=starts,
        fresh=fresh,
        baselines=baselines,
        aligner=aligner,
        seed=seed,
    )
    values = evaluation(samples).values
    return values | {"timing.evaluation": time.perf_counter() - begin}


def _relative(distance: Tensor, other: Tensor) -> float:
    """Ratio of means; infinity where the other is zero."""
    return float(distance.double().mean()) / mean if (mean := float(other.double().mean())) else math.inf


def _keyed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
