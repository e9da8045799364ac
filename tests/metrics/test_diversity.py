from __future__ import annotations

import math

import pytest
import torch

from wsflow.metrics import dispersion, moments


def test_dispersion_of_scaled_clouds() -> None:
    a, b = torch.randn(40, 6, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    found = dispersion({"a": 0.5 * a + 3, "b": 2 * b}, {"a": a, "b": b})
    va, vb = a.var(0).sum(), b.var(0).sum()
    assert found["a"] == pytest.approx(0.5)
    assert found["b"] == pytest.approx(2.0)
    assert found[""] == pytest.approx(float(((0.25 * va + 4 * vb) / (va + vb)).sqrt()))


def test_variances_are_unbiased() -> None:
    few, many = torch.randn(3, 4000), torch.randn(500, 4000)
    assert dispersion({"w": few}, {"w": many})[""] == pytest.approx(1, abs=0.03)


def test_what_never_varies_has_dispersion_one() -> None:
    fixed, free = torch.ones(5, 2), torch.randn(5, 2)
    assert dispersion({"w": fixed}, {"w": fixed}) == {"": 1.0, "w": 1.0}
    assert dispersion({"w": free}, {"w": fixed})["w"] == math.inf


def test_one_network_has_no_dispersion() -> None:
    with pytest.raises(ValueError, match="at least 2 networks, got 1"):
        dispersion({"w": torch.ones(1, 2)}, {"w": torch.ones(3, 2)})


def test_moments_of_a_known_law() -> None:
    theta = 1 + 0.5 * torch.randn(2000, 50)
    theta[:, 0] += 1
    found = moments(theta, 1.0)
    assert found["grand_mean"] == pytest.approx(1 + 1 / 50, abs=0.01)
    assert found["mean_error"] == pytest.approx((1 / 50) ** 0.5, rel=0.1)
    assert found["std"] == pytest.approx(0.5, rel=0.01)
