r"""Weights without their symmetries.

The canonical form of a network has its scaling symmetry removed (:class:`wsflow.geometry.Normalized`: unit incoming
weights, the scale of each last layer as a log coordinate) and its hidden neurons matched to a reference
(:class:`wsflow.alignment.Aligner`).  Distances between weights mean something only there: a training network with
permuted hidden neurons is as far from the original as any other network, until its neurons are matched.

Running statistics of batch norm follow from the weights and are no coordinates: they are dropped here, and a task
recomputes them where it needs them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsflow.alignment import Aligner, WeightMatching
from wsflow.geometry import Normalized
from wsflow.weightspace import WeightSpace

PIECE = 2**22
"""Coordinates of networks that are held against their candidates at once; each takes several times as much of them."""


class CanonicalWeights:
    """Takes networks to canonical coordinates and back.

    Args:
        space: Their weight space.
        aligner: How hidden neurons are matched; weight matching by default.
    """

    def __init__(self, space: WeightSpace, aligner: Aligner | None = None) -> None:
        self.space = space
        self.geometry = Normalized(space, keep_scale=True)
        self.aligner = WeightMatching() if aligner is None else aligner

    def __call__(self, theta: Tensor) -> Tensor:
        """Canonical coordinates (B, dim) of networks (B, D), or of extended ones, not yet matched."""
        self.geometry.to(theta.device)
        self.space.check(theta)
        return self.geometry.encode(theta[:, : self.space.dim])

    def invert(self, x: Tensor) -> Tensor:
        """Networks (B, D) from coordinates (B, dim), first moved to the nearest canonical ones."""
        self.geometry.to(x.device)
        return self.geometry.decode(self.geometry.project(x))

    def match(self, x: Tensor, reference: Tensor) -> Tensor:
        """Permute the hidden neurons of B networks towards a reference.

        Args:
            x: (B, dim), canonical coordinates.
            reference: (dim,), or (B, dim) with one reference for each.

        Returns:
            (B, dim), the same networks.
        """
        weights, scale = x[:, : self.space.dim], x[:, self.space.dim :]
        perms = self.aligner.align(self.space, weights, reference[..., : self.space.dim])
        return torch.cat([self.space.permute(weights, perms), scale], dim=1)

    def tensors(self, x: Tensor) -> dict[str, Tensor]:
        """Canonical coordinates (B, dim) by tensor name, log scales last as ``log_scale``."""
        parts = {tensor.name: x[:, tensor.slice] for tensor in self.space.tensors}
        return parts | ({"log_scale": x[:, self.space.dim :]} if x.shape[1] > self.space.dim else {})


def distance(form: CanonicalWeights, x: Tensor, y: Tensor) -> Tensor:
    """Distances (B,) of canonical networks x (B, dim) and y (B, dim), each y matched to its x first."""
    difference: Tensor = form.match(y, x) - x
    return difference.square().sum(dim=1).sqrt()


def nearest_distance(form: CanonicalWeights, x: Tensor, train: Tensor, index: Tensor) -> Tensor:
    """Distance of each network to the nearest of its candidates, each matched to it on its own.

    Args:
        form: The canonical form.
        x: (n, dim), canonical coordinates.
        train: (m, dim), canonical coordinates of the training networks.
        index: (n, k), the candidates of each network, such as the functionally nearest training networks.

    Returns:
        (n,).
    """
    parts, step = [], max(1, PIECE // x.shape[1])
    for some, places in zip(torch.split(x, step), torch.split(index, step), strict=True):
        pairs = distance(form, some.repeat_interleave(places.shape[1], 0), train[places.flatten()])
        parts.append(pairs.view(places.shape).amin(dim=1))
    return torch.cat(parts)
