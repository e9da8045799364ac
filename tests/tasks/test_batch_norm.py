"""Base networks with batch norm: their running statistics come from train inputs, and from nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsflow.tasks import ClassificationTask
from wsflow.weightspace import NetworkInitializer


class Pictures(ClassificationTask):
    """Noisy pictures of three classes; the splits have different brightness."""

    statistics_points = 20

    def __init__(self, batch_norm: bool = True, unseen: float = 0.0) -> None:
        self.batch_norm, self.unseen = batch_norm, unseen

    @property
    def network(self):
        args = {"channels": [4, 5], "kernels": [3, 2], "strides": [2, 1], "paddings": [1, 0]}
        args |= {"input_shape": [2, 6, 6], "classes": 3, "batch_norm": self.batch_norm}
        return {"class_path": "wsflow.weightspace.cnn", "init_args": args, "input_shape": [2, 6, 6]}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
        inputs = torch.randn(60, 2, 6, 6, generator=generator) + labels[:, None, None, None]
        parts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
        shift = {"train": 0.0, "val": self.unseen, "test": self.unseen}
        return {name: (inputs[rows] + shift[name], labels[rows]) for name, rows in parts.items()}


@pytest.fixture
def task() -> Pictures:
    return Pictures()


@pytest.fixture
def theta(task: Pictures) -> Tensor:
    drawn = NetworkInitializer().sample(task.space, 5, torch.Generator().manual_seed(1))
    return drawn + 0.1 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(2))


def as_torch_would(task: Pictures, theta: Tensor) -> nn.Module:
    """A network that has run over the train inputs once, in training mode, its statistics cumulative averages."""
    module = task.space.to_module(theta).train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        module(task.data("train")[0][: task.statistics_points].to(theta))
    return module.eval()


def test_logits_are_those_of_networks_that_saw_train_inputs(task, theta):
    theta = theta.double()
    for split in ("train", "val", "test"):
        inputs = task.data(split)[0].double()
        expected = torch.stack([as_torch_would(task, row)(inputs) for row in theta])
        torch.testing.assert_close(task.logits(theta, split), expected, rtol=1e-9, atol=1e-9)


def test_every_score_uses_these_statistics(task, theta):
    logits = task.logits(theta, "test")
    labels = task.data("test")[1]
    loss = task.loss(logits, labels)
    torch.testing.assert_close(task.evaluate(theta, "test")["loss"], loss)
    torch.testing.assert_close(task.objective("test")(theta), loss)
    nll = nn.functional.nll_loss(logits.double().softmax(-1).mean(0).log(), labels)
    assert task.ensemble(theta, "test")["nll"] == pytest.approx(float(nll), rel=1e-5)


def test_chunks_of_networks_and_points_change_nothing(task, theta):
    expected = task.logits(theta, "val")
    task.memory = 4 * max(task.layer_sizes) * 7
    torch.testing.assert_close(task.logits(theta, "val"), expected)
    torch.testing.assert_close(task.evaluate(theta, "val")["loss"], task.loss(expected, task.data("val")[1]))


def test_validation_and_test_inputs_never_enter(theta):
    task, other = Pictures(), Pictures(unseen=float("nan"))
    assert not other.data("test")[0].isfinite().any()
    assert torch.equal(other.with_statistics(theta), task.with_statistics(theta))
    train = task.data("train")[0]
    train[: task.statistics_points] += 3
    assert not torch.equal(other.with_statistics(theta), task.with_statistics(theta))
    train[: task.statistics_points] -= 3
    train[task.statistics_points :] += 3
    torch.testing.assert_close(other.with_statistics(theta), task.with_statistics(theta))


def test_an_extended_vector_keeps_its_statistics(task, theta):
    extended = task.with_statistics(theta)
    assert extended.shape == (5, task.space.full_dim)
    assert task.with_statistics(extended) is extended
    torch.testing.assert_close(task.logits(extended, "val"), task.logits(theta, "val"))
    moved = extended.clone()
    moved[:, task.space.dim :] += 1
    inputs = task.data("val")[0]
    torch.testing.assert_close(task.logits(moved, "val"), task.space.forward(moved, inputs))
    assert not torch.allclose(task.logits(moved, "val"), task.logits(theta, "val"))


def test_a_network_without_batch_norm_is_left_alone():
    task = Pictures(batch_norm=False)
    theta = NetworkInitializer().sample(task.space, 2, torch.Generator().manual_seed(1))
    assert task.with_statistics(theta) is theta


def test_gradients_reach_the_weights_through_the_statistics(task, theta):
    theta = theta.double()[:2].requires_grad_()
    task.objective("train")(theta).sum().backward()
    step = 1e-6 * torch.randn(theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        change = (task.objective("train")(theta + step) - task.objective("train")(theta - step)).sum() / 2
    assert float((theta.grad * step).sum()) == pytest.approx(float(change), rel=1e-5)
