"""Batches of networks, drawn by indexing whole tensors.

The order of epoch e is a function of (seed, e) alone, drawn on the CPU and copied to where the networks are once.  A
loader counts its epochs and batches and can be set back to any of them, so that a fit resumed in the middle of an epoch
goes on with the batch it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsflow.weightspace import ZooBatch
from wsflow.weightspace.transfer import send


class NetworkLoader:
    """Batches of the snapshots ``rows``.

    With several processes, each global batch of ``world * batch_size`` networks is cut into one part per process.  When
    shuffling, the networks of an epoch that fill no global batch are left out of it; otherwise every network is given
    exactly once, to one of the processes.

    Args:
        fetch: From row numbers (B,) and a generator, the same on every process, to a batch.
        rows: (N,) row numbers.
        batch_size: B, per process.
        shuffle: Whether each epoch has its own order.
        seed: Of the orders and of what ``fetch`` draws.
        passes: How often an epoch goes through the networks.
        rank: This process.
        world: The number of processes.
        first_epoch: The epoch that the first iteration gives.
        device: Where ``fetch`` takes row numbers.
    """

    def __init__(
        self,
        fetch: Callable[[Tensor, torch.Generator], ZooBatch],
        rows: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        passes: int = 1,
        rank: int = 0,
        world: int = 1,
        first_epoch: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.fetch, self.rows, self.batch_size = fetch, rows, batch_size
        self.shuffle, self.seed, self.passes, self.rank, self.world = shuffle, seed, passes, rank, world
        self.device = device or torch.device("cpu")
        self._epoch, self._batch, self._resumed = first_epoch - 1, 0, False

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        if self.shuffle:
            return self.passes * len(self.rows) // (self.world * self.batch_size)
        return -(-len(self.rows[self.rank :: self.world]) // self.batch_size)

    def __iter__(self) -> Iterator[ZooBatch]:
        """The next epoch or, once after :meth:`load_state_dict`, the rest of the epoch that was left."""
        if not self._resumed or self._batch >= len(self):
            self._epoch, self._batch = self._epoch + 1, 0
        self._resumed = False
        batches = self.batches(self._epoch)
        while self._batch < len(batches):
            index, generator = batches[self._batch], self._generator(1, self._epoch, self._batch)
            self._batch += 1
            yield self.fetch(index, generator)

    def batches(self, epoch: int) -> list[Tensor]:
        """The row numbers of each of this process's batches in an epoch."""
        if not self.shuffle:
            mine = self.rows[self.rank :: self.world].contiguous()
            return list(torch.split(send(mine, self.device), self.batch_size))
        generator = self._generator(0, epoch)
        order = torch.cat([torch.randperm(len(self.rows), generator=generator) for _ in range(self.passes)])
        size = self.world * self.batch_size
        whole = order[: len(self) * size].view(len(self), self.world, self.batch_size)
        return list(send(self.rows[whole[:, self.rank]], self.device))

    def places(self, batch: int) -> range:
        """Where the networks of this process's batch stand in an epoch, in the order in which one process gives them.

        A range of the batch size, of which the last batch in order may need fewer.
        """
        if self.shuffle:
            first = (batch * self.world + self.rank) * self.batch_size
            return range(first, first + self.batch_size)
        first = batch * self.batch_size * self.world + self.rank
        return range(first, first + self.batch_size * self.world, self.world)

    def state_dict(self) -> dict[str, Any]:
        """Which batch comes next, and how many networks the processes have in one together."""
        return {"epoch": self._epoch, "batch": self._batch, "networks": self.world * self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch where :meth:`state_dict` was called.

        Raises:
            ValueError: where batches had another size, so that epochs and the learning rate's schedule had other steps.
        """
        had, size = state.get("networks"), self.world * self.batch_size  # older states do not say
        if had not in (None, size):
            advice = f"pass --data.batch_size {had // self.world}"
            if had % self.world:
                advice = f"use a number of processes that divides {had}"
            raise ValueError(
                f"the training that is to go on had batches of {had} networks, and {self.world} process(es) with "
                f"batch_size {self.batch_size} have {size}: {advice}"
            )
        self._epoch, self._batch, self._resumed = state["epoch"], state["batch"], True

    def _generator(self, *key: int) -> torch.Generator:
        state = np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) % 2**63)
