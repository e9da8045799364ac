r"""Linear assignment, many problems at once.

Sought is the permutation p that maximises :math:`\sum_i C_{i p(i)}`.  Where every row has its largest entry in another
column, those columns are the answer, since no row can do better; likewise for the columns.  Both are found for all
problems together, and only the rest is solved one problem at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(gain: Tensor) -> Tensor:
    """The permutations of greatest total gain.

    Args:
        gain: (..., n, n), finite.

    Returns:
        (..., n), the column of each row.
    """
    n = gain.shape[-1]
    flat = gain.detach().reshape(-1, n, n)
    best, open_ = flat.argmax(2), torch.arange(len(flat), device=gain.device)
    open_ = open_[~_is_permutation(best)]
    if len(open_) > 0:
        rows = flat[open_].argmax(1)
        done = _is_permutation(rows)
        best[open_[done]] = rows[done].argsort(1)
        open_ = open_[~done]
    if len(open_) > 0:
        best[open_] = _solve(flat[open_]).to(gain.device)
    return best.view(gain.shape[:-1])


def _solve(gain: Tensor) -> Tensor:
    """The permutations (N, n), one problem after another."""
    problems = gain.cpu().numpy()
    columns = np.empty(problems.shape[:2], dtype=np.int64)
    for column, problem in zip(columns, problems, strict=True):
        column[:] = linear_sum_assignment(problem, maximize=True)[1]
    return torch.from_numpy(columns)


def _is_permutation(index: Tensor) -> Tensor:
    """Which rows (N,) of (N, n) hold every number below n once."""
    return torch.zeros_like(index, dtype=torch.bool).scatter_(1, index, True).all(1)
