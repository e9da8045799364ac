"""A zoo aligned to its own centre, and what the cached permutations depend on."""

from __future__ import annotations

import pytest
import torch

from wsflow.alignment import Aligner, WeightMatching, ZooCenter
from wsflow.weightspace.symmetry import random_permutations
from wsflow.zoo import Zoo, ZooDataModule, write_networks
from wsflow.zoo.align import align_zoo


@pytest.fixture
def scrambled(task, tmp_path):
    """Twenty runs: one network with a little noise, permuted."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, task.space.dim, generator=generator) + 0.05 * torch.randn(20, task.space.dim)
    theta = task.space.permute(noisy, random_permutations(task.space, 20, generator))
    run, step = torch.arange(20), torch.zeros(20, dtype=torch.long)
    write_networks(tmp_path / "scrambled", theta, task.space, run, step, 2 * theta, task=task, kind="zoo")
    return tmp_path / "scrambled"


class Recorder(Aligner):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, torch.Tensor, object]] = []

    def reference(self, space, theta, objective=None):
        self.asked.append(("reference", theta, objective))
        return theta.mean(0)

    def align(self, space, theta, reference, objective=None):
        self.asked.append(("align", reference, objective))
        return [torch.arange(group.size).expand(len(theta), -1) for group in space.hidden]


def test_train_runs_alone_decide_on_the_centre(task, scrambled):
    aligner = Recorder()
    data = ZooDataModule(task, str(scrambled), batch_size=3, aligner=aligner)
    data.prepare_data()
    (_, theta, objective), (_, reference, same) = aligner.asked
    train = ZooDataModule(task, str(scrambled), batch_size=3).networks("train").x1
    assert len(theta) == 16
    assert torch.equal(theta.sort(0).values, train.sort(0).values)
    assert torch.equal(reference, theta.mean(0))
    torch.testing.assert_close(objective(theta), task.evaluate(theta, "train")["loss"])
    assert same is objective


def test_the_cache_heeds_the_task_where_the_zoo_names_none(task, tmp_path):
    write_networks(tmp_path / "bare", torch.randn(20, task.space.dim), task.space, kind="zoo")
    asked = []
    for one in (task, type(task)(spread=3.0), task):
        aligner = Recorder()
        ZooDataModule(one, str(tmp_path / "bare"), batch_size=3, aligner=aligner).prepare_data()
        asked.append(len(aligner.asked))
    assert asked == [2, 2, 0]


def test_all_splits_are_brought_near_the_centre(task, scrambled, monkeypatch):
    def load(**settings):
        data = ZooDataModule(task, str(scrambled), batch_size=3, aligner=ZooCenter(**settings))
        data.prepare_data()
        return [data.networks(split).x1 for split in ("train", "val", "test")]

    splits = load()
    assert (torch.cat(splits) - splits[0].mean(0)).abs().max() < 0.3
    monkeypatch.setattr(WeightMatching, "align", lambda *_, **__: pytest.fail("aligned again"))
    assert all(torch.equal(a, b) for a, b in zip(load(), splits, strict=True))
    for other in ({"rounds": 3}, {"aligner": WeightMatching(seed=1)}):
        with pytest.raises(pytest.fail.Exception, match="aligned again"):
            load(**other)


def test_the_cache_is_keyed_by_the_runs_that_decide_and_checked_when_read(task, scrambled):
    zoo, aligner = Zoo.open(scrambled), WeightMatching()
    first = align_zoo(zoo, aligner, [3, 4])
    (cache,) = scrambled.glob("alignment-*.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(align_zoo(zoo, aligner, [3, 4]), first, strict=True))
    align_zoo(zoo, aligner, [3, 5])
    assert len(list(scrambled.glob("alignment-*.safetensors"))) == 2
    content = cache.read_bytes()
    cache.write_bytes(content[:-8] + b"\x09" + 7 * b"\x00")
    assert all(torch.equal(a, b) for a, b in zip(align_zoo(zoo, aligner, [3, 4]), first, strict=True))
    assert cache.read_bytes() == content
