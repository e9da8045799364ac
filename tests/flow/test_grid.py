"""Grids of times."""

from __future__ import annotations

import pytest
import torch

from wsflow.flow import CosineGrid, DormandPrince, ListGrid, PowerGrid, Sampler, TimeGrid, UniformGrid

GRIDS = {"uniform": UniformGrid(), "power": PowerGrid(3), "early": PowerGrid(0.5), "cosine": CosineGrid()}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("steps", [1, 7])
def test_grids_go_from_0_to_1(grid: TimeGrid, steps: int):
    times = grid.times(steps)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (0, 1)
    assert (times.diff() > 0).all()


def test_grids_space_times_as_they_say():
    assert PowerGrid(3).times(4).tolist() == pytest.approx([0, 1 / 64, 8 / 64, 27 / 64, 1])
    steps = CosineGrid().times(6).diff()
    assert torch.allclose(steps, steps.flip(0))
    assert (steps[:3].diff() > 0).all()
    assert CosineGrid().times(3)[1] == pytest.approx(0.25)


def test_a_list_says_how_many_steps_there_are():
    assert Sampler(steps=16, grid=ListGrid([0, 0.2, 1])).times.tolist() == [0, 0.2, 1]


def test_a_sampler_follows_its_grid():
    assert torch.equal(Sampler(steps=5, power=2).times, Sampler(steps=5, grid=PowerGrid(2)).times)
    with pytest.raises(ValueError, match=r"DormandPrince chooses its own steps: leave power 3.0 out"):
        Sampler(DormandPrince(), power=3.0)
    assert len(Sampler(DormandPrince(), 4, noise=0.1, power=3.0).times) == 5
    with pytest.raises(ValueError, match="exclude each other"):
        Sampler(power=2, grid=UniformGrid())


@pytest.mark.parametrize(
    "points", [[], [0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.4, 1.0], [0.0, float("nan"), 1.0]], ids=str
)
def test_lists_must_be_grids(points: list[float]):
    with pytest.raises(ValueError, match="from 0 to 1"):
        ListGrid(points)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="positive"):
        PowerGrid(0)
    with pytest.raises(ValueError, match="at least 1"):
        UniformGrid().times(0)
