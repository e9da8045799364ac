r"""A normalizing flow fitted to the trained networks of a zoo, by the library ``zuko``.

The flow's density is fitted by maximum likelihood to the networks of train runs, in the k first principal components
of their (aligned) weights, each divided by its standard deviation :math:`s_j`:

.. math:: \theta = \bar\theta + \sum_{j=1}^{k} s_j c_j u_j + r \odot z, \qquad c \sim \text{flow},

where r holds the standard deviations, per weight, of what the components leave out of *validation* networks, and z is
standard normal.  k stays well below the number of networks: as many components as networks can hold every network
exactly.  Training stops when the likelihood of validation networks has not improved for some epochs, and goes back to
the best.  Unlike a flow matching field, this one knows nothing of the network's symmetries.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsflow.posteriors.base import Draws, PosteriorMethod, extra
from wsflow.posteriors.ensemble import trained_epochs
from wsflow.tasks.base import BaseTask
from wsflow.zoo.datamodule import ZooDataModule
from wsflow.zoo.write import MANIFEST

FlowFactory = Callable[[int], nn.Module]
"""Makes a zuko flow over so many features."""


class Components(NamedTuple):
    """Principal components of networks: mean (D,), scaled directions (k, D), standard deviations left out (D,)."""

    mean: Tensor
    scaled: Tensor
    residual: Tensor

    def coordinates(self, theta: Tensor) -> Tensor:
        """Standardised coordinates (n, k) of networks (n, D)."""
        return (theta - self.mean) @ (self.scaled / self.scaled.square().sum(1, keepdim=True)).T


class StaticFlow(PosteriorMethod):
    """A normalizing flow on the weights of a zoo.

    Args:
        data: The zoo, its split by run, and the alignment.
        components: k; at most a fifth of the train networks.
        flow: Makes the flow; a neural spline flow with 3 transforms and hidden layers of 64 by default.
        epochs: At most so many.
        batch_size: Networks per step.
        lr: Of Adam.
        patience: Epochs without improvement after which training stops.
        residual: Times r; 0 leaves out what the components do not hold.

    Raises:
        ValueError: where a number is not positive.
    """

    def __init__(
        self,
        data: ZooDataModule,
        components: int = 32,
        flow: FlowFactory | None = None,
        epochs: int = 300,
        batch_size: int = 128,
        lr: float = 1e-3,
        patience: int = 20,
        residual: float = 1.0,
    ) -> None:
        if min(components, epochs, batch_size, patience) < 1 or not lr > 0 or not residual >= 0:
            raise ValueError("components, epochs, batch_size, lr and patience must be positive, residual not negative")
        self.data, self.components, self.flow, self.epochs = data, components, flow, epochs
        self.batch_size, self.lr, self.patience, self.residual = batch_size, lr, patience, residual

    def reads(self, seed: int) -> list[Path]:
        """The zoo's manifest, which knows its files by their checksums."""
        return [Path(self.data.path) / MANIFEST]

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Fit the flow and draw from it; no gradient of the task's loss is taken.

        ``notes`` hold the number of train networks, the gradient evaluations that trained them, and the log likelihood
        per component of train and validation networks.

        Raises:
            ValueError: where there are too few networks for the components, or none in the validation split.
        """
        make = self.flow or _spline_flow
        began = time.process_time()
        if not len(self.data.rows("val", final_only=True)):
            raise ValueError(f"the val split of {self.data.path} has no runs to stop the training by; change fractions")
        train, val = (self.data.networks(split).x1 for split in ("train", "val"))
        if self.components > len(train) / 5:
            raise ValueError(
                f"{self.components} components of {len(train)} networks: take at most a fifth as many, so that the "
                "components cannot hold single networks"
            )
        components = principal(train, val, self.components)
        with torch.random.fork_rng(devices=[]):  # the library initialises and draws from the global generator
            torch.default_generator.manual_seed(seed)
            flow, likelihood = self._train(make, components.coordinates(train), components.coordinates(val))
            with torch.no_grad():
                drawn: Tensor = flow().sample((n,))
        noise = torch.randn(n, train.shape[1], generator=torch.Generator().manual_seed(seed))
        theta = components.mean + drawn @ components.scaled + self.residual * noise * components.residual
        notes = {
            "zoo.networks": float(len(train)),
            "zoo.gradient_evaluations": len(train) * trained_epochs(self.data),
            **likelihood,
        }
        return Draws(theta, seconds=time.process_time() - began, notes=notes)

    def _train(self, make: FlowFactory, train: Tensor, val: Tensor) -> tuple[Any, dict[str, float]]:
        flow: Any = make(self.components)
        optimizer = torch.optim.Adam(flow.parameters(), lr=self.lr)
        best, state, waited = -float("inf"), copy.deepcopy(flow.state_dict()), 0
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(train)), self.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(-flow().log_prob(train[rows]).mean())
                nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
                optimizer.step()
            reached = self._likelihood(flow, val)
            best, waited = (reached, 0) if reached > best else (best, waited + 1)
            if not waited:
                state = copy.deepcopy(flow.state_dict())
            if waited >= self.patience:
                break
        flow.load_state_dict(state)
        return flow, {"log_likelihood.train": self._likelihood(flow, train), "log_likelihood.val": best}

    @torch.no_grad()
    def _likelihood(self, flow: Any, coordinates: Tensor) -> float:
        return float(flow().log_prob(coordinates).mean()) / self.components


def principal(train: Tensor, val: Tensor, k: int) -> Components:
    """The k first principal components of train networks (N, D), and what they leave out of validation networks."""
    mean = train.mean(0)
    _, values, directions = torch.linalg.svd(train - mean, full_matrices=False)
    scaled = directions[:k] * (values[:k, None] / (len(train) - 1) ** 0.5)
    components = Components(mean, scaled, torch.zeros_like(mean))
    left = val - mean - components.coordinates(val) @ scaled
    return components._replace(residual=left.square().mean(0).sqrt())


def _spline_flow(features: int) -> nn.Module:
    flow: nn.Module = extra("zuko").flows.NSF(features, transforms=3, hidden_features=(64, 64))
    return flow
