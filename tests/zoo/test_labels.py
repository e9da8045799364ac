"""Labels of a zoo's networks, and how a data module serves them."""

from __future__ import annotations

import json

import pytest
import torch

from wsflow.zoo import (
    Collector,
    EverySnapshot,
    Label,
    MetricLabel,
    RunLabel,
    StepLabel,
    Zoo,
    ZooDataModule,
    ZooError,
    write_networks,
)


@pytest.fixture
def zoo(task, tmp_path) -> Zoo:
    """Ten runs with a snapshot every five steps."""
    Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(5)).collect(task, tmp_path / "zoo")
    return Zoo.open(tmp_path / "zoo")


def test_labels_are_what_the_zoo_says(zoo, task, tmp_path):
    assert torch.equal(MetricLabel("val.loss").values(zoo, task), zoo.metrics["val.loss"])
    expected = task.evaluate(zoo.theta.clone(), "train")["loss"]
    torch.testing.assert_close(MetricLabel("train.loss").values(zoo, task), expected)
    assert torch.equal(StepLabel().values(zoo, task), zoo.step.float())
    assert StepLabel(epochs=True).values(zoo, task).max() == 2
    (tmp_path / "rate.json").write_text(json.dumps({"3": 0.5, "4": 2}))
    rates = RunLabel(str(tmp_path / "rate.json"), "rate").values(zoo, task)
    assert (rates[zoo.run == 4] == 2).all()
    assert rates[zoo.run == 1].isnan().all()
    assert [label.name for label in (MetricLabel("val.loss"), StepLabel(), StepLabel(epochs=True))] == [
        "loss",
        "step",
        "epoch",
    ]


def test_labels_of_test_data_and_unknown_ones_are_refused(zoo, task):
    with pytest.raises(ValueError, match="would tell the flow of the test data"):
        MetricLabel("test.loss")
    with pytest.raises(ZooError, match=r"records no metric train\.beauty .*gives only accuracy, loss"):
        MetricLabel("train.beauty").values(zoo, task)
    with pytest.raises(ZooError, match=r"records no metric lr \(val\.accuracy, val\.loss\)"):
        MetricLabel("lr").values(zoo, task)


def test_any_metric_that_an_imported_zoo_records_is_a_label(task, tmp_path):
    theta, rate = torch.randn(20, task.space.dim), torch.rand(20)
    write_networks(tmp_path / "zoo", theta, task.space, metrics={"lr": rate}, task=task, kind="zoo")
    label = MetricLabel("lr")
    assert label.name == "lr"
    assert torch.equal(label.values(Zoo.open(tmp_path / "zoo"), task), rate)


class Count(Label):
    """The number of each snapshot, of a shape and type of choice."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__("count")
        self.shape = shape

    def values(self, zoo, task):
        return torch.arange(len(zoo)).view(self.shape)


def test_labels_of_any_type_and_of_one_shape(zoo, task):
    data = ZooDataModule(task, str(zoo.path), batch_size=4, labels=[Count([-1])])
    assert data.told("train").dtype == torch.float32
    data = ZooDataModule(task, str(zoo.path), batch_size=4, labels=[Count([-1, 1])])
    with pytest.raises(ValueError, match=r"label 'count' gives values of shape \(\d+, 1\)"):
        data.told("train")


def test_a_data_module_serves_labels_with_their_networks(zoo, task):
    labels: list[Label] = [MetricLabel("val.loss", log=True), StepLabel()]
    data = ZooDataModule(task, str(zoo.path), batch_size=4, final_only=False, permute=True, labels=labels)
    data.setup("fit")
    assert data.label_description == [{"name": "loss", "log": True}, {"name": "step", "log": False}]
    for batch in data.train_dataloader():
        torch.testing.assert_close(batch.label[:, 0], task.evaluate(batch.x1, "val")["loss"])
    assert data.told("train").shape == (len(data.rows("train")), 2)
    assert data.networks("val").label.shape[1] == 2
    plain = ZooDataModule(task, str(zoo.path), batch_size=4)
    assert plain.label_description is plain.told("train") is None
    assert plain.networks("val").label is None
