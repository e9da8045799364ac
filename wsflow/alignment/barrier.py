r"""Linear mode connectivity: what the loss does on the straight line between two networks.

Between networks A and C lie :math:`\theta_t = (1 - t) A + t C`, :math:`0 \le t \le 1`.  Three numbers say how far the
loss L rises there:

- the *midpoint barrier* (the thesis's Figure 7.2),
  :math:`B(A, C) = L(\theta_{1/2}) - \tfrac12 (L(A) + L(C))`;
- the *barrier* along the path (Entezari et al. 2022, equation 1),
  :math:`\max_t \, [L(\theta_t) - (1 - t) L(A) - t L(C)]`, here over a grid that holds both ends: never negative;
- the *instability* (Frankle et al. 2020), :math:`\max_t L(\theta_t) - \tfrac12 (L(A) + L(C))`, over the same grid.

Of a zoo of N networks, pairs from one run lie on one trajectory and say little: means go over pairs of different runs.
These pairs share networks and are not independent, so the standard error is a jackknife over the R runs: with
:math:`m_r` the mean over the pairs without run r and :math:`\bar m` the mean of these,
:math:`\mathrm{se}^2 = \frac{R - 1}{R} \sum_r (m_r - \bar m)^2`.

Networks are judged by a function of weights (B, D), such as ``partial(task.evaluate, split="test")``.  It gets plain
weights, so running statistics of interpolated networks are its business: a task recomputes them on train data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], Mapping[str, Tensor]]
"""Scores of networks (B, D), each (B,); ``loss`` is one of them."""

Match = Callable[[Tensor, Tensor], Tensor]
"""Brings networks (P, D), its first argument, near others (P, D), one by one, without changing their functions."""

ELEMENTS = 2**24
"""Weights that are evaluated at once."""


@dataclass(frozen=True, eq=False)
class Barriers:
    """Scores of N networks and of the midpoints of all their pairs.

    Attributes:
        run: (N,), the run of each network.
        ends: Scores of the networks, each (N,).
        middles: Scores of the midpoints, each (N, N), symmetric, with ``ends`` on the diagonal.
    """

    run: Tensor
    ends: Mapping[str, Tensor]
    middles: Mapping[str, Tensor]

    @cached_property
    def matrix(self) -> Tensor:
        """Midpoint barriers of the loss, (N, N): symmetric, zero on the diagonal."""
        loss = self.ends["loss"]
        return self.middles["loss"] - (loss[:, None] + loss) / 2

    @cached_property
    def between(self) -> Tensor:
        """Which entries above the diagonal belong to different runs, (N, N), bool."""
        return (self.run[:, None] != self.run).triu()

    @property
    def values(self) -> Tensor:
        """Midpoint barriers of the pairs of different runs, (P,)."""
        return self.matrix[self.between]

    @property
    def mean(self) -> float:
        """Mean midpoint barrier over the pairs of different runs."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation over these pairs."""
        return float(self.values.std(correction=0))

    @property
    def largest(self) -> float:
        """The largest of them."""
        return float(self.values.max())

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean` over runs, by the jackknife; infinite for two runs."""
        ids, place = torch.unique(self.run, return_inverse=True)
        if len(ids) < 3:
            return float("inf")
        i, j = self.between.nonzero(as_tuple=True)
        empty = self.values.new_zeros(len(ids))
        sums = empty.index_add(0, place[i], self.values).index_add(0, place[j], self.values)
        counts = empty.index_add(0, place[i], torch.ones_like(self.values))
        counts = counts.index_add(0, place[j], torch.ones_like(self.values))
        without = (self.values.sum() - sums) / (len(self.values) - counts)
        return float(((len(ids) - 1) * without.var(correction=0)).sqrt())

    def middle(self, score: str) -> float:
        """Mean of a score over the midpoints of the pairs of different runs."""
        return float(self.middles[score][self.between].mean())


@dataclass(frozen=True, eq=False)
class Paths:
    """Scores along the straight lines between P pairs of networks.

    Attributes:
        t: (K,), ascending from 0 to 1.
        scores: Each (P, K).
    """

    t: Tensor
    scores: Mapping[str, Tensor]

    @property
    def barrier(self) -> Tensor:
        """The largest rise of the loss above the chord between both ends, (P,), at least 0."""
        loss = self.scores["loss"]
        return (loss - torch.lerp(loss[:, :1], loss[:, -1:], self.t)).amax(1)

    @property
    def instability(self) -> Tensor:
        """The largest loss on the path minus the mean of both ends, (P,)."""
        loss = self.scores["loss"]
        return loss.amax(1) - (loss[:, 0] + loss[:, -1]) / 2


def barriers(evaluate: Evaluate, theta: Tensor, run: Tensor | None = None, match: Match | None = None) -> Barriers:
    """Scores of the midpoints of all pairs of networks.

    Args:
        evaluate: Scores of networks.
        theta: (N, D).
        run: (N,), the run of each network; each of its own by default.
        match: Called for the pairs i < j to bring network j near network i; networks are taken as they are by default.

    Raises:
        ValueError: where runs and networks do not fit, or no two networks are of different runs.
    """
    run = torch.arange(len(theta)) if run is None else run.cpu()
    if theta.ndim != 2 or run.shape != theta.shape[:1]:
        raise ValueError(f"networks of shape {tuple(theta.shape)} do not fit runs of shape {tuple(run.shape)}")
    if len(torch.unique(run)) < 2:
        raise ValueError("barriers need networks of at least two runs")
    ends = evaluate_all(evaluate, theta)
    first, second = torch.triu_indices(len(theta), len(theta), 1)
    parts = []
    for i, j in zip(*(torch.split(index, _rows(theta)) for index in (first, second)), strict=True):
        other = theta[j] if match is None else match(theta[j], theta[i])
        parts.append(_numbers(evaluate((theta[i] + other) / 2)))
    middles = {name: value.diag() for name, value in ends.items()}
    for name, matrix in middles.items():
        matrix[first, second] = matrix[second, first] = torch.cat([part[name] for part in parts])
    return Barriers(run, ends, middles)


def paths(evaluate: Evaluate, first: Tensor, second: Tensor, points: int = 11) -> Paths:
    """Scores on the straight lines from P networks to P others.

    Args:
        evaluate: Scores of networks.
        first: (P, D).
        second: (P, D).
        points: K, how many equally spaced points a line has, both ends among them; odd for the midpoint too.

    Raises:
        ValueError: for fewer than three points, or networks that do not pair up.
    """
    if points < 3:
        raise ValueError(f"a path needs at least 3 points, got {points}")
    if first.shape != second.shape or first.ndim != 2 or not len(first):
        raise ValueError(f"networks of shapes {tuple(first.shape)} and {tuple(second.shape)} do not pair up")
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    weights, parts = t.to(first), []
    for index in torch.split(torch.arange(len(first) * points), _rows(first)):
        pair, point = index // points, index % points
        parts.append(_numbers(evaluate(torch.lerp(first[pair], second[pair], weights[point][:, None]))))
    scores = {name: torch.cat([part[name] for part in parts]).view(-1, points) for name in parts[0]}
    return Paths(t, scores)


def evaluate_all(evaluate: Evaluate, theta: Tensor) -> dict[str, Tensor]:
    """Scores of any number of networks (N, D), each (N,), float64, on the CPU."""
    parts = [_numbers(evaluate(part)) for part in torch.split(theta, _rows(theta))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rows(theta: Tensor) -> int:
    """How many networks are evaluated at once."""
    return max(1, ELEMENTS // theta.shape[1])


def _numbers(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().double() for name, value in scores.items()}
