"""A zoo that names no task can be trained on."""

from __future__ import annotations

import pytest
import torch

from wsflow.tasks import BaseTask, BreastCancer, WithoutData
from wsflow.weightspace import WeightSpace
from wsflow.zoo import ZooDataModule, write_networks

NETWORK = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 3, 2]}, "output_activation": "identity"}


def test_it_is_described_and_rebuilt():
    task = WithoutData.of(NETWORK)
    again = BaseTask.from_description(task.description)
    assert again.network == NETWORK
    assert again.space == WeightSpace.from_description(NETWORK)
    assert not again.has_data
    logits = torch.randn(2, 5, 2)
    assert torch.equal(again.predictions(logits), logits)
    sums = WithoutData.of({**NETWORK, "output_activation": "softmax"}).predictions(logits).sum(-1)
    torch.testing.assert_close(sums, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"no data for networks of .*; name their task"):
        again.load()
    with pytest.raises(ValueError, match="no losses"):
        again.losses(logits, torch.zeros(5))


@pytest.mark.parametrize("task", [None, BreastCancer()], ids=["none", "named"])
def test_the_data_module_takes_the_zoos_task(task, tmp_path):
    space = WeightSpace.from_description(NETWORK) if task is None else task.space
    write_networks(tmp_path / "zoo", torch.randn(20, space.dim), space, task=task, kind="trained")
    data = ZooDataModule(path=str(tmp_path / "zoo"), batch_size=4)
    data.setup()
    assert next(iter(data.train_dataloader())).x1.shape == (4, space.dim)
    assert type(data.task) is (WithoutData if task is None else BreastCancer)
    assert data.space_description == dict(space.description)


def test_a_task_or_a_zoo_is_needed(tmp_path):
    with pytest.raises(ValueError, match=f"there is no zoo in {tmp_path} to take the task from; give data.task"):
        ZooDataModule(path=str(tmp_path))
    with pytest.raises(ValueError, match="path is missing"):
        ZooDataModule(BreastCancer())
