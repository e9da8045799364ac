"""Laws of time: the right law, within [0, 1)."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, kstest

from wsflow.flow import BetaTime, TimeLaw, UniformTime
from wsflow.flow.time import LATEST

LAWS = {
    "uniform": (UniformTime(), (1, 1)),
    "default": (BetaTime(), (1, 2)),
    "beta(1, 0.5)": (BetaTime(1, 0.5), (1, 0.5)),
    "beta(3, 1)": (BetaTime(3, 1), (3, 1)),
    "beta(2, 5)": (BetaTime(2, 5), (2, 5)),
}


@pytest.mark.parametrize(("law", "parameters"), LAWS.values(), ids=LAWS.keys())
def test_law(law: TimeLaw, parameters: tuple[float, float], generator: torch.Generator):
    t = law.sample(4000, generator)
    assert t.dtype == torch.float32
    kept = t[t < LATEST]  # the atom at LATEST holds the tail
    reference = beta(*parameters)
    assert kstest(kept.numpy(), lambda x: reference.cdf(x) / reference.cdf(LATEST)).pvalue > 0.01


@pytest.mark.parametrize(("law", "parameters"), LAWS.values(), ids=LAWS.keys())
def test_quantile_inverts_the_distribution(law: TimeLaw, parameters: tuple[float, float]):
    u = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert torch.allclose(torch.as_tensor(beta(*parameters).cdf(law.quantile(u).numpy())), u, atol=1e-9)


def test_draws_end_before_one():
    t = BetaTime(50, 0.01).sample(1000, torch.Generator().manual_seed(0))
    assert t.max() == torch.tensor(LATEST)
    assert t.max() < 1


def test_draws_follow_the_generator():
    a, b = (BetaTime().sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, -1), (float("nan"), 1)])
def test_parameters_must_be_positive(a: float, b: float):
    with pytest.raises(ValueError, match="must be positive"):
        BetaTime(a, b)
