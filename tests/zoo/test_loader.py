from __future__ import annotations

import re
from itertools import chain

import pytest
import torch

from wsflow.weightspace import ZooBatch
from wsflow.zoo import NetworkLoader


def fetch(rows, generator):
    return ZooBatch(torch.rand(len(rows), 2, generator=generator), None, rows)


def make(count=23, batch_size=4, **kwargs):
    return NetworkLoader(fetch, torch.arange(count) * 10, batch_size, **kwargs)


def seen(loader):
    return [batch.run.tolist() for batch in loader]


def flat(batches):
    return list(chain.from_iterable(batches))


def test_in_order_every_row_comes_once():
    assert flat(seen(make())) == list(range(0, 230, 10))
    assert len(make()) == 6


def test_shuffled_epochs_differ_and_are_whole_batches():
    loader = make(shuffle=True)
    first, second = seen(loader), seen(loader)
    assert [len(batch) for batch in first] == [4] * 5 == [len(batch) for batch in second]
    assert first != second
    assert len(set(flat(first))) == 20
    assert seen(make(shuffle=True)) == first
    assert seen(make(shuffle=True, seed=1)) != first


def test_a_loader_may_begin_at_a_later_epoch():
    loader = make(shuffle=True)
    seen(loader)
    assert seen(make(shuffle=True, first_epoch=1)) == seen(loader)


@pytest.mark.parametrize(
    ("world", "size", "advice"),
    [
        (1, 3, "1 process(es) with batch_size 3 have 3: pass --data.batch_size 4"),
        (2, 4, "2 process(es) with batch_size 4 have 8: pass --data.batch_size 2"),
        (3, 4, "use a number of processes that divides 4"),
    ],
)
def test_a_loader_goes_on_with_batches_of_the_same_size_alone(world, size, advice):
    left = make(shuffle=True)
    list(left)
    state, other = left.state_dict(), make(shuffle=True, batch_size=size, world=world)
    with pytest.raises(ValueError, match=re.escape(advice)):
        other.load_state_dict(state)
    del state["networks"]  # as older states are
    other.load_state_dict(state)
    make(shuffle=True, batch_size=2, world=2).load_state_dict(left.state_dict())


def test_passes_make_longer_epochs():
    loader = make(shuffle=True, passes=3)
    rows = flat(seen(loader))
    assert len(loader) == 17
    assert len(set(rows[:23])) == 23
    assert max(rows.count(row) for row in rows) <= 3


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_without_duplicates(world):
    parts = [seen(make(shuffle=True, rank=rank, world=world, batch_size=2)) for rank in range(world)]
    rows = flat(flat(parts))
    assert len(rows) == len(set(rows)) == 23 // (2 * world) * 2 * world
    assert len({len(part) for part in parts}) == 1
    together = seen(make(shuffle=True, batch_size=2 * world))
    assert [flat(batches) for batches in zip(*parts, strict=True)] == together


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_what_is_in_order(world):
    rows = flat(flat(seen(make(rank=rank, world=world))) for rank in range(world))
    assert sorted(rows) == list(range(0, 230, 10))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_loader_goes_on_where_it_was_left(stop):
    whole = make(shuffle=True)
    list(whole)
    expected = [*whole, *whole]
    left = make(shuffle=True)
    list(left)
    iterator = iter(left)
    for _ in range(stop):
        next(iterator)
    resumed = make(shuffle=True)
    resumed.load_state_dict(left.state_dict())
    rest = [*resumed, *(resumed if stop < 5 else [])]
    assert len(rest) == 10 - stop
    for found, wanted in zip(rest, expected[stop:], strict=True):
        assert torch.equal(found.run, wanted.run)
        assert torch.equal(found.x1, wanted.x1)
