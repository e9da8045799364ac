from __future__ import annotations

import copy
import json
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from wsflow.description import build, describe
from wsflow.tasks import SPLITS, BaseTask, BreastCancer, ClassificationTask, Diabetes, Digits, Gaussians, RegressionTask
from wsflow.weightspace import NetworkInitializer

TASKS = {"breast_cancer": BreastCancer, "diabetes": Diabetes, "digits": Digits}


class Planted(ClassificationTask):
    """Three Gaussian clusters; validation is smaller than train."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 3), count: int = 50) -> None:
        self.widths, self.count = widths, count

    network = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 6, 3]}}  # noqa: RUF012

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.count) % 3
        inputs = torch.randn(self.count, 4, generator=generator) + 2 * F.one_hot(labels, 4)
        return {"train": (inputs[:30], labels[:30]), "val": (inputs[30:37], labels[30:37]), "test": (inputs, labels)}


class Holder:
    """Something that holds a task."""

    def __init__(self, part: BaseTask) -> None:
        self.part = part


def networks(task: BaseTask, n: int) -> Tensor:
    return NetworkInitializer().sample(task.space, n, torch.Generator().manual_seed(1))


def one_by_one(task: BaseTask, theta: Tensor, split: str) -> Tensor:
    """The slow reference: one functional call per network, in float64."""
    inputs = task.data(split)[0].double()
    template = copy.deepcopy(task.space.template).double()
    rows = [functional_call(template, task.space.unflatten(row.double()), (inputs,)) for row in theta]
    return torch.stack(rows)


@pytest.fixture(params=TASKS.values(), ids=TASKS.keys())
def task(request) -> BaseTask:
    return request.param()


def test_splits_are_disjoint_and_cover_the_data(task):
    rows = torch.cat([task.data(split)[0].flatten(1) for split in SPLITS])
    assert len(rows) in (569, 442, 1797)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert abs(len(task.data("train")[0]) / len(rows) - 0.8) < 0.01


def test_inputs_are_standardised_on_train_alone(task):
    train = task.data("train")[0].double()
    axes = 0 if train.ndim == 2 else (0, 1, 2, 3)
    torch.testing.assert_close(train.mean(axes), torch.zeros_like(train.mean(axes)), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(axes, correction=0), torch.ones_like(train.mean(axes)), atol=1e-6, rtol=0)
    assert task.data("test")[0].mean(axes).abs().max() > 1e-4


def test_split_seed_changes_the_split(task):
    other = type(task)(split_seed=1)
    assert not torch.equal(other.data("val")[0], task.data("val")[0])
    assert torch.equal(type(task)().data("val")[0], task.data("val")[0])


@pytest.mark.parametrize("cls", [BreastCancer, Digits])
def test_classes_stand_in_proportion(cls):
    task = cls()
    shares = [task.data(split)[1].bincount() / len(task.data(split)[1]) for split in SPLITS]
    assert (shares[0] - shares[1]).abs().max() < 0.02
    assert (shares[0] - shares[2]).abs().max() < 0.02


def test_breast_cancer_is_80_10_10():
    assert [len(BreastCancer().data(split)[0]) for split in SPLITS] == [455, 57, 57]


@pytest.mark.parametrize("memory", [2000, 20000, 2**28], ids=["few points", "few networks", "at once"])
def test_streaming_changes_nothing(task, memory):
    theta = networks(task, 5)
    task.memory = memory
    expected = one_by_one(task, theta, "val")
    torch.testing.assert_close(task.logits(theta, "val").double(), expected, atol=1e-5, rtol=1e-4)
    expected_loss = task.loss(
        expected, task.data("val")[1].to(expected) if task.name == "diabetes" else task.data("val")[1]
    )
    scores = task.evaluate(theta, "val")
    torch.testing.assert_close(scores["loss"].double(), expected_loss, atol=1e-5, rtol=1e-4)
    assert task.ensemble(theta, "val") == pytest.approx(type(task)().ensemble(theta, "val"), rel=1e-5)


def test_evaluate_weighs_every_data_point_alike():
    task, theta = Planted(), networks(Planted(), 2)
    task.memory = 4 * 6 * 4  # four data points of one network: 7 validation points come as 4 + 3
    logits = one_by_one(task, theta, "val")
    expected = F.cross_entropy(logits.flatten(0, 1), task.data("val")[1].repeat(2), reduction="none").view(2, 7).mean(1)
    torch.testing.assert_close(task.evaluate(theta, "val")["loss"].double(), expected, atol=1e-6, rtol=1e-5)


def test_classification_ensemble_averages_probabilities():
    task, theta = Planted(), networks(Planted(), 4)
    p = one_by_one(task, theta, "test").softmax(-1).mean(0)
    labels = task.data("test")[1]
    scores = task.ensemble(theta, "test")
    assert scores["nll"] == pytest.approx(float(-p[torch.arange(50), labels].log().mean()), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(float((p.argmax(1) == labels).double().mean()))


def test_confident_wrong_ensembles_do_not_overflow():
    task = Planted()
    nll = task.ensemble(1e4 * networks(task, 3), "test")["nll"]
    assert math.isfinite(nll)
    assert nll > 100


def test_regression_scores_match_their_definition():
    task = Diabetes()
    theta = networks(task, 4)
    values, targets = one_by_one(task, theta, "test"), task.data("test")[1].double()
    noise = (one_by_one(task, theta, "train") - task.data("train")[1]).square().mean((1, 2))
    normal = torch.distributions.Normal(values, noise.sqrt()[:, None, None])
    scores, together = task.evaluate(theta, "test"), task.ensemble(theta, "test")
    torch.testing.assert_close(scores["mse"].double(), (values - targets).square().mean((1, 2)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["nll"].double(), -normal.log_prob(targets).mean((1, 2)), rtol=1e-4, atol=1e-6)
    assert together["nll"] == pytest.approx(float(-normal.log_prob(targets).exp().mean(0).log().mean()), rel=1e-4)
    assert together["mse"] == pytest.approx(float((values.mean(0) - targets).square().mean()), rel=1e-4)


def test_train_nll_uses_the_train_error():
    task = Diabetes()
    scores = task.evaluate(networks(task, 3), "train")
    torch.testing.assert_close(scores["nll"], 0.5 * ((2 * math.pi * scores["mse"]).log() + 1))


def test_loss_takes_targets_per_network():
    task, theta = Planted(), networks(Planted(), 3)
    index = torch.tensor([[0, 1], [5, 9], [3, 3]])
    inputs, targets = task.data("train")
    loss = task.loss(task.space.forward(theta, inputs[index], per_network=True), targets[index])
    for b in range(3):
        alone = task.loss(task.space.forward(theta[b : b + 1], inputs[index[b]]), targets[index[b]])
        torch.testing.assert_close(loss[b : b + 1], alone)


def test_objective_is_the_loss_and_has_its_gradient():
    task = Planted()
    theta = networks(task, 2).requires_grad_(True)
    value = task.objective("val")(theta)
    torch.testing.assert_close(value.detach(), task.evaluate(theta.detach(), "val")["loss"])
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    assert (gradient.abs().sum(1) > 0).all()


def test_objective_batches_come_from_the_generator():
    objective = Planted().objective("train", batch_size=5)
    theta = networks(Planted(), 1)
    first, same, other = (objective(theta, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_objective_refuses_a_batch_larger_than_the_split():
    with pytest.raises(ValueError, match="batch_size 8 does not fit the 7 data points"):
        Planted().objective("val", batch_size=8)


@pytest.mark.parametrize("cls", [*TASKS.values(), Gaussians])
def test_description_rebuilds_the_task(cls):
    task = cls()
    again = BaseTask.from_description(json.loads(json.dumps(task.description)))
    assert type(again) is cls
    assert again.description == task.description
    assert again.space == task.space


def test_description_of_a_class_that_cannot_be_imported_is_refused():
    with pytest.raises(ValueError, match=r"'nowhere.Planted' cannot be imported"):
        BaseTask.from_description({**Planted().description, "class_path": "nowhere.Planted"})


def test_description_of_what_is_no_task_is_refused():
    with pytest.raises(ValueError, match="is not a BaseTask"):
        BaseTask.from_description({"class_path": "collections.OrderedDict", "init_args": {}})


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="does not take the arguments"):
        BaseTask.from_description({"class_path": "wsflow.tasks.Digits", "init_args": {"size": 3}})


def test_describe_asks_for_attributes():
    class Forgetful:
        def __init__(self, size: int) -> None:
            self.length = size

    with pytest.raises(ValueError, match="Forgetful must keep its init argument 'size'"):
        describe(Forgetful(3))


def test_nested_objects_are_described_and_built():
    assert build(describe(Holder(Digits([64, 3, 10])))).part.widths == [64, 3, 10]


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        Planted().data("valid")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": (torch.zeros(2, 4), torch.zeros(2))}, "no 'val' split"),
        ({"train": (torch.zeros(2, 4), torch.zeros(3))}, "2 inputs, 3 targets"),
    ],
    ids=["missing", "unequal"],
)
def test_bad_data_is_refused(data, message, monkeypatch):
    task = Planted()
    monkeypatch.setattr(task, "load", lambda: data)
    with pytest.raises(ValueError, match=message):
        task.data("train")


def test_gaussians_have_a_law_and_no_data():
    task = Gaussians()
    theta = task.draw(500, torch.Generator().manual_seed(0))
    assert theta.shape == (500, 802)
    assert abs(float(theta.mean()) - 1) < 0.01
    assert abs(float(theta.std()) - 1) < 0.01
    assert task.evaluate(theta, "val") == {}
    assert task.ensemble(theta, "val") == {}
    assert task.probe(3).shape == (3, 30)
    with pytest.raises(ValueError, match="has no data"):
        task.data("train")
    with pytest.raises(ValueError, match="has no data"):
        task.load()


def test_trained_tasks_have_no_law():
    with pytest.raises(ValueError, match="networks are trained"):
        Planted().draw(1, torch.Generator())


def test_names_are_snake_case():
    assert [BreastCancer().name, Gaussians().name] == ["breast_cancer", "gaussians"]


@pytest.mark.parametrize("cls", [Planted, Diabetes])
def test_ensembles_need_a_network(cls):
    task = cls()
    with pytest.raises(ValueError, match="at least one network"):
        task.ensemble(torch.empty(0, task.space.dim), "val")


class Slope(RegressionTask):
    """One number from two, its targets without their axis."""

    network: ClassVar = {
        "class_path": "wsflow.weightspace.mlp",
        "init_args": {"widths": [2, 3, 1]},
        "output_activation": "identity",
    }

    def load(self):
        inputs = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
        return {name: (inputs[i::3], inputs[i::3].sum(1)) for i, name in enumerate(("train", "val", "test"))}


def test_targets_of_a_regression_without_their_axis_are_refused():
    task = Slope()
    with pytest.raises(ValueError, match=r"targets of a regression are \(N, C\) .* \(10, 1\), not \(10,\)"):
        task.evaluate(torch.zeros(10, task.space.dim), "val")


class Attentive(ClassificationTask):
    """Sequences by one layer of attention."""

    network: ClassVar = {"class_path": f"{__name__}.attentive", "init_args": {}, "input_shape": [5, 8]}

    def load(self):
        inputs = torch.randn(30, 5, 8, generator=torch.Generator().manual_seed(0))
        return {name: (inputs[i::3], torch.arange(30)[i::3] % 2) for i, name in enumerate(("train", "val", "test"))}


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


def attentive() -> nn.Module:
    return Attending()


def test_networks_with_attention_are_scored():
    task = Attentive()
    theta = 0.3 * torch.randn(3, task.space.dim)
    scores, (inputs, targets) = task.evaluate(theta, "val"), task.data("val")
    for row, loss in zip(theta, scores["loss"], strict=True):
        expected = nn.functional.cross_entropy(task.space.to_module(row)(inputs), targets)
        torch.testing.assert_close(loss, expected.detach())
