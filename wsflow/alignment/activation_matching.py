r"""Activation matching (Li et al. 2016; Ainsworth et al. 2023, section 3.1; thesis eq. 4.2), batched over networks.

Neuron i of a hidden group of the reference answers n data points with :math:`Z^A_i \in R^n`, neuron j of the network
with :math:`Z^B_j`.  The permutation that brings the answers nearest,

.. math:: \arg\min_P \sum_i \|Z^A_i - (P Z^B)_i\|^2 = \arg\max_P \langle P, Z^A (Z^B)^T \rangle,

solves one linear assignment problem per group, or per groups whose parts permute together.  No group depends on
another, so that nothing is iterated.  With ``correlation``, answers are first shifted to mean zero and scaled to length
one: neurons then count alike however strongly they answer, and rescalings do not matter.

Activations are streamed over networks and data points, and only the sums of their products are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.alignment.activations import Features, Readers
from wsflow.alignment.base import Aligner, check_networks
from wsflow.alignment.relaxation import best_permutations
from wsflow.weightspace import Objective, WeightSpace, batch_statistics

MEMORY = 128 * 2**20
"""Bytes that activations, and the sums of their products, may take."""


class ActivationMatching(Aligner):
    """Matches what neurons answer to train data.

    Args:
        inputs: (N, ...), train data; unless given, those of the ``objective`` of :meth:`align`, as in a settings file,
            which cannot hold tensors.
        correlation: Whether answers are compared by correlation and not by inner product.
        points: Largest number of data points that are used, drawn from all.
        seed: Of that draw.

    Raises:
        ValueError: for fewer than one point, or two with ``correlation``.
    """

    def __init__(
        self, inputs: Tensor | None = None, correlation: bool = False, points: int = 1000, seed: int = 0
    ) -> None:
        if points < 1 + correlation:
            raise ValueError(f"points must be at least {1 + correlation}, got {points}")
        self.inputs, self.correlation, self.points, self.seed = inputs, correlation, points, seed

    @torch.no_grad()
    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations (B, size) per hidden group; see :meth:`Aligner.align`.

        Networks and references without running statistics of batch norm get those of the data points.

        Raises:
            ValueError: also where there is no data, or the activations of a group cannot be observed.
        """
        check_networks(space, theta, reference)
        inputs = self._draw(objective).to(theta.device)
        inputs = inputs.to(theta) if inputs.is_floating_point() else inputs
        theta, reference = theta.detach(), reference.detach().to(theta)
        if len(theta) == 0:
            return [torch.empty(0, group.size, dtype=torch.long, device=theta.device) for group in space.hidden]
        stream = Stream(space, inputs, theta)
        if reference.ndim == 1:
            reference = stream.extended(reference[None])
        parts = [self._align(stream, *pair) for pair in _pairs(theta, reference, stream.networks)]
        return [torch.cat(perms) for perms in zip(*parts, strict=True)]

    def _align(self, stream: Stream, theta: Tensor, reference: Tensor) -> list[Tensor]:
        sums = stream.sums(stream.extended(theta), stream.extended(reference))
        gains = [_correlations(s, theta.dtype) if self.correlation else s.products for s in sums]
        return best_permutations(stream.space, gains)

    def _draw(self, objective: Objective | None) -> Tensor:
        inputs = self.inputs if self.inputs is not None else getattr(objective, "inputs", None)
        if not isinstance(inputs, Tensor):
            raise ValueError(
                "activation matching needs train data: give it `inputs`, or give align() an objective with `inputs`"
            )
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(self.seed))
        return inputs[order[: self.points].sort().values.to(inputs.device)]


class Sums(NamedTuple):
    """Sums over data points and positions of one group's activations, for B networks and their references.

    Attributes:
        products: (B, size, size), of the reference's neuron i and the network's neuron j.
        mine: (B, 2, size), of the network's activations and their squares.
        goal: (B, 2, size), likewise of the reference.
        number: (B,), summands.
    """

    products: Tensor
    mine: Tensor
    goal: Tensor
    number: Tensor


class Stream:
    """Data points in portions, and networks in portions, such that their activations fit the memory limit.

    Args:
        space: The weight space.
        inputs: (N, ...), the data points.
        like: A tensor of the networks' dtype and on their device.

    Attributes:
        networks: How many networks are taken at once.
    """

    def __init__(self, space: WeightSpace, inputs: Tensor, like: Tensor) -> None:
        self.space, self.inputs, self.readers = space, inputs, Readers(space)
        numbers = MEMORY // 8
        limit = max(1, numbers // max(1, self._numbers_per_point(like)))
        self.points = min(len(inputs), limit)
        squares = sum(group.size**2 for group in space.hidden)
        self.networks = max(1, min(limit // self.points, numbers // max(1, squares + space.full_dim)))
        if space.buffers:
            self.networks = max(1, min(self.networks, limit // len(inputs)))

    def extended(self, theta: Tensor) -> Tensor:
        """Networks (b, D + D_b) of the ones given, plain or extended; plain ones get the statistics of the inputs."""
        return batch_statistics(self.space, theta, self.inputs) if theta.shape[1] == self.space.dim else theta

    def sums(self, theta: Tensor, reference: Tensor) -> list[Sums]:
        """Sums for every hidden group, in float64.

        Args:
            theta: (b, D + D_b).
            reference: Of the same shape, or (1, D + D_b), shared.
        """
        shared = len(reference) == 1
        mine, goal = self.space.unflatten(theta), self.space.unflatten(reference[0] if shared else reference)
        single = torch.vmap(self._sums, (0, None if shared else 0, None))
        total: list[Sums] = []
        for inputs in torch.split(self.inputs, self.points):
            part = [Sums(*sums) for sums in single(mine, goal, inputs)]
            total = [_plus(*pair) for pair in zip(total, part, strict=True)] if total else part
        return total

    def _sums(self, mine: dict[str, Tensor], goal: dict[str, Tensor], inputs: Tensor) -> list[Sums]:
        """The sums of one network."""
        a, b = (self._features(weights, inputs) for weights in (mine, goal))
        return [_sum(*([x.double() for x in y[group.name]] for y in (a, b))) for group in self.space.hidden]

    def _features(self, weights: dict[str, Tensor], inputs: Tensor) -> Features:
        some = next(iter(weights.values()))
        frozen = {
            name: value.to(some) if value.is_floating_point() else value.to(some.device)
            for name, value in self.space.template.state_dict().items()
            if name not in weights
        }
        return self.readers.features({**frozen, **weights}, inputs)

    def _numbers_per_point(self, like: Tensor) -> int:
        """Activations of one network and its reference at one data point."""
        theta = self.space.flatten(self.space.template.state_dict(), buffers=True).to(like)
        sizes: list[int] = []
        hooks = [
            module.register_forward_hook(lambda _m, _i, output: sizes.append(output.numel()))
            for module in self.space.template.modules()
            if not list(module.children())
        ]
        try:
            found = self._features(self.space.unflatten(theta), self.inputs[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return 2 * (sum(x.numel() for values in found.values() for x in values) + 2 * max(sizes))


def _plus(first: Sums, second: Sums) -> Sums:
    return Sums(*(a + b for a, b in zip(first, second, strict=True)))


def _sum(mine: list[Tensor], goal: list[Tensor]) -> Sums:
    products = torch.stack([b @ a.mT for a, b in zip(mine, goal, strict=True)]).sum(0)
    number = products.new_tensor(float(sum(x.shape[1] for x in mine)))
    return Sums(products, _powers(mine), _powers(goal), number)


def _powers(values: list[Tensor]) -> Tensor:
    """Sums of activations and of their squares, (2, size)."""
    return torch.stack([torch.stack([x.sum(1), x.square().sum(1)]) for x in values]).sum(0)


def _correlations(sums: Sums, dtype: torch.dtype) -> Tensor:
    """Correlations (B, size, size) of activations of a type; 0 for a neuron that always answers alike.

    Its variance is what rounding makes of it: of the activations themselves, and of their squares, added in float64.
    """
    rounding = max((4 * torch.finfo(dtype).eps) ** 2, 16 * torch.finfo(torch.float64).eps)
    count = sums.number[:, None]
    means, spreads = [], []
    for first, second in (sums.goal.unbind(1), sums.mine.unbind(1)):
        means.append(first / count)
        variance = second / count - means[-1].square()
        spreads.append(torch.where(variance > rounding * second / count, variance, torch.inf).sqrt())
    covariance = sums.products / count[..., None] - means[0][:, :, None] * means[1][:, None, :]
    return covariance / (spreads[0][:, :, None] * spreads[1][:, None, :])


def _pairs(theta: Tensor, reference: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Networks and their references, so many at a time; one shared reference (1, D) goes with all."""
    parts = torch.split(theta, rows)
    goals = torch.split(reference, rows) if len(reference) == len(theta) > 1 else [reference] * len(parts)
    return list(zip(parts, goals, strict=True))
