"""Objectives that tasks give: losses on mini-batches, under attack, and sums of objectives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.description import build, describe
from wsflow.tasks import FGSM, PGD, AdversarialLoss, BreastCancer, Diabetes, Gaussians, TaskLoss
from wsflow.weightspace import NetworkInitializer, WeightedSum, WeightNorm
from wsflow.weightspace.randomness import RowGenerator


@pytest.fixture(scope="module")
def task() -> BreastCancer:
    return BreastCancer()


@pytest.fixture
def theta(task: BreastCancer) -> Tensor:
    return NetworkInitializer().sample(task.space, 5, torch.Generator().manual_seed(1))


def rows(indices: range) -> RowGenerator:
    return RowGenerator.make(0, indices, (), ())


def test_the_loss_is_that_of_the_attached_task_unless_another_is_given(task, theta):
    mine, given = TaskLoss(), TaskLoss(task)
    mine.attach(task)
    given.attach(Diabetes())
    expected = task.evaluate(theta, "train")["loss"]
    torch.testing.assert_close(mine(theta), expected)
    torch.testing.assert_close(given(theta), expected)


def test_mini_batches_are_each_networks_own(task, theta):
    loss = TaskLoss(task, batch_size=16)
    whole = loss(theta, rows(range(5)))
    torch.testing.assert_close(whole[2:4], loss(theta[2:4], rows(range(2, 4))))
    same = loss(theta[:1].expand(5, -1), rows(range(5)))
    assert len(same.unique()) == 5
    shared = TaskLoss(task, batch_size=16, shared=True)(theta[:1].expand(5, -1), rows(range(5)))
    assert len(shared.unique()) == 1


@pytest.mark.parametrize("attack", [FGSM(0.2), PGD(0.2, iterations=4)], ids=["fgsm", "pgd"])
def test_attacks_raise_the_loss_within_the_ball(attack, task, theta):
    def total(x: Tensor) -> Tensor:
        return task.loss(task.space.forward(theta, x, per_network=True), targets).sum()

    inputs, targets = task.data("train")
    batch = inputs[:40].expand(5, 40, -1)
    targets = targets[:40]
    moved = attack(total, batch, torch.Generator().manual_seed(0))
    assert (moved - batch).abs().max() <= 0.2 + 1e-6
    assert total(moved) > total(batch) + 0.05
    unmoved = type(attack)(0.0)(total, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(unmoved, batch)


def test_the_loss_under_attack_is_above_the_loss_and_descending_it_helps(task, theta):
    plain, robust = TaskLoss(task), AdversarialLoss(PGD(0.2), task, batch_size=len(task.data("train")[0]))
    assert (robust(theta, rows(range(5))) > plain(theta) + 0.01).all()
    none = AdversarialLoss(FGSM(0.0), task, batch_size=len(task.data("train")[0]))
    torch.testing.assert_close(none(theta, rows(range(5))), plain(theta))
    slope = torch.func.grad(lambda x: robust(x, rows(range(5))).sum())(theta)
    assert (robust(theta - 0.05 * slope, rows(range(5))) < robust(theta, rows(range(5)))).all()


def test_the_attack_itself_is_not_differentiated(task, theta):
    """The gradient is that of the loss at moved inputs that stay where they are."""
    robust = AdversarialLoss(FGSM(0.3), task, batch_size=50)
    inputs, targets = task.data("train")
    index = torch.randperm(len(inputs), generator=rows(range(5)).common)[:50]
    moved = FGSM(0.3)(
        lambda x: task.loss(task.space.forward(theta, x, per_network=True), targets[index]).sum(),
        inputs[index].expand(5, 50, -1),
    )
    expected = torch.func.grad(
        lambda w: task.loss(task.space.forward(w, moved, per_network=True), targets[index]).sum()
    )(theta)
    torch.testing.assert_close(torch.func.grad(lambda w: robust(w, rows(range(5))).sum())(theta), expected)


def test_sums_weigh_their_parts_and_pass_the_task_on(task, theta):
    both = WeightedSum([TaskLoss(), WeightNorm()], [2.0, 0.5])
    both.attach(task)
    torch.testing.assert_close(both(theta), 2 * task.evaluate(theta, "train")["loss"] + theta.square().sum(1) / 4)
    with pytest.raises(ValueError, match="a weight for each"):
        WeightedSum([WeightNorm()], [1.0, 2.0])


def test_a_missing_task_is_named(theta):
    with pytest.raises(ValueError, match="TaskLoss needs a base task with train data, and there is none"):
        TaskLoss()(theta)
    with pytest.raises(ValueError, match="task gaussians has no data"):
        AdversarialLoss(FGSM(0.1)).attach(Gaussians())
    with pytest.raises(ValueError, match="batch_size 1000 does not fit"):
        AdversarialLoss(FGSM(0.1), batch_size=1000).attach(BreastCancer())


def test_a_list_of_objectives_is_described_and_rebuilt(task, theta):
    both = WeightedSum([TaskLoss(task), WeightNorm()], [2.0, 0.5])
    rebuilt = build(describe(both))
    torch.testing.assert_close(rebuilt(theta), both(theta))


def test_all_train_data_are_no_draw(task, theta):
    """Solvers that choose their steps take objectives that leave their source as it was."""
    points = len(task.data("train")[0])
    for batch_size in (None, points):
        for objective in (AdversarialLoss(FGSM(0.1), task, batch_size), TaskLoss(task, batch_size, shared=True)):
            draws = rows(range(len(theta)))
            before = draws.states()
            whole = objective(theta, draws)
            assert all(map(torch.equal, before, draws.states()))
            torch.testing.assert_close(whole, objective(theta, rows(range(5, 5 + len(theta)))), rtol=0, atol=0)
    part = AdversarialLoss(FGSM(0.1), task, points - 1)
    draws = rows(range(len(theta)))
    before = draws.states()
    part(theta, draws)
    assert not all(map(torch.equal, before, draws.states()))
    torch.testing.assert_close(TaskLoss(task, points, shared=True)(theta), TaskLoss(task)(theta), rtol=1e-5, atol=0)
