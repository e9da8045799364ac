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


def test_rows_or_columns_with_different_best_entries_are_not_solved(monkeypatch):
    monkeypatch.setattr(assignment, "linear_sum_assignment", lambda *_, **__: pytest.fail("solved"))
    order = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).argsort(1)
    rows = torch.nn.functional.one_hot(order, 6).double()
    assert torch.equal(assign(rows), order)
    shifted = rows + 10 * torch.arange(6.0)  # every row is best in the last column, every column in its own row
    assert torch.equal(assign(shifted), order)
    with pytest.raises(pytest.fail.Exception, match="solved"):
        assign(torch.randn(20, 6, 6, generator=torch.Generator().manual_seed(0)))


def test_ties_and_no_problems():
    assert torch.equal(assign(torch.zeros(3, 4, 4)).sort(1).values, torch.arange(4).expand(3, 4))
    assert assign(torch.zeros(0, 4, 4)).shape == (0, 4)
    assert assign(torch.zeros(4, 4)).shape == (4,)
