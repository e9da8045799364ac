"""Lines between networks with batch norm: statistics of what lies between come from train inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsflow.alignment import WeightMatching
from wsflow.commands.connectivity import EachOther, Lines, OneNetwork
from wsflow.tasks import ClassificationTask
from wsflow.weightspace import NetworkInitializer
from wsflow.weightspace.symmetry import random_permutations


class Pictures(ClassificationTask):
    """Pictures of three classes in two colours; test pictures are brighter."""

    @property
    def network(self):
        args = {"channels": [4, 5], "kernels": [3, 2], "strides": [2, 1], "paddings": [1, 0]}
        args |= {"input_shape": [2, 6, 6], "classes": 3, "batch_norm": True}
        return {"class_path": "wsflow.weightspace.cnn", "init_args": args, "input_shape": [2, 6, 6]}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
        inputs = torch.randn(60, 2, 6, 6, generator=generator) + labels[:, None, None, None]
        return {
            "train": (inputs[:40], labels[:40]),
            "val": (inputs[40:50], labels[40:50]),
            "test": (inputs[50:] + 1, labels[50:]),
        }


@pytest.fixture
def task() -> Pictures:
    return Pictures()


@pytest.fixture
def theta(task: Pictures, generator: torch.Generator) -> Tensor:
    drawn = NetworkInitializer().sample(task.space, 4, generator).double()
    return drawn + 0.1 * torch.randn(drawn.shape, generator=generator, dtype=torch.float64)


def loss_as_torch_would(task: Pictures, theta: Tensor) -> Tensor:
    """Test loss of a network that ran over the train inputs once, its statistics cumulative averages."""
    module = task.space.to_module(theta).train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        module(task.data("train")[0].to(theta))
        inputs, labels = task.data("test")
        return nn.functional.cross_entropy(module.eval()(inputs.to(theta)), labels)


def test_midpoints_have_statistics_of_their_own(task, theta) -> None:
    found = Lines(task, theta, torch.arange(4), pairs=2, points=3).measure()
    for i, j in ((0, 1), (2, 3)):
        expected = loss_as_torch_would(task, (theta[i] + theta[j]) / 2)
        torch.testing.assert_close(found.barriers.middles["loss"][i, j], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        found.barriers.ends["loss"][2], loss_as_torch_would(task, theta[2]), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("target", [OneNetwork, EachOther], ids=["one network", "each other"])
def test_permuted_copies_have_no_barrier_once_aligned(target, task, theta, generator) -> None:
    copies = task.space.permute(theta[:1].repeat(4, 1), random_permutations(task.space, 4, generator))
    lines = Lines(task, copies, torch.arange(4), pairs=2, points=3)
    aligned = lines.measure(WeightMatching(), OneNetwork(copies[0]) if target is OneNetwork else EachOther())
    assert lines.measure().barriers.matrix.abs().max() > 1e-2
    assert aligned.barriers.matrix.abs().max() < 1e-9
