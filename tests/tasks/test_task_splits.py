from __future__ import annotations

import pytest
import torch

from wsflow.tasks.splits import split_indices, standardise


@pytest.mark.parametrize("count", [10, 57, 569])
@pytest.mark.parametrize("stratified", [False, True])
def test_parts_are_disjoint_and_cover(count, stratified):
    labels = torch.arange(count) % 3 if stratified else None
    parts = split_indices(count, seed=3, labels=labels)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))
    assert [len(part) for part in parts[1:]] == [round(0.1 * count)] * 2


def test_classes_are_in_proportion_to_within_one():
    labels = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    counts = [labels[part].bincount(minlength=2) for part in split_indices(100, seed=0, labels=labels)]
    for found, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        assert abs(int(found[1]) - 10 * share) <= 1


def test_the_seed_decides():
    first, same, other = (split_indices(50, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("count", "fractions", "message"),
    [(100, (0.5, 0.1), "add up to 1"), (100, (1.2, -0.2), "at least 0"), (3, (0.8, 0.1, 0.1), "too few")],
)
def test_impossible_splits_are_refused(count, fractions, message):
    with pytest.raises(ValueError, match=message):
        split_indices(count, fractions)


def test_constant_features_become_zero():
    train, other = standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[2.0, 5.0]]))
    assert torch.equal(train, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(other, torch.tensor([[0.0, 0.0]]))
