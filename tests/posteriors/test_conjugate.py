"""Each sampler and approximation recovers a posterior that is known."""

from __future__ import annotations

import pytest
import torch
from conjugate import LOSS_WEIGHT, PRIOR, Line, Normal, check_draws, design, posterior

from wsflow.posteriors import (
    HMC,
    SGHMC,
    SGLD,
    FullLaplace,
    KroneckerLaplace,
    MeanFieldVI,
    PosteriorMethod,
    Recipe,
    Schedule,
)
from wsflow.zoo import Adam

SHORT = Recipe(epochs=20, batch_size=40, optimizer=Adam(0.1))
LONG = Recipe(epochs=200, batch_size=40, optimizer=Adam(0.05))
WHOLE = Schedule(chains=400, burn_in=60, interval=30, batch_size=40)
PROBLEM = {"prior_std": PRIOR, "loss_weight": LOSS_WEIGHT}


@pytest.fixture(scope="module")
def task() -> Line:
    return Line()


@pytest.mark.parametrize(
    "method",
    [
        SGLD(SHORT, WHOLE, lr=0.03, **PROBLEM),
        SGHMC(SHORT, WHOLE, lr=0.1, friction=2.0, **PROBLEM),
        HMC(SHORT, chains=100, warmup=60, iterations=20, leapfrog=5, step_size=0.05, **PROBLEM),
    ],
    ids=lambda method: method.name,
)
def test_samplers_draw_from_the_posterior(task: Line, method: PosteriorMethod) -> None:
    draws = method.fit(task, 2000, seed=0)
    assert draws.theta is not None
    check_draws(draws.theta, posterior(task), 0.12)


def test_hmc_says_that_its_chains_agree(task: Line) -> None:
    notes = HMC(SHORT, 20, 60, 400, 5, 0.05, **PROBLEM).fit(task, 10, seed=0).notes
    assert 0.6 < notes["acceptance"] < 0.95
    assert max(value for name, value in notes.items() if name.startswith("r_hat")) < 1.1


def test_mean_field_has_the_inverse_diagonal_of_the_precision(task: Line) -> None:
    method = MeanFieldVI(SHORT, epochs=500, batch_size=40, lr=0.05, samples=16, initial_std=0.1, **PROBLEM)
    theta, exact = method.fit(task, 4000, seed=0).theta, posterior(task)
    assert theta is not None
    wanted = torch.linalg.inv(exact.covariance).diagonal().reciprocal().diag()
    check_draws(theta, Normal(exact.mean, wanted), 0.12)


class Quiet(Line):
    """The same with a tenth of the values and of the noise."""

    def load(self):
        return {split: (inputs, targets / 10) for split, (inputs, targets) in super().load().items()}


@pytest.mark.parametrize("task", [Line(), Quiet()], ids=["noise 1", "noise 0.1"])
@pytest.mark.parametrize("kind", [FullLaplace, KroneckerLaplace])
def test_laplace_is_exact_for_a_gaussian(task: Line, kind: type[FullLaplace]) -> None:
    """Least squares is the centre; Kronecker factors leave out what joins the bias to the weights, and no more."""
    draws = kind(LONG, prior_precision=1 / PRIOR**2).fit(task, 4000, seed=0)
    x, y = design(task), task.data("train")[1].double()
    noise = (y - x @ torch.linalg.lstsq(x, y).solution).square().mean()
    precision = x.T @ x / noise + torch.eye(3) / PRIOR**2
    if kind is KroneckerLaplace:
        precision[2, :2] = precision[:2, 2] = 0
    assert draws.theta is not None
    assert draws.predict is not None
    wanted = Normal(torch.linalg.lstsq(x, y).solution[:, 0], torch.linalg.inv(precision))
    check_draws(draws.theta, wanted, 0.12)
    inputs = task.data("test")[0]
    torch.testing.assert_close(draws.predict(inputs)[:5], task.space.forward(draws.theta[:5], inputs))
