from itertools import permutations

import pytest
import torch

from wsflow.alignment import assignment
from wsflow.alignment.assignment import assign


def best_of_all(gain):
    n = gain.shape[-1]
    every = torch.tensor(list(permutations(range(n))))
    return gain[..., torch.arange(n), every].sum(-1).amax(-1)


def total(gain, columns):
    return gain.gather(-1, columns[..., None]).sum((-2, -1))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("diagonal", [0.0, 1.0, 10.0])
def test_assignments_are_the_best_of_all(n, diagonal):
    generator = torch.Generator().manual_seed(0)
    gain = torch.randn(40, 2, n, n, generator=generator, dtype=torch.float64) + diagonal * torch.eye(n)
    gain = gain.gather(-1, torch.rand(40, 2, n, generator=generator).argsort(-1)[..., None, :].expand_as(gain))
    found = assign(gain)
    assert torch.equal(found.sort(-1).values, torch.arange(n).expand(40, 2, n))
    torch.testing.assert_close(total(gain, found), best_of_all(gain))


def test_easy_problems_are_not_solved_one_by_one(monkeypatch):
    monkeypatch.setattr(assignment, "linear_sum_assignment", lambda *_, **__: pytest.fail("solved"))
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(20, 6, generator=generator).argsort(1)
    assert torch.equal(assign(torch.nn.functional.one_hot(order, 6).double()), order)
    # the order as it is wins by little, and every row is best in the last column
    settled = torch.eye(6) + 0.8 * torch.rand(20, 6, 6, generator=generator) * (1 - torch.eye(6))
    settled = settled.double() + 10 * torch.arange(6) + torch.randn(20, 6, 1, generator=generator)
    assert torch.equal(assign(settled), torch.arange(6).expand(20, 6))
    with pytest.raises(pytest.fail.Exception, match="solved"):
        assign(torch.randn(20, 6, 6, generator=generator))


@pytest.mark.parametrize("length", [3, 4, 6])
def test_a_cycle_that_gains_is_found_where_no_swap_does(length):
    """Row i gains 1 in column i + 1 and loses 10 elsewhere: only the whole cycle pays."""
    gain = -10 * torch.ones(length, length).double().fill_diagonal_(0)
    gain += 11 * torch.eye(length).roll(1, 1)
    assert assign(gain).tolist() == [*range(1, length), 0]
    gain[0, 1] = -length  # it no longer pays
    assert assign(gain).tolist() == list(range(length))


def test_ties_and_no_problems():
    assert torch.equal(assign(torch.zeros(3, 4, 4)), torch.arange(4).expand(3, 4))
    constant = torch.arange(4.0).expand(3, 4, 4)
    assert torch.equal(assign(constant), torch.arange(4).expand(3, 4))
    assert assign(torch.zeros(0, 4, 4)).shape == (0, 4)
    assert assign(torch.zeros(4, 4)).shape == (4,)
