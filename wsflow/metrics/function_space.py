r"""Distances between networks as functions.

The distance of two networks is the root mean square difference of their predictions on the same inputs,

.. math:: d(a, b) = \sqrt{\tfrac{1}{NC} \sum_{n,c} (f_a(x_n)_c - f_b(x_n)_c)^2},

with softmax outputs for classifiers and plain outputs for regression.  It does not see permutations and rescalings of
hidden neurons, and it sees an untrained network at once.

All pairs come from matrix products in float64 (:math:`|a|^2 + |b|^2 - 2 ab`, centred, in pieces of bounded memory);
that expansion loses half the digits for near copies, so the distances to the nearest networks are then computed again
from the differences themselves: a copy has distance 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.tasks import BaseTask

PIECE = 2**22
"""Numbers held at once, per operand, while distances are computed."""


class Nearest(NamedTuple):
    """The nearest networks of n networks.

    Attributes:
        distance: (n, k), ascending.
        place: (n, k), their places among the networks searched.
    """

    distance: Tensor
    place: Tensor


def predict(task: BaseTask, theta: Tensor, split: str = "val") -> Tensor:
    """Predictions of B networks as vectors, (B, N * C).

    Args:
        task: The base task; its ``val`` inputs are what novelty is measured on.
        theta: (B, D).
        split: Whose inputs.
    """
    with torch.no_grad():
        return task.predictions(task.logits(theta, split)).flatten(1)


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square differences of all pairs, (n, F) and (m, F) to (n, m) in float64.

    Exact to about 1e-8 times the spread of ``b``; see :func:`nearest` for copies.
    """
    centre = b.mean(dim=0, dtype=torch.float64)
    width = max(1, PIECE // (len(a) + len(b)))
    squares = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y, mean in zip(torch.split(a, width, 1), torch.split(b, width, 1), torch.split(centre, width), strict=True):
        u, v = x.double() - mean, y.double() - mean
        squares += (u**2).sum(1)[:, None] + (v**2).sum(1) - 2 * u @ v.T
    return (squares.clamp(min=0) / a.shape[1]).sqrt()


def nearest(a: Tensor, b: Tensor, k: int = 1) -> Nearest:
    """The k nearest of m networks for each of n.

    Args:
        a: (n, F), predictions of the networks asked for.
        b: (m, F), predictions of the networks searched.
        k: How many; at most m are given.
    """
    index = pairwise(a, b).topk(min(k, len(b)), largest=False).indices
    rows = max(1, PIECE // (index.shape[1] * a.shape[1]))
    pieces = zip(torch.split(a, rows), torch.split(index, rows), strict=True)
    exact = torch.cat([(x.double()[:, None] - b[i].double()).square().mean(2).sqrt() for x, i in pieces])
    distance, order = exact.sort(dim=1)
    return Nearest(distance, index.gather(1, order))
