"""Real networks to hold the metrics against: breast-cancer classifiers, trained together in a few seconds."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from wsflow.metrics import Evaluation
from wsflow.tasks import BaseTask, BreastCancer
from wsflow.weightspace import GaussianInitializer


class Runs(NamedTuple):
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


def make_runs(task: BaseTask, n: int, seed: int, **kwargs: float) -> Runs:
    start = GaussianInitializer().sample(task.space, n, torch.Generator().manual_seed(seed))
    return Runs(start, train(task, start, seed, **kwargs))


@pytest.fixture(scope="session")
def task() -> BreastCancer:
    return BreastCancer()


@pytest.fixture(scope="session")
def runs(task: BreastCancer) -> dict[str, Runs]:
    """Three disjoint sets of runs: 100 to train a flow on, 60 held out, 60 more that no one has seen."""
    every = make_runs(task, 220, seed=1)
    parts = zip(*(tensor.split([100, 60, 60]) for tensor in every), strict=True)
    return dict(zip(("train", "heldout", "unseen"), (Runs(*part) for part in parts), strict=True))


@pytest.fixture(scope="session")
def evaluation(task: BreastCancer, runs: dict[str, Runs]) -> Evaluation:
    return Evaluation(task, runs["train"].final, runs["heldout"].final, starts=runs["train"].start)
