r"""Scores of ensembles of several sizes, made of the same members.

For each size, ensembles of that many members are drawn (:func:`wsflow.bayes.mixing.subsets`: disjoint where members
suffice) and scored; mean and standard deviation over them say what an ensemble of that size is worth, and how much
that depends on which members it has.  All ensembles of all sizes are predicted in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.bayes.calibration import inverse_temperature, tempered
from wsflow.bayes.members import Source, members
from wsflow.bayes.mixing import mixing, subsets
from wsflow.bayes.outliers import OutlierSource, auroc, epistemic
from wsflow.bayes.predictive import Predictive, predictive
from wsflow.bayes.scores import brier, ece, nll, scores
from wsflow.tasks import BaseTask

SIZES = (1, 5, 10, 50)

MOST = 20
"""Ensembles of one size."""


@dataclass(frozen=True)
class SizeScores:
    """Scores of ensembles of one size.

    Args:
        size: Members of each.
        count: Ensembles.
        disjoint: Whether no member is in two of them; otherwise ``std`` is smaller than that of fresh ensembles.
        mean: Score by name, averaged over ensembles.
        std: Standard deviation over ensembles; empty where there is one.
        each: (count,), the score of every ensemble, by name.
    """

    size: int
    count: int
    disjoint: bool
    mean: dict[str, float]
    std: dict[str, float]
    each: dict[str, Tensor]


def by_size(
    task: BaseTask,
    source: Source,
    split: str = "val",
    sizes: Sequence[int] = SIZES,
    outliers: OutlierSource | None = None,
    log_weights: Tensor | None = None,
    most: int = MOST,
    seed: int = 0,
    calibrate: bool = False,
) -> dict[int, SizeScores]:
    """Score ensembles of several sizes.

    Args:
        task: The base task.
        source: Weights (n, D), or a function from inputs to predictions (n, N, C).
        split: Whose data.
        sizes: Numbers of members; those above n are left out.
        outliers: Where outliers come from: ``ood_auroc`` by entropy and ``ood_auroc.epistemic`` by mutual information
            (by the variance of values for a regression) are added.
        log_weights: (n,), log importance weights, normalised anew in each ensemble; equal weights by default.
        most: Ensembles of one size at most.
        seed: Of the draw of ensembles and of outliers.
        calibrate: Whether ``nll.calibrated``, ``brier.calibrated`` and ``ece.calibrated`` are added: those of each
            average with one temperature of its own, fitted on validation data.

    Returns:
        Scores by size, as :func:`wsflow.bayes.scores` names them.

    Raises:
        ValueError: where no size is possible, for calibration on the data that are judged, and as
            :func:`wsflow.bayes.predictive` does.
    """
    if calibrate and split == "val":
        raise ValueError("temperatures are fitted on validation data; calibrated scores need another split")
    group = members(task, source)
    possible = [size for size in dict.fromkeys(sizes) if 1 <= size <= group.count]
    if not possible:
        raise ValueError(f"{group.count} networks make no ensemble of {', '.join(map(str, sizes))}")
    chosen = [subsets(group.count, size, most, seed) for size in possible]
    weights = torch.cat([mixing(group.count, one.index, log_weights) for one in chosen])
    inside = predictive(task, group, split, weights=weights)
    found = scores(inside)
    if calibrate:
        found |= _calibrated(inside, predictive(task, group, "val", weights=weights))
    if outliers is not None:
        foreign = outliers.inputs(task, split, torch.Generator().manual_seed(seed))
        outside = predictive(task, group, inputs=foreign, weights=weights)
        found |= {"ood_auroc": auroc(inside, outside), "ood_auroc.epistemic": auroc(inside, outside, epistemic)}
    rows = torch.split(torch.arange(len(weights)), [len(one.index) for one in chosen])
    return {
        size: _summary(size, one.disjoint, {name: value[row] for name, value in found.items()})
        for size, one, row in zip(possible, chosen, rows, strict=True)
    }


def _calibrated(inside: Predictive, validation: Predictive) -> dict[str, Tensor]:
    better = tempered(inside, inverse_temperature(validation))
    return {"nll.calibrated": nll(better), "brier.calibrated": brier(better), "ece.calibrated": ece(better)}


def _summary(size: int, disjoint: bool, each: dict[str, Tensor]) -> SizeScores:
    count = len(next(iter(each.values())))
    mean = {name: float(value.mean()) for name, value in each.items()}
    std = {name: float(value.std()) for name, value in each.items()} if count > 1 else {}
    return SizeScores(size, count, disjoint, mean, std, each)
