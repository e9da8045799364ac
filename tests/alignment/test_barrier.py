"""Barriers against a slow loop, and on pairs whose barrier is known."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from wsflow.alignment import WeightMatching, barrier
from wsflow.alignment.barrier import barriers, paths
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(50, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def evaluate(space: WeightSpace, inputs: Tensor):
    """Cross-entropy and accuracy against labels that depend on two inputs."""
    labels = (inputs[:, 0] > inputs[:, 1]).long()

    def scores(theta: Tensor) -> Mapping[str, Tensor]:
        logits = space.forward(theta, inputs)
        log_p = logits.log_softmax(-1)
        loss = -log_p.gather(-1, labels.expand(len(theta), -1)[..., None]).mean((1, 2))
        return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).double().mean(1)}

    return scores


def test_all_pairs_equal_a_loop_over_pairs(evaluate, theta: Tensor) -> None:
    found = barriers(evaluate, theta)
    for i in range(len(theta)):
        for j in range(len(theta)):
            middle = evaluate((theta[i : i + 1] + theta[j : j + 1]) / 2)
            ends = (evaluate(theta[i : i + 1])["loss"] + evaluate(theta[j : j + 1])["loss"]) / 2
            assert found.middles["accuracy"][i, j] == middle["accuracy"][0]
            torch.testing.assert_close(found.matrix[i, j], (middle["loss"] - ends)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 4], ids=["one by one", "four by four"])
def test_memory_bounds_the_batches_and_not_the_result(evaluate, theta, rows, monkeypatch) -> None:
    sizes: list[int] = []

    def counted(networks: Tensor) -> Mapping[str, Tensor]:
        sizes.append(len(networks))
        return evaluate(networks)

    whole, line = barriers(evaluate, theta), paths(evaluate, theta[:3], theta[3:6], 5)
    monkeypatch.setattr(barrier, "ELEMENTS", rows * theta.shape[1])
    parts, parts_of_line = barriers(counted, theta), paths(counted, theta[:3], theta[3:6], 5)
    assert max(sizes) == rows
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts_of_line.scores["loss"], line.scores["loss"], rtol=1e-12, atol=1e-12)


def test_the_matrix_is_symmetric_with_a_zero_diagonal(evaluate, theta: Tensor) -> None:
    matrix = barriers(evaluate, theta).matrix
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diag(), torch.zeros(len(theta), dtype=torch.float64))
    assert matrix.abs().max() > 0.01


def test_a_permuted_copy_has_a_barrier_that_alignment_takes_away(space, evaluate, generator) -> None:
    weights = torch.randn(1, space.dim, generator=generator, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([weights], lr=0.05)
    for _ in range(150):
        descent.zero_grad()
        evaluate(weights)["loss"].sum().backward()
        descent.step()
    network = weights.detach()
    copies = torch.cat([network, space.permute(network.repeat(5, 1), random_permutations(space, 5, generator))])
    before = barriers(evaluate, copies)
    aligned = space.permute(copies, WeightMatching(restarts=5).align(space, copies, copies[0]))
    after = barriers(evaluate, aligned)
    assert before.ends["loss"].max() < 0.1
    assert before.values.min() > 0.05
    assert after.matrix.abs().max() < 1e-12
    assert paths(evaluate, copies[:1], copies[1:2]).barrier > 0.05
    assert paths(evaluate, aligned[:1], aligned[1:2]).barrier < 1e-12


def test_matching_each_pair_brings_the_second_near_the_first(space, evaluate, theta: Tensor) -> None:
    aligner = WeightMatching()

    def match(second: Tensor, first: Tensor) -> Tensor:
        return space.permute(second, aligner.align(space, second, first))

    found = barriers(evaluate, theta, match=match)
    moved = space.permute(theta[4:5], aligner.align(space, theta[4:5], theta[2]))
    wanted = evaluate((theta[2:3] + moved) / 2)["loss"] - evaluate(theta[[2, 4]])["loss"].mean()
    torch.testing.assert_close(found.matrix[2, 4], wanted[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found.matrix, found.matrix.T)


def test_means_go_over_pairs_of_different_runs(evaluate, theta: Tensor) -> None:
    run = torch.tensor([3, 3, 0, 0, 0, 9, 9])
    found = barriers(evaluate, theta, run)
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7) if run[i] != run[j]]
    values = torch.stack([found.matrix[i, j] for i, j in pairs])
    assert len(pairs) == 16
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.std == pytest.approx(float(values.std(correction=0)), rel=1e-12)
    assert found.largest == float(values.max())
    accuracies = torch.stack([found.middles["accuracy"][i, j] for i, j in pairs])
    assert found.middle("accuracy") == pytest.approx(float(accuracies.mean()), rel=1e-12)


def test_the_standard_error_leaves_out_one_run_at_a_time(evaluate, theta: Tensor) -> None:
    run = torch.tensor([3, 3, 0, 0, 5, 9, 9])
    found, ids = barriers(evaluate, theta, run), [0, 3, 5, 9]
    means = [barriers(evaluate, theta[run != r], run[run != r]).mean for r in ids]
    centre = sum(means) / 4
    wanted = (3 / 4 * sum((m - centre) ** 2 for m in means)) ** 0.5
    assert found.standard_error == pytest.approx(wanted, rel=1e-9)
    assert barriers(evaluate, theta[:3], run[:3]).standard_error == float("inf")


def test_a_path_is_judged_at_every_point(evaluate, theta: Tensor) -> None:
    line = paths(evaluate, theta[:2], theta[2:4], points=5)
    for p in range(2):
        for k, t in enumerate([0.0, 0.25, 0.5, 0.75, 1.0]):
            point = (1 - t) * theta[p] + t * theta[p + 2]
            assert line.scores["loss"][p, k] == pytest.approx(float(evaluate(point[None])["loss"]), rel=1e-12)
    loss = line.scores["loss"]
    chord = torch.stack([(1 - t) * loss[:, 0] + t * loss[:, -1] for t in line.t], 1)
    torch.testing.assert_close(line.barrier, (loss - chord).max(1).values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(line.instability, loss.max(1).values - (loss[:, 0] + loss[:, -1]) / 2)
    assert (line.barrier >= 0).all()


def test_a_convex_loss_has_no_barrier_along_the_path() -> None:
    first, second = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    line = paths(lambda theta: {"loss": (theta**2).sum(1)}, first, second)
    assert line.barrier == 0
    assert line.instability == 1.5
    assert barriers(lambda theta: {"loss": (theta**2).sum(1)}, torch.cat([first, second])).mean == -0.75


def test_what_does_not_fit_is_refused(evaluate, theta: Tensor) -> None:
    with pytest.raises(ValueError, match=r"networks of shape \(7, .*\) do not fit runs of shape \(3,\)"):
        barriers(evaluate, theta, torch.arange(3))
    with pytest.raises(ValueError, match="at least two runs"):
        barriers(evaluate, theta, torch.zeros(7))
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        paths(evaluate, theta[:2], theta[2:4], 2)
    with pytest.raises(ValueError, match="do not pair up"):
        paths(evaluate, theta[:2], theta[2:5])
