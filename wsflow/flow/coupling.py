r"""Couplings: which prior state goes with which trained network.

A coupling :math:`q(x_0, x_1)` has the marginals :math:`p_0` and :math:`p_1`.  Rows of :math:`x_1` always keep the
order of the batch, so that labels stay with their networks; couplings choose :math:`x_0`.

*Mini-batch optimal transport* assigns prior states to networks so that the sum of squared distances is least.  Between
n and n points of equal mass a least plan is a permutation.

*Aligned optimal transport* first matches, for every pair (i, j), the neurons of :math:`x_0^i` to those of
:math:`x_1^j` by permutations :math:`\pi_{ij}`, assigns by the costs

.. math:: C_{ij} = d(\pi_{ij} x_0^i, x_1^j)^2 ,

and returns the matched states :math:`\pi_{ij} x_0^i`.  The plan is optimal for these costs, but the costs are not the
least over all permutations: an aligner such as weight matching finds a local optimum, and of the distance between the
decoded weights, which need not be that of the geometry.

*Labels.*  A plan that looks across labels makes the prior state depend on the label: the conditional flow then starts
from another law than :math:`p_0` and is biased (Cheng and Schwing 2025).  Networks are therefore paired within groups
of like labels, and a prior state keeps the group that it was drawn for.  Groups depend on labels alone, so that within
every group the prior states are exactly independent draws of :math:`p_0`.  Where labels repeat (classes, epochs), a
group is one label; otherwise the batch is halved at the median of its widest label until groups would be smaller than
``group``.  A cost for unlike labels, the alternative, needs a weight that is tuned to the size of the distances, and
keeps the law of no group.

Matched states are no draws of :math:`p_0`: their neurons are in the order of the trained network's.  That is harmless
for a field that is equivariant to permutations of hidden neurons and a prior that treats neurons alike, and biased
otherwise.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from wsflow.alignment import Aligner, WeightMatching
from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace, ZooBatch

ELEMENTS = 2**23
"""Weights of pairs that are matched at once."""


class Coupling(ABC):
    """A way to pair prior states with trained networks."""

    @abstractmethod
    def __call__(
        self, batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pair them.

        Args:
            batch: B trained networks.
            x0: (B, dim), states of the prior.
            geometry: The space the flow lives in.
            generator: Source of the coupling's own randomness.

        Returns:
            x0 (B, dim) and x1 (B, dim); row i of both is a pair, and row i of x1 is network i of the batch.

        Raises:
            ValueError: where the batch does not hold what the coupling needs.
        """


class IndependentCoupling(Coupling):
    """Prior states and networks as they come."""

    def __call__(
        self, batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The given x0 and the encoded networks."""
        return x0, geometry.encode(batch.x1)


class OptimalTransportCoupling(Coupling):
    """Mini-batch optimal transport with the geometry's squared distance, within groups of like labels.

    Args:
        group: Least number of networks of a group, where labels are continuous.

    Raises:
        ValueError: for less than one.
    """

    def __init__(self, group: int = 8) -> None:
        self.group = _checked(group)

    @torch.no_grad()
    def __call__(
        self, batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The assignment of x0 to the networks with the least total squared distance."""
        x1 = geometry.encode(batch.x1)
        _check(x0, x1)
        paired = x0.clone()
        for rows in label_groups(batch.label, len(x1), self.group):
            part = x0[rows]
            paired[rows] = part[assign(geometry.pairwise_distance(part, x1[rows]).square())]
        return paired, x1


class AlignedOptimalTransportCoupling(Coupling):
    """Mini-batch optimal transport after matching the neurons of every prior state to those of every network.

    Needs an equivariant field (see the module's text).  Costs n * n alignments for every group of n like labels, the
    whole batch where there are none.

    Args:
        aligner: How neurons are matched; by default ``WeightMatching(iterations=3)``, of few sweeps for the sake of
            time.
        group: Least number of networks of a group, where labels are continuous.

    Raises:
        ValueError: for less than one network in a group.
    """

    def __init__(self, aligner: Aligner | None = None, group: int = 8) -> None:
        self.aligner = aligner if aligner is not None else WeightMatching(iterations=3)
        self.group = _checked(group)

    @torch.no_grad()
    def __call__(
        self, batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best assignment of the matched x0.

        Raises:
            ValueError: for coordinates of a latent space, and as every coupling does.
        """
        if geometry.dim < geometry.space.dim:
            raise ValueError(
                f"coordinates of {type(geometry).__name__} belong to no neuron, so that no neurons can be matched: "
                "align the zoo (data.aligner) and choose OptimalTransportCoupling"
            )
        x1 = geometry.encode(batch.x1)
        _check(x0, x1)
        paired = x0.clone()
        for rows in label_groups(batch.label, len(x1), self.group):
            paired[rows] = self._pair(x0[rows], x1[rows], geometry)
        return paired, x1

    def _pair(self, x0: Tensor, x1: Tensor, geometry: Geometry) -> Tensor:
        """The matched x0 (n, dim) in the order of x1 (n, dim)."""
        columns = max(1, ELEMENTS // max(1, x0.numel()))
        parts = [self._match(x0, ends, geometry) for ends in torch.split(x1, columns)]
        rows = assign(torch.cat([cost for cost, _ in parts]).T)
        perms = [torch.cat(group) for group in zip(*(perms for _, perms in parts), strict=True)]
        chosen = [group[torch.arange(len(rows), device=rows.device), rows] for group in perms]
        return _permute(geometry.space, x0[rows], chosen)

    def _match(self, x0: Tensor, x1: Tensor, geometry: Geometry) -> tuple[Tensor, list[Tensor]]:
        """Squared distances (m, n) of x1 (m, dim) to the matched x0 (n, dim), and the permutations (m, n, size)."""
        n, m = len(x0), len(x1)
        starts, ends = x0.repeat(m, 1), x1.repeat_interleave(n, dim=0)
        perms = self.aligner.align(geometry.space, geometry.decode(starts), geometry.decode(ends))
        cost = geometry.distance(_permute(geometry.space, starts, perms), ends).square()
        return cost.view(m, n), [group.view(m, n, -1) for group in perms]


class TrajectoryCoupling(Coupling):
    """Each trained network with the initial weights of its own run; the given x0 is not used.

    Train it on unaligned weights: permuting a network together with its start makes the start depend on the network.
    """

    def __call__(
        self, batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoded starts and the encoded networks."""
        if batch.start is None:
            raise ValueError(
                "TrajectoryCoupling needs the initial weights of every run, and this zoo has none; "
                "collect a zoo that keeps them, or choose IndependentCoupling or OptimalTransportCoupling"
            )
        return geometry.encode(batch.start), geometry.encode(batch.x1)


def assign(cost: Tensor) -> Tensor:
    """The permutation that minimises a total cost.

    Args:
        cost: (n, n), of pairing row i with column j.

    Returns:
        (n,), the row of each column, on the device of ``cost``.

    Raises:
        ValueError: for costs that are not square or not finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"optimal transport needs as many prior states as networks, got costs {tuple(cost.shape)}")
    if not cost.isfinite().all():
        bad = int((~cost.isfinite()).sum())
        raise ValueError(f"{bad} of {cost.numel()} transport costs are not finite: the weights are too large")
    plan = torch.from_numpy(_ot().emd([], [], cost.double().cpu().numpy(), numItermax=10_000_000))
    rows = plan.argmax(dim=0)
    permutation = torch.nn.functional.one_hot(rows, len(rows)).T
    if not torch.allclose(len(rows) * plan, permutation.to(plan)) or not bool((permutation.sum(1) == 1).all()):
        raise RuntimeError("the transport plan of two equal, uniform batches is not an assignment")
    return rows.to(cost.device)


@cache
def _ot() -> Any:
    """POT, imported when first used: it takes seconds."""
    with warnings.catch_warnings():
        # POT imports torch-geometric where installed, which calls torch.jit.script; torch >= 2.9 deprecates that.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module("ot")


def _permute(space: WeightSpace, x: Tensor, perms: list[Tensor]) -> Tensor:
    """Permute the neurons of states: coordinates in flat order, and extra ones that permutations leave alone."""
    return torch.cat([space.permute(x[:, : space.dim], perms), x[:, space.dim :]], dim=1)


def _check(x0: Tensor, x1: Tensor) -> None:
    if len(x0) != len(x1):
        raise ValueError(
            f"optimal transport needs as many prior states as networks, got {len(x0)} states for {len(x1)} networks"
        )
    for what, states in (("prior states", x0), ("networks", x1)):
        bad = (~states.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(states)} {what} of the batch are not finite, the first at row {bad[0]}"
            )


def label_groups(label: Tensor | None, count: int, least: int) -> list[Tensor]:
    """The rows of a batch in groups of like labels.

    Args:
        label: (B, K), or None for one group; NaN is a label of its own.
        count: B.
        least: Size below which no group is made where labels are continuous.

    Returns:
        Row numbers, each in one group.
    """
    if label is None:
        return [torch.arange(count)]
    labels = label.cpu().nan_to_num(nan=torch.inf)
    distinct, which = torch.unique(labels, dim=0, return_inverse=True)
    if 2 * len(distinct) <= count:
        return [(which == k).nonzero()[:, 0] for k in range(len(distinct))]
    return _halved(torch.arange(count), labels.clamp(max=torch.finfo(labels.dtype).max), least)


def _halved(rows: Tensor, label: Tensor, least: int) -> list[Tensor]:
    if len(rows) < 2 * least:
        return [rows]
    values = label[rows].double()
    widest = (values.max(0).values - values.min(0).values).argmax()
    order = rows[values[:, widest].argsort(stable=True)]
    middle = len(rows) // 2
    return _halved(order[:middle], label, least) + _halved(order[middle:], label, least)


def _checked(group: int) -> int:
    if group < 1:
        raise ValueError(f"a group needs at least one network, got {group}")
    return group
