r"""Grids of times: where the steps of a solver begin and end.

Step k of K goes from :math:`g(k / K)` to :math:`g((k + 1) / K)`, with g increasing from 0 to 1.  A flow that pairs a
start with its own trained network decides near t = 0 what becomes of a start, and changes fast there: with g(s) = s^3,
16 steps solved the flow of 784-10-10 more exactly than 32 equal ones (docs/results.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class TimeGrid(ABC):
    """A law by which times are spaced."""

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """Times from 0 to 1 of a number of steps, (steps + 1,), float64, strictly increasing.

        Raises:
            ValueError: for fewer than one step.
        """


class UniformGrid(TimeGrid):
    """Equal steps."""

    def times(self, steps: int) -> Tensor:
        """The fractions k / K."""
        return _fractions(steps)


class PowerGrid(TimeGrid):
    """Steps that grow, or shrink, with time: g(s) = s^p.

    Args:
        power: p; above 1 for smaller steps at early times.

    Raises:
        ValueError: for a power that is not positive.
    """

    def __init__(self, power: float = 3.0) -> None:
        if not power > 0:
            raise ValueError(f"the power of a grid must be positive, got {power}")
        self.power = power

    def times(self, steps: int) -> Tensor:
        """(k / K)^p."""
        return _fractions(steps) ** self.power


class CosineGrid(TimeGrid):
    """Smaller steps at both ends: g(s) = (1 - cos(pi s)) / 2."""

    def times(self, steps: int) -> Tensor:
        """(1 - cos(pi k / K)) / 2, from 0 to 1 without rounding."""
        times = (1 - (torch.pi * _fractions(steps)).cos()) / 2
        times[0], times[-1] = 0.0, 1.0
        return times


class ListGrid(TimeGrid):
    """Times of one's own; they say how many steps there are, whatever number is asked for.

    Args:
        points: Strictly increasing from 0 to 1.

    Raises:
        ValueError: for times that do not.
    """

    def __init__(self, points: Sequence[float]) -> None:
        self.points = [float(point) for point in points]
        if self.points[:1] != [0.0] or self.points[-1:] != [1.0] or not all(a < b for a, b in pairwise(self.points)):
            raise ValueError(f"a grid's times must increase strictly from 0 to 1, got {self.points}")

    def times(self, steps: int) -> Tensor:
        """The times given."""
        return torch.tensor(self.points, dtype=torch.float64)


def _fractions(steps: int) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)
