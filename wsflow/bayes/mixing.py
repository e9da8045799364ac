r"""Which members an ensemble averages, and with what weight.

A matrix of mixing weights (S, n), whose rows are at least 0 and add up to 1, says how S ensembles are made of the same
n members: :math:`p_s(y | x) = \sum_b W_{sb}\, p(y | x, \theta_b)`.  Subsets and importance weights are both such rows,
and all ensembles are predicted by one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subsets:
    """Subsets of equal size of n members.

    Args:
        index: (S, size), the members of each.
        disjoint: Whether no member is in two of them, so that their scores are independent given the data.
    """

    index: Tensor
    disjoint: bool


def subsets(n: int, size: int, most: int = 20, seed: int = 0) -> Subsets:
    """Random subsets of n members, disjoint where there are enough for two.

    Otherwise members are drawn without replacement for each subset on its own, so that subsets share members and their
    scores vary less than those of fresh ensembles would; of all members there is one subset.

    Args:
        n: How many members there are.
        size: Of each subset.
        most: How many subsets at most.
        seed: Of the draw.

    Raises:
        ValueError: where the size is not in 1, ..., n.
    """
    if not 1 <= size <= n:
        raise ValueError(f"ensembles of {size} cannot be made of {n} networks")
    generator = torch.Generator().manual_seed(seed)
    count = min(most, n // size)
    if count > 1 or size == n or most == 1:
        return Subsets(torch.randperm(n, generator=generator)[: count * size].view(count, size), True)
    return Subsets(torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(most)]), False)


def mixing(n: int, index: Tensor | None = None, log_weights: Tensor | None = None) -> Tensor:
    """Mixing weights (S, n) in float64 of subsets of n members.

    Args:
        n: How many members there are.
        index: (S, size), the members of each ensemble; one ensemble of all by default.
        log_weights: (n,), unnormalised log importance weights; equal weights by default.

    Raises:
        ValueError: where log weights are not n numbers, or those of an ensemble are all zero or infinite.
    """
    logits = torch.zeros(n, dtype=torch.float64) if log_weights is None else log_weights.detach().cpu().double()
    if logits.shape != (n,):
        raise ValueError(f"{n} members need {n} log weights, got shape {tuple(logits.shape)}")
    index = torch.arange(n)[None] if index is None else index
    rows = logits[index].softmax(-1)
    if not rows.isfinite().all():
        raise ValueError("log weights hold NaN or infinity, or are -infinity for all members of an ensemble")
    return torch.zeros(len(index), n, dtype=torch.float64).scatter(1, index, rows)
