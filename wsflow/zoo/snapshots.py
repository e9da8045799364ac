"""Which points of a training trajectory a zoo keeps.

A step is one optimiser step; the snapshot of step k is taken after it.  The last step of a run is always kept, so that
every run has a final snapshot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SnapshotSchedule(ABC):
    """Chooses snapshots; init arguments are kept as attributes of the same name."""

    @abstractmethod
    def steps(self, steps_per_epoch: int, epochs: int) -> list[int]:
        """Ascending steps, counted from 1, at which snapshots are taken; the last is ``steps_per_epoch * epochs``."""

    def keep(self, val_loss: Tensor) -> Tensor:
        """Which of the S snapshots of B runs are kept, given their validation loss (B, S): bool (B, S), all here."""
        return torch.ones_like(val_loss, dtype=torch.bool)


class FinalSnapshot(SnapshotSchedule):
    """One snapshot per run, at the end."""

    def steps(self, steps_per_epoch: int, epochs: int) -> list[int]:
        """The last step."""
        return [steps_per_epoch * epochs]


class EverySnapshot(SnapshotSchedule):
    """A snapshot every so many steps, after the first epochs.

    Args:
        interval: Steps between snapshots.
        discard_epochs: Epochs at the beginning that give no snapshot.

    Raises:
        ValueError: unless the interval is positive and ``discard_epochs`` not negative.
    """

    def __init__(self, interval: int = 4, discard_epochs: int = 0) -> None:
        if interval < 1 or discard_epochs < 0:
            raise ValueError(f"interval must be at least 1 and discard_epochs 0, got {interval} and {discard_epochs}")
        self.interval, self.discard_epochs = interval, discard_epochs

    def steps(self, steps_per_epoch: int, epochs: int) -> list[int]:
        """``interval``, ``2 * interval``, ... after the discarded epochs, and the last step."""
        first, last = steps_per_epoch * self.discard_epochs, steps_per_epoch * epochs
        return [*range(first + self.interval, last, self.interval), last]


class ValidationSnapshot(SnapshotSchedule):
    """A snapshot every so many steps, kept from the run's smallest validation loss on.

    Args:
        interval: Steps between snapshots.

    Raises:
        ValueError: unless the interval is positive.
    """

    def __init__(self, interval: int = 4) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.interval = interval

    def steps(self, steps_per_epoch: int, epochs: int) -> list[int]:
        """``interval``, ``2 * interval``, ..., and the last step."""
        last = steps_per_epoch * epochs
        return [*range(self.interval, last, self.interval), last]

    def keep(self, val_loss: Tensor) -> Tensor:
        """The snapshot of smallest validation loss and all later ones."""
        best = val_loss.nan_to_num(nan=torch.inf).argmin(1, keepdim=True)
        return torch.arange(val_loss.shape[1]) >= best
