r"""Linear assignment, many problems at once.

Sought is the permutation p that maximises :math:`\sum_i C_{i p(i)}`.  Two kinds of problems are settled all together,
and only the rest is solved one problem after another.

*Nothing to gain.*  The order as it is wins where no cycle of rows :math:`i \to j \to \dots \to i` gains by taking
each other's columns, :math:`\sum (C_{ij} - C_{ii}) > 0`.  That is so where the longest paths
:math:`v_j = \max(v_j, \max_i v_i + C_{ij} - C_{ii})`, started from v = 0, come to rest (Bellman-Ford); v are dual
prices of the columns then.

*No conflict.*  Where every column holds the largest entry of some row, each row takes its largest entry.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

STEPS = 8
"""Steps of Bellman-Ford before a problem counts as open; those at rest need three or four."""


def assign(gain: Tensor) -> Tensor:
    """The permutations of greatest total gain; ties leave the order as it is.

    Args:
        gain: (..., n, n), finite.

    Returns:
        (..., n), the column of each row.
    """
    n = gain.shape[-1]
    flat = gain.detach().reshape(-1, n, n)
    columns = torch.arange(n, device=gain.device).repeat(len(flat), 1)
    rows = (~_at_rest(flat)).nonzero()[:, 0]
    if len(rows) > 0:
        rest = flat[rows]
        peaks = (rest >= rest.amax(2, keepdim=True)).any(1).all(1)
        best = rest[peaks].argmax(2)
        peaks[peaks.clone()] = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best, True).all(1)
        columns[rows[peaks]] = rest[peaks].argmax(2)
        columns[rows[~peaks]] = _solve(rest[~peaks]).to(gain.device)
    return columns.view(gain.shape[:-1])


def _at_rest(gain: Tensor) -> Tensor:
    """Which problems (N, n, n) gain nothing by any cycle, (N,); False where that takes more steps to see."""
    steps = gain - gain.diagonal(dim1=1, dim2=2)[:, :, None]
    settled = (steps + steps.mT).amax((1, 2)) <= 0
    rows = settled.nonzero()[:, 0]
    steps = steps[rows]
    prices = steps.amax(1)
    for _ in range(STEPS):
        if len(rows) == 0:
            break
        higher = (prices[:, :, None] + steps).amax(1)
        open_ = (higher > prices).any(1)
        rows, steps, prices = rows[open_], steps[open_], higher[open_]
    settled[rows] = False
    return settled


def _solve(gain: Tensor) -> Tensor:
    """The permutations (N, n), one problem after another."""
    costs = gain.neg().cpu().numpy()
    columns = np.empty(costs.shape[:2], dtype=np.int64)
    for column, cost in zip(columns, costs, strict=True):
        column[:] = linear_sum_assignment(cost)[1]
    return torch.from_numpy(columns)
