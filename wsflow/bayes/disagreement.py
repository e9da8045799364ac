r"""How different the members of an ensemble are as predictors; every pair of them, in batches.

- Jensen-Shannon divergence of predicted class probabilities, mean over data points, in nats, from 0 to :math:`\log 2`:
  :math:`H[(p_a + p_b)/2] - (H[p_a] + H[p_b])/2` (Lin 1991).  Its mean over pairs is the functional diversity.
- Error overlap: with :math:`E_a` the data points that a gets wrong, :math:`|E_a \cap E_b| / |E_a \cup E_b|`; 1 for
  members that fail on the same points, and for two without errors.

For regressions, the divergence's place is taken by the root mean squared difference of values, and there are no errors
to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from wsflow.bayes.members import Members, Source, members
from wsflow.bayes.scores import ScoreError
from wsflow.tasks import BaseTask, ClassificationTask

WORKING = 64
"""Bytes for each number of a pair's answers."""


@dataclass(frozen=True)
class Disagreement:
    """Of all pairs of n members.

    Args:
        divergence: (n, n), Jensen-Shannon divergence, or difference of values.
        overlap: (n, n), error overlap; None for a regression.
    """

    divergence: Tensor
    overlap: Tensor | None = None

    def summary(self) -> dict[str, float]:
        """Means over pairs of different members: ``diversity`` and, for classifiers, ``error_overlap``."""
        values = {"diversity": mean_of_pairs(self.divergence)}
        return values | ({} if self.overlap is None else {"error_overlap": mean_of_pairs(self.overlap)})


@torch.no_grad()
def disagreement(task: BaseTask, source: Source, split: str) -> Disagreement:
    """How much the members of an ensemble disagree on a split.

    The work grows with the square of their number.

    Args:
        task: The base task.
        source: Weights (n, D), or a function from inputs to predictions.
        split: Whose data.

    Raises:
        ScoreError: for fewer than two members.
    """
    group = members(task, source)
    if group.count < 2:
        raise ScoreError("one network disagrees with nobody: give at least 2")
    inputs, targets = task.data(split)
    total, wrong = torch.zeros(group.count, group.count, dtype=torch.float64), []
    classifies = isinstance(task, ClassificationTask)
    for columns, answers in group.stream(inputs):
        total += _pairs(group, answers.exp() if classifies else answers, classifies).cpu()
        if classifies:
            wrong.append((answers.argmax(-1) != targets[columns].to(answers.device)).cpu())
    mean = total / len(inputs)
    if not classifies:
        return Disagreement((mean / task.layer_sizes[-1]).sqrt())
    return Disagreement(mean, error_overlap(torch.cat(wrong, 1)))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions over the last axis, in nats; exact at equal and disjoint ones."""
    middle = torch.special.entr((p + q) / 2).sum(-1)
    own = (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
    divergence: Tensor = (middle - own).clamp(0, log(2))
    return divergence


def error_overlap(wrong: Tensor) -> Tensor:
    """Intersection over union of the errors of n members, (n, N) booleans to (n, n)."""
    errors = wrong.double()
    both, count = errors @ errors.T, errors.sum(1)
    either = count[:, None] + count - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def mean_of_pairs(matrix: Tensor) -> float:
    """Mean of the entries above the diagonal of a symmetric matrix (n, n)."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return float(matrix[rows, columns].mean())


def _pairs(group: Members, answers: Tensor, classifies: bool) -> Tensor:
    """Divergences, or squared differences, of all pairs, summed over data points; (n, N, C) to (n, n)."""
    n = len(answers)
    rows, columns = torch.triu_indices(n, n, offset=1, device=answers.device)
    step = max(1, group.task.memory // (WORKING * answers[0].numel()))
    sums = []
    for a, b in zip(torch.split(rows, step), torch.split(columns, step), strict=True):
        p, q = answers[a], answers[b]
        each = jensen_shannon(p, q) if classifies else (p - q).square().sum(-1)
        sums.append(each.sum(1))
    total = answers.new_zeros(n, n)
    total[rows, columns] = torch.cat(sums)
    return total + total.T
