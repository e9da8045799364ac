"""Real networks for tests: breast-cancer classifiers, trained together in a few seconds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.tasks import BaseTask
from wsflow.weightspace import GaussianInitializer, Initializer


class Runs(NamedTuple):
    """Starts and final weights of runs, (R, D) each."""

    start: Tensor
    final: Tensor


def train(task: BaseTask, start: Tensor, seed: int = 0, epochs: int = 30, batch: int = 64, lr: float = 2e-3) -> Tensor:
    """Adam from each start (R, D), every run with a data order of its own."""
    inputs, targets = task.data("train")
    generator = torch.Generator().manual_seed(seed)
    theta = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theta], lr=lr)
    for _ in range(epochs):
        order = torch.rand(len(theta), len(inputs), generator=generator).argsort(dim=1)
        for index in order.split(batch, dim=1):
            logits = task.space.forward(theta, inputs[index], per_network=True)
            optimizer.zero_grad()
            task.loss(logits, targets[index]).sum().backward()
            optimizer.step()
    return theta.detach()


def make_split(task: BaseTask, seed: int, initializer: Initializer | None = None) -> dict[str, Runs]:
    """Disjoint sets of runs: 100 to ``train`` a flow on, 60 ``heldout``, and 60 ``unseen`` by anyone."""
    generator = torch.Generator().manual_seed(seed)
    start = (initializer or GaussianInitializer()).sample(task.space, 220, generator)
    every = Runs(start, train(task, start, seed))
    parts = zip(*(tensor.split([100, 60, 60]) for tensor in every), strict=True)
    return dict(zip(("train", "heldout", "unseen"), (Runs(*part) for part in parts), strict=True))
