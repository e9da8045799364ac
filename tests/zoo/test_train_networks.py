"""Training convolutional networks together: batch norm, short runs and learning rates that fall."""

from __future__ import annotations

import math
import re
from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.description import build, describe
from wsflow.fields import MLPField, NeuronTransformer
from wsflow.tasks import ClassificationTask
from wsflow.weightspace import NetworkInitializer, cnn
from wsflow.zoo import SGD, Adam, Collector, CosineDecay, EverySnapshot, Zoo
from wsflow.zoo.train import DataOrder, check_batches, draw_starts, train_runs


class Pictures(ClassificationTask):
    """Noisy pictures of three classes."""

    def __init__(self, batch_norm: bool = False) -> None:
        self.batch_norm = batch_norm

    @property
    def network(self):
        args = {"channels": [4, 5], "kernels": [3, 3], "strides": [2, 1], "paddings": [1, 1]}
        args |= {"input_shape": [2, 6, 6], "classes": 3, "batch_norm": self.batch_norm}
        return {"class_path": "wsflow.weightspace.cnn", "init_args": args, "input_shape": [2, 6, 6]}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
        inputs = torch.randn(60, 2, 6, 6, generator=generator) + labels[:, None, None, None]
        return {
            name: (inputs[rows], labels[rows])
            for name, rows in {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}.items()
        }


def train_alone(task: Pictures, start: Tensor, order: DataOrder, rates: list[float], batch_size: int) -> Tensor:
    """The slow reference: one run as an ordinary network in training mode, with plain gradient descent."""
    network, (inputs, targets) = task.space.to_module(start).train(), task.data("train")

    def batches():
        while True:
            yield from torch.split(order.epoch()[0], batch_size)

    for rate, index in zip(rates, islice(batches(), len(rates)), strict=True):
        loss = F.cross_entropy(network(inputs[index].to(start)), targets[index])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return task.space.flatten(network.state_dict())


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
def test_each_run_is_trained_as_if_alone(batch_norm):
    task, runs = Pictures(batch_norm), range(3)
    start = draw_starts(task, NetworkInitializer(), 0, runs).double()
    found = train_runs(task, start, DataOrder(40, 0, runs), SGD(0.1), 2, 16, [6])
    for run in runs:
        alone = train_alone(task, start[run], DataOrder(40, 0, [run]), [0.1] * 6, 16)
        torch.testing.assert_close(found.theta[run, 0], alone, rtol=1e-9, atol=1e-10)
        assert not torch.allclose(alone, start[run])


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
def test_runs_that_share_their_order_are_trained_as_if_alone(batch_norm):
    task, runs = Pictures(batch_norm), range(3)
    start = draw_starts(task, NetworkInitializer(), 0, runs).double()
    found = train_runs(task, start, DataOrder(40, 0, [7]), SGD(0.1), 2, 16, [6])
    for run in runs:
        alone = train_alone(task, start[run], DataOrder(40, 0, [7]), [0.1] * 6, 16)
        torch.testing.assert_close(found.theta[run, 0], alone, rtol=1e-9, atol=1e-10)


class Dropping(Pictures):
    """Pictures by a network with dropout."""

    @property
    def network(self):
        return {**super().network, "class_path": f"{__name__}.dropping"}


def dropping(**kwargs) -> nn.Module:
    return nn.Sequential(cnn(**kwargs), nn.Dropout(0.5))


def test_training_without_the_networks_dropout_is_warned_of():
    task = Dropping()
    start = draw_starts(task, NetworkInitializer(), 0, range(2))
    with pytest.warns(UserWarning, match="trained without their dropout"):
        train_runs(task, start, DataOrder(40, 0, range(2)), SGD(0.1), 1, 16, [3])


class Normed(Pictures):
    """Pictures by a perceptron with batch norm, which needs more than one point."""

    @property
    def network(self):
        return {"class_path": f"{__name__}.normed", "init_args": {}, "input_shape": [2, 6, 6]}


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize("task", [Normed(), Pictures(True)], ids=["perceptron", "convolutions"])
def test_one_point_of_whole_numbers_is_tried_as_it_is_trained_on(task, monkeypatch):
    inputs, targets = task.data("train")
    monkeypatch.setattr(task, "data", lambda _: ((inputs * 10).to(torch.int64), targets))
    check_batches(task, 16)
    if isinstance(task, Normed):
        with pytest.raises(ValueError, match="mini-batches of 13 leave one over"):
            check_batches(task, 13)
    else:
        check_batches(task, 13)


def test_one_point_left_over_for_batch_norm_is_told_of_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="of 40 data points, mini-batches of 13 leave one over"):
        Collector(4, epochs=1, batch_size=13).collect(Normed(), tmp_path / "zoo", progress=False)
    assert not (tmp_path / "zoo").exists()
    assert Collector(4, epochs=1, batch_size=13, max_steps=3).collect(Normed(), tmp_path / "short", progress=False)
    assert Collector(4, epochs=1, batch_size=16).collect(Normed(), tmp_path / "other", progress=False)
    assert Collector(4, epochs=1, batch_size=13).collect(Pictures(True), tmp_path / "wide", progress=False)


class Partly(Pictures):
    """Pictures by a network of which a part is trained; its stored running statistics are not those of a batch."""

    def __init__(self, part: str) -> None:
        super().__init__(batch_norm=True)
        self.part = part

    @property
    def network(self):
        return {**super().network, "class_path": f"{__name__}.worn", "select": self.part}


def worn(**kwargs) -> nn.Module:
    """A network with the running statistics of some earlier training."""
    network = cnn(**kwargs)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return network


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d)


@pytest.mark.parametrize("part", ["head", "last norm", "norms"])
def test_frozen_norms_keep_their_statistics_and_trained_ones_take_the_batchs(part):
    """The reference is a plain loop: frozen norms in evaluation mode, trained ones in training mode."""
    norms = [name for name, layer in Partly(".*").space.template.named_modules() if is_norm(layer)]
    linear = [name for name, layer in Partly(".*").space.template.named_modules() if isinstance(layer, nn.Linear)][-1]
    chosen = {"head": [linear], "last norm": norms[-1:], "norms": norms}[part]
    task = Partly("|".join(rf"{re.escape(name)}\..*" for name in chosen))
    assert task.space.names == {f"{name}.{kind}" for name in chosen for kind in ("weight", "bias")}
    assert bool(task.space.buffers) == (part != "head")
    start = 1 + 0.3 * torch.randn(2, task.space.dim, dtype=torch.float64)
    found = train_runs(task, start, DataOrder(40, 0, range(2)), SGD(0.1), 1, 16, [3]).theta[:, 0]
    inputs, targets = task.data("train")
    for run in range(2):
        network = task.space.to_module(start[run]).eval()
        for name, layer in network.named_modules():
            layer.train(name in chosen) if is_norm(layer) else None
        trained = [p for name, p in network.named_parameters() if name in task.space.names]
        descent = torch.optim.SGD(trained, lr=0.1)
        for index in torch.split(DataOrder(40, 0, [run]).epoch()[0], 16):
            descent.zero_grad()
            F.cross_entropy(network(inputs[index].double()), targets[index]).backward()
            descent.step()
        torch.testing.assert_close(found[run], task.space.flatten(network.state_dict()), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(found[run], start[run])


def test_norms_alone_have_no_symmetries_and_a_field_runs_on_them():
    """Frozen convolutions do not permute along, so no channel can change its place, nor its scale."""
    task = Partly(r".*")
    norms = [name for name, layer in task.space.template.named_modules() if is_norm(layer)]
    space = Partly("|".join(rf"{re.escape(name)}\..*" for name in norms)).space
    assert (space.hidden, space.blocks, space.rescalings) == ((), (), ())
    for field in (MLPField(space, 0, width=8, depth=1), NeuronTransformer(space, 0, width=8, depth=1, heads=2)):
        x = torch.randn(3, space.dim)
        assert field(x, torch.rand(3)).shape == x.shape


def test_batch_norm_networks_are_collected_and_judged(tmp_path):
    task = Pictures(batch_norm=True)
    adam = Adam(0.02)
    Collector(runs=6, epochs=10, batch_size=16, optimizer=adam, initializer=NetworkInitializer(), shard_runs=3).collect(
        task, tmp_path, progress=False
    )
    zoo = Zoo.open(tmp_path)
    assert zoo.theta.shape == (6, task.space.dim)
    torch.testing.assert_close(zoo.metrics["val.accuracy"], task.evaluate(zoo.theta, "val")["accuracy"])
    assert zoo.metrics["test.accuracy"].mean() > 0.8


class TestMaxSteps:
    def collect(self, path, **kwargs) -> Zoo:
        Collector(runs=3, batch_size=16, seed=2, optimizer=SGD(0.1), **kwargs).collect(Pictures(), path, progress=False)
        return Zoo.open(path)

    def test_a_run_ends_within_an_epoch(self, tmp_path):
        task, zoo = Pictures(), self.collect(tmp_path, epochs=3, max_steps=2)
        assert zoo.step.tolist() == [2, 2, 2]
        alone = train_alone(task, zoo.start[1], DataOrder(40, 2, [1]), [0.1] * 2, 16)
        torch.testing.assert_close(zoo.theta[1], alone, rtol=1e-4, atol=1e-5)

    def test_a_run_ends_in_a_later_epoch(self, tmp_path):
        task, zoo = Pictures(), self.collect(tmp_path, epochs=3, max_steps=5)
        assert zoo.step.tolist() == [5, 5, 5]
        alone = train_alone(task, zoo.start[1], DataOrder(40, 2, [1]), [0.1] * 5, 16)
        torch.testing.assert_close(zoo.theta[1], alone, rtol=1e-4, atol=1e-5)

    def test_snapshots_before_the_end_are_kept(self, tmp_path):
        zoo = self.collect(tmp_path, epochs=4, max_steps=7, snapshots=EverySnapshot(2))
        assert zoo.step.tolist() == [2, 4, 6, 7] * 3

    def test_more_steps_than_the_epochs_hold_change_nothing(self, tmp_path):
        zoos = [self.collect(tmp_path / str(n), epochs=2, max_steps=n) for n in (None, 6, 100)]
        assert all(torch.equal(zoo.theta, zoos[0].theta) and zoo.step.tolist() == [6] * 3 for zoo in zoos)

    def test_estimates_count_the_steps_taken(self):
        estimate = Collector(runs=4, epochs=3, batch_size=16, max_steps=2).estimate(Pictures(), steps=1)
        assert estimate["steps"] == 2

    def test_no_steps_are_refused(self):
        with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
            Collector(max_steps=0)


class TestCosineDecay:
    def test_the_learning_rate_falls(self):
        task, optimizer = Pictures(), CosineDecay(SGD(0.2), steps=6, final=0.1)
        start = draw_starts(task, NetworkInitializer(), 0, range(2)).double()
        found = train_runs(task, start, DataOrder(40, 0, range(2)), optimizer, 3, 16, [9])
        rates = [0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(k, 6) / 6)) / 2) for k in range(9)]
        alone = train_alone(task, start[1], DataOrder(40, 0, [1]), rates, 16)
        torch.testing.assert_close(found.theta[1, 0], alone, rtol=1e-9, atol=1e-10)

    def test_every_training_starts_at_the_full_rate(self):
        task, optimizer = Pictures(), CosineDecay(Adam(0.01), steps=3)
        start = draw_starts(task, NetworkInitializer(), 0, range(2))
        first, second = (
            train_runs(task, start, DataOrder(40, 0, range(2)), optimizer, 1, 16, [3]).theta for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_it_can_be_described(self):
        description = describe(CosineDecay(SGD(0.2), steps=7, final=0.5))
        assert describe(build(description)) == description
        assert description["init_args"]["optimizer"]["init_args"]["lr"] == 0.2

    @pytest.mark.parametrize(("steps", "final"), [(0, 0.0), (5, -0.1), (5, 1.1)])
    def test_settings_out_of_range_are_refused(self, steps, final):
        with pytest.raises(ValueError, match=r"steps must be at least 1 and final in \[0, 1\]"):
            CosineDecay(steps=steps, final=final)
