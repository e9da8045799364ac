"""A sample's numbers depend on (seed, index) alone, and no two samples share them."""

from __future__ import annotations

import pytest
import torch

from wsflow.weightspace.randomness import _mix, fork, normal_like, sample_generator, sample_generators


def draw(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(5, generator=generator)


def test_same_numbers_for_same_seed_and_index():
    assert torch.equal(draw(sample_generator(3, 7)), draw(sample_generator(3, 7)))


@pytest.mark.parametrize(("seed", "index"), [(3, 8), (4, 7), (7, 3)])
def test_other_numbers_for_another_seed_or_index(seed: int, index: int):
    assert not torch.equal(draw(sample_generator(3, 7)), draw(sample_generator(seed, index)))


def test_no_two_of_many_samples_share_a_stream():
    # The CPU generator reads 32 bits: hashed seeds would collide here about 0.3 times on average.
    seeds = {g.initial_seed() & (2**32 - 1) for g in sample_generators(0, range(50_000))}
    assert len(seeds) == 50_000


def test_purposes_have_streams_of_their_own():
    seeds = [
        {g.initial_seed() for g in (sample_generator(0, i, purpose) for i in range(2000))}
        for purpose in ((), (0,), (1,), (0, 1))
    ]
    assert all(len(one) == 2000 for one in seeds)
    assert len(set.union(*seeds)) == 8000
    assert torch.equal(draw(sample_generator(0, 3, [1])), draw(sample_generator(0, 3, (1,))))


def test_mixing_is_a_bijection():
    values = range(0, 2**32, 2**32 // 50_000)
    assert len({_mix(v) for v in values}) == len(values)


def test_streams_of_neighbours_are_uncorrelated():
    rows = torch.stack([torch.randn(2000, generator=g) for g in sample_generators(0, range(20))])
    off_diagonal = torch.corrcoef(rows) - torch.eye(20)
    assert off_diagonal.abs().max() < 5 / 2000**0.5
    first = torch.stack([torch.randn((), generator=g) for g in sample_generators(1, range(2000))])
    assert abs(first.mean()) < 4 / 2000**0.5
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 4 / 2000**0.5


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (0, 2**32)])
def test_numbers_out_of_range_are_refused(seed: int, index: int):
    with pytest.raises(ValueError, match="index must lie in"):
        sample_generator(seed, index)


def test_fork_is_deterministic_and_unlike_its_parent():
    child, twin = fork(sample_generator(0, 0)), fork(sample_generator(0, 0))
    numbers = torch.randn(2000, generator=child)
    assert torch.equal(numbers, torch.randn(2000, generator=twin))
    parent = torch.randn(2000, generator=sample_generator(0, 0))
    assert abs(torch.corrcoef(torch.stack([numbers, parent]))[0, 1]) < 4 / 2000**0.5


def test_normal_like_follows_shape_and_type(generator: torch.Generator):
    x = torch.zeros(2, 3, dtype=torch.float64)
    z = normal_like(x, generator)
    assert z.shape == x.shape
    assert z.dtype == torch.float64
    assert torch.equal(z, normal_like(x, torch.Generator().manual_seed(0)))
