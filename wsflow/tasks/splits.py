"""Splitting data points and scaling them by statistics of the train split alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_indices(
    count: int, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, labels: Tensor | None = None
) -> list[Tensor]:
    """Disjoint random index sets that cover ``range(count)``.

    All sets but the first hold ``round(fraction * count)`` points; the first holds the rest.

    Args:
        count: The number of data points.
        fractions: One per set, adding up to 1.
        seed: Of the shuffle.
        labels: (count,) class indices; each set then holds each class in proportion, to within one point.

    Raises:
        ValueError: where the fractions do not add up to 1, or a set would be empty.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"split fractions must be at least 0 and add up to 1, got {list(fractions)}")
    sizes = [round(fraction * count) for fraction in fractions[1:]]
    sizes.insert(0, count - sum(sizes))
    if any(size < 1 for size, fraction in zip(sizes, fractions, strict=True) if fraction > 0):
        raise ValueError(f"{count} items are too few to split by {list(fractions)}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order = order[_spread(labels[order]).argsort(stable=True)]
    return list(torch.split(order, sizes))


def standardise(train: Tensor, *others: Tensor, axes: Sequence[int] = (0,)) -> list[Tensor]:
    """Shift and scale by the mean and standard deviation of ``train`` over ``axes``, as float32.

    Constant features become 0.

    Returns:
        The scaled ``train``, followed by the scaled others.
    """
    train = train.double()
    mean, std = train.mean(list(axes), keepdim=True), train.std(list(axes), correction=0, keepdim=True)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return [((part.double() - mean) / std).float() for part in (train, *others)]


def _spread(labels: Tensor) -> Tensor:
    """Each point's relative rank within its class: sorting by it mixes the classes evenly."""
    rank = torch.empty(len(labels), dtype=torch.float64)
    for value in torch.unique(labels):
        where = (labels == value).nonzero().squeeze(1)
        rank[where] = (torch.arange(len(where), dtype=torch.float64) + 0.5) / len(where)
    return rank
