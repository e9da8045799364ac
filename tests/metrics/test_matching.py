from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from wsflow.metrics import CanonicalWeights, Material, Noisy, match_noise
from wsflow.metrics.matching import LIMIT
from wsflow.weightspace import WeightSpace


class Counted:
    """Novelty as a function of noise, and how often it was asked for."""

    def __init__(self, novelty: Callable[[float], float]) -> None:
        self.novelty, self.calls = novelty, 0

    def __call__(self, size: float) -> float:
        self.calls += 1
        return self.novelty(size)


SHAPES = {
    "in squares": lambda s, scale: math.hypot(0.3, s / scale),
    "from nothing": lambda s, scale: s / scale,
    "steep": lambda s, scale: 0.5 + (s / scale) ** 6,
    "flat": lambda s, scale: 1.1 * math.tanh(s / scale),
    "late": lambda s, scale: max(0.1, 4 * (s / scale - 1)),
}


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_noise_brings_novelty_within_two_percent_in_a_few_steps(shape: str, scale: float) -> None:
    novelty = Counted(lambda s: SHAPES[shape](s, scale))
    size = match_noise(novelty)
    assert novelty(size) == pytest.approx(1, abs=0.02)
    assert novelty.calls <= 20


def test_no_noise_below_the_start_is_tried() -> None:
    tried = []
    size = match_noise(lambda s: tried.append(s) or math.hypot(0.1, s), start=0.3)
    assert min(tried) == 0.3
    assert size == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("value", [0.981, 1.0, 5.0, math.inf], ids=str)
def test_what_is_new_enough_is_left_alone(value: float) -> None:
    assert match_noise(lambda _: value) == 0
    assert match_noise(lambda _: value, start=0.2) == 0.2


def test_what_is_more_than_two_percent_below_is_not() -> None:
    assert match_noise(lambda s: 0.975 + s) > 0


def test_noise_that_is_never_enough_ends_at_the_limit() -> None:
    assert match_noise(lambda _: 0.5) == LIMIT


@pytest.mark.parametrize("above", [9.0, math.inf, math.nan], ids=str)
def test_behind_a_jump_networks_are_new_enough(above: float) -> None:
    novelty = Counted(lambda s: 0.1 if s < 0.7 else above)
    assert 0.7 <= match_noise(novelty) < 0.71
    assert novelty.calls < 40


def test_one_draw_serves_every_size(space: WeightSpace, theta: torch.Tensor) -> None:
    form = CanonicalWeights(space)
    x = form(theta)
    noisy = Noisy(theta, Material(form, theta, x), torch.Generator().manual_seed(0))
    assert noisy(0.0) is theta
    assert torch.equal(noisy(0.5), noisy(0.5))
    scales = [(form(noisy(size))[:, space.dim :] - x[:, space.dim :]) / size for size in (0.25, 1.0)]
    torch.testing.assert_close(*scales)
    assert scales[0].abs().min() > 0
