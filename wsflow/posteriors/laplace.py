r"""Laplace approximations around one trained network, by the library ``laplace-torch`` (Daxberger et al. 2021).

The posterior is :math:`N(\theta^*, P^{-1})` with :math:`P = H + \lambda I`, H the generalised Gauss-Newton matrix of
the negative log-likelihood of the train split: in full, with Kronecker factors, or of the last layer alone.
:math:`\lambda` maximises the marginal likelihood unless it is given.  The noise variance of a regression is the trained
network's mean squared error on train data, as it is where networks are judged (:mod:`wsflow.tasks.regression`).
Running statistics of batch norm stay those of the trained network.

A linearised network is the Gauss-Newton matrix's own model of the function,

.. math:: f_\theta(x) \approx f_{\theta^*}(x) + J_{\theta^*}(x) (\theta - \theta^*),

and predicts better than the network with the drawn weights put in (Immer et al. 2021).  For the last layer both are
the same.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from wsflow.posteriors.base import Draws, PosteriorMethod, extra
from wsflow.posteriors.recipe import Recipe
from wsflow.tasks.base import BaseTask
from wsflow.tasks.regression import SMALLEST_VARIANCE, RegressionTask
from wsflow.weightspace import WeightSpace

POINTS = 500
"""Data points that the Gauss-Newton matrix is added up over at once."""


class LastLayerLaplace(PosteriorMethod):
    r"""The weights and biases of the last layer, with the full Gauss-Newton matrix.

    Args:
        recipe: The training of the network.
        prior_precision: :math:`\lambda`; by default, what maximises the marginal likelihood.
    """

    def __init__(self, recipe: Recipe, prior_precision: float | None = None) -> None:
        self.recipe, self.prior_precision = recipe, prior_precision

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Train one network and draw the last layers of n."""
        return _fit(task, n, seed, self.recipe, self.prior_precision, ("last_layer", "full"), linearised=False)


class KroneckerLaplace(PosteriorMethod):
    r"""All weights, with one Kronecker product for each layer.

    Args:
        recipe: The training of the network.
        prior_precision: :math:`\lambda`; by default, what maximises the marginal likelihood.
        linearised: Whether outputs are those of the linearised network.
    """

    def __init__(self, recipe: Recipe, prior_precision: float | None = None, linearised: bool = True) -> None:
        self.recipe, self.prior_precision, self.linearised = recipe, prior_precision, linearised

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Train one network and draw the weights of n."""
        return _fit(task, n, seed, self.recipe, self.prior_precision, ("all", "kron"), self.linearised)


class FullLaplace(PosteriorMethod):
    r"""All weights, with the full Gauss-Newton matrix (D, D): for small networks.

    Args:
        recipe: The training of the network.
        prior_precision: :math:`\lambda`; by default, what maximises the marginal likelihood.
        linearised: Whether outputs are those of the linearised network.
    """

    def __init__(self, recipe: Recipe, prior_precision: float | None = None, linearised: bool = True) -> None:
        self.recipe, self.prior_precision, self.linearised = recipe, prior_precision, linearised

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Train one network and draw the weights of n."""
        return _fit(task, n, seed, self.recipe, self.prior_precision, ("all", "full"), self.linearised)


def linear(task: BaseTask, centre: Tensor, theta: Tensor) -> Callable[[Tensor], Tensor]:
    """Predictions (n, N, C) of inputs (N, ...) by networks that are linear in their weights around a centre.

    They keep the centre's running statistics.

    Args:
        task: Their task.
        centre: (D,).
        theta: (n, D).
    """

    def predict(inputs: Tensor) -> Tensor:
        return torch.cat([task.predictions(part(x)) for x in torch.split(inputs, POINTS)], dim=1)

    statistics = task.with_statistics(centre[None])[:, len(centre) :]

    def part(inputs: Tensor) -> Tensor:
        def outputs(weights: Tensor) -> Tensor:
            return task.space.forward(torch.cat([weights[None], statistics], 1), inputs.to(weights))[0]

        def along(direction: Tensor) -> Tensor:
            pair: Any = torch.func.jvp(outputs, (centre,), (direction,))  # typed as if there were a third result
            result: Tensor = pair[0] + pair[1]
            return result

        return torch.vmap(along)(theta - centre)

    return predict


def _fit(
    task: BaseTask,
    n: int,
    seed: int,
    recipe: Recipe,
    prior_precision: float | None,
    kind: tuple[str, str],
    linearised: bool,
) -> Draws:
    library = _library()
    began = time.process_time()
    centre = recipe.train(task, 1, seed)[0]
    approximation = _approximate(library, task, centre, prior_precision, kind)
    drawn = approximation.sample(n, generator=torch.Generator().manual_seed(seed)).detach()
    theta = _weights(task.space, centre, approximation, drawn)
    predict = linear(task, centre, theta) if linearised else None
    # The Gauss-Newton matrix takes a gradient of every output.
    outputs = task.space.forward(centre[None], task.probe(1)).shape[-1]
    notes = {"prior_precision": float(approximation.prior_precision)}
    return Draws(theta, predict, time.process_time() - began, float(recipe.epochs + outputs), notes)


def _approximate(library: Any, task: BaseTask, centre: Tensor, precision: float | None, kind: tuple[str, str]) -> Any:
    network = task.space.to_module(task.with_statistics(centre[None])[0])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in task.space.names)
    likelihood, noise = "classification", 1.0
    if isinstance(task, RegressionTask):
        likelihood = "regression"
        noise = float(task.evaluate(centre[None], "train")["mse"].clamp(min=SMALLEST_VARIANCE).sqrt())
    inputs, targets = task.data("train")
    with _quiet(), torch.random.fork_rng(devices=[]):  # loaders and estimators draw from the global generator
        torch.default_generator.manual_seed(0)
        subset, structure = kind
        settings = {"subset_of_weights": subset, "hessian_structure": structure, "sigma_noise": noise}
        found = library.Laplace(network, likelihood, **settings)
        try:
            found.fit(DataLoader(TensorDataset(inputs, targets), batch_size=POINTS))
        except NotImplementedError as error:
            raise ValueError(f"laplace-torch has no {structure} approximation for this network: {error}") from error
        if precision is None:
            found.optimize_prior_precision(pred_type="glm", method="marglik", prior_structure="scalar")
        else:
            found.prior_precision = precision
    return found


def _weights(space: WeightSpace, centre: Tensor, approximation: Any, drawn: Tensor) -> Tensor:
    """Draws of the library's parameters (n, P), in the space's order and with the others at the centre, (n, D)."""
    network: Any = approximation.model
    if hasattr(network, "last_layer"):
        network, parameters = network.model, list(network.last_layer.parameters())
    else:
        parameters = approximation.params
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    values = {name: value.expand(len(drawn), *value.shape) for name, value in space.unflatten(centre).items()}
    for parameter, part in zip(parameters, torch.split(drawn, [p.numel() for p in parameters], dim=1), strict=True):
        values[names[id(parameter)]] = part.view(len(drawn), *parameter.shape)
    return space.flatten(values)


def _library() -> Any:
    with warnings.catch_warnings():
        # The backends that it imports script functions; torch deprecated that in 2.15.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        return extra("laplace")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's reminder about approximations of the predictive, none of which is used here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "By default `link_approx` is `probit`")
        yield
