from __future__ import annotations

import pytest
import torch
from scipy.stats import mannwhitneyu

from wsflow.metrics import nn_ratio, z_u


def test_ratio_of_means() -> None:
    assert nn_ratio(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0])) == pytest.approx(0.75)


@pytest.mark.parametrize(("n", "m"), [(30, 20), (5, 40)])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_z_u_standardises_the_mann_whitney_statistic(n: int, m: int, ties: bool) -> None:
    sample, heldout = torch.rand(n), torch.rand(m) + 0.1
    if ties:
        sample, heldout = (sample * 4).round(), (heldout * 4).round()
    u = mannwhitneyu(sample.numpy(), heldout.numpy()).statistic
    assert z_u(sample, heldout) == pytest.approx((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)


def test_z_u_is_about_standard_normal_when_nothing_is_copied() -> None:
    values = torch.tensor([z_u(*torch.rand(2, 50)) for _ in range(400)])
    assert abs(values.mean()) < 0.15
    assert abs(values.std() - 1) < 0.1


def test_z_u_of_copies_is_far_below_zero_and_of_strangers_far_above() -> None:
    heldout = torch.rand(200) + 1
    assert z_u(torch.zeros(200), heldout) == pytest.approx(-17.3, abs=0.05)
    assert z_u(torch.full((200,), 9.0), heldout) == pytest.approx(17.3, abs=0.05)
    assert z_u(torch.ones(7), torch.ones(9)) == 0


def test_z_u_takes_the_first_of_each() -> None:
    sample, heldout = torch.rand(300), torch.rand(250)
    assert z_u(sample, heldout) == z_u(sample[:200], heldout[:200])
    assert z_u(sample, heldout, count=10) == z_u(sample[:10], heldout[:10])


@pytest.mark.parametrize("metric", [nn_ratio, z_u])
def test_nothing_to_compare_is_refused(metric: type) -> None:
    with pytest.raises(ValueError, match="0 and 3"):
        metric(torch.rand(0), torch.rand(3))


def test_a_leaking_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split the zoo by run"):
        nn_ratio(torch.rand(3), torch.zeros(3))
