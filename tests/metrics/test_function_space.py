from __future__ import annotations

import pytest
import torch

from wsflow.metrics import function_space, nearest, pairwise, predict
from wsflow.tasks import BreastCancer, Diabetes


def slow_pairwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.stack([((x - y) ** 2).mean().sqrt() for y in b.double()]) for x in a.double()])


@pytest.mark.parametrize("piece", [1, 40, 2**25], ids=["one-column", "few-columns", "all"])
def test_pairwise_equals_a_loop_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(function_space, "PIECE", piece)
    a, b = torch.randn(4, 9) + 5, torch.randn(6, 9) + 5
    torch.testing.assert_close(pairwise(a, b), slow_pairwise(a, b), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 2**25], ids=["one-row", "all"])
def test_nearest_sorts_the_k_smallest(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(function_space, "PIECE", piece)
    a, b = torch.rand(5, 7), torch.rand(20, 7)
    found, slow = nearest(a, b, 3), slow_pairwise(a, b).sort(dim=1)
    torch.testing.assert_close(found.distance, slow.values[:, :3])
    assert torch.equal(found.place, slow.indices[:, :3])


def test_copies_are_at_distance_zero_and_near_copies_keep_their_digits() -> None:
    b = torch.rand(30, 50, dtype=torch.float64) + 100
    step = 1e-7 * torch.randn(30, 50, dtype=torch.float64)
    assert (nearest(b, b).distance == 0).all()
    found = nearest(b + step, b)
    assert torch.equal(found.place[:, 0], torch.arange(30))
    torch.testing.assert_close(found.distance[:, 0], (b + step - b).square().mean(1).sqrt(), rtol=1e-9, atol=0)


def test_nearest_gives_at_most_as_many_as_there_are() -> None:
    assert nearest(torch.rand(3, 2), torch.rand(4, 2), 10).place.shape == (3, 4)


def test_predictions_are_probabilities_of_validation_inputs() -> None:
    task = BreastCancer()
    theta = torch.randn(3, task.space.dim)
    inputs, _ = task.data("val")
    torch.testing.assert_close(predict(task, theta), task.space.forward(theta, inputs).softmax(-1).flatten(1))


def test_predictions_of_a_regression_task_are_its_values() -> None:
    task = Diabetes()
    theta = torch.randn(3, task.space.dim)
    torch.testing.assert_close(predict(task, theta, "test"), task.logits(theta, "test").flatten(1))
