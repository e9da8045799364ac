from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch

from wsflow.alignment import Aligner, WeightMatching
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations
from wsflow.zoo import Adam, Collector, EverySnapshot, Zoo, ZooDataModule, ZooError, split_runs, write_networks
from wsflow.zoo import align as align_module

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def make(task, path, **kwargs):
    kwargs = {"batch_size": 3, **kwargs}
    data = ZooDataModule(task, str(path), **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


class Recorder(pl.LightningModule):
    """Keeps what it sees in each step, and a checkpoint after each."""

    def __init__(self, folder=None) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_runs: list[list[int]] = []
        self.val_runs: list[int] = []

    def training_step(self, batch, index):
        self.train_runs.append(batch.run.tolist())
        return (self.weight - batch.x1.mean()).square().sum()

    def validation_step(self, batch, index):
        self.val_runs += batch.run.tolist()

    def on_train_batch_end(self, outputs, batch, index):
        if self.folder is not None:
            self.trainer.save_checkpoint(self.folder / f"{self.global_step}.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Wrong(Aligner):
    """Permutations that are none."""

    def align(self, space, theta, reference, objective=None):
        return [torch.zeros(len(theta), group.size, dtype=torch.long) for group in space.hidden]


def test_splits_are_by_run(task, zoo_path):
    data = make(task, zoo_path, final_only=False)
    runs = {split: set(data.networks(split).run.tolist()) for split in ("train", "val", "test")}
    assert [len(r) for r in runs.values()] == [8, 1, 1]
    assert set.union(*runs.values()) == set(range(10))
    for split in runs:
        assert set(data.zoo.run[data.rows(split)].tolist()) == runs[split]
        assert len(data.rows(split)) == 3 * len(runs[split])
        assert len(data.rows(split, final_only=True)) == len(runs[split])


def test_runs_of_one_order_come_into_one_split(task, tmp_path):
    collector = Collector(runs=30, epochs=1, batch_size=16, runs_per_order=3)
    data = ZooDataModule(task, str(tmp_path / "zoo"), collector)
    data.prepare_data()
    orders = {name: set((runs // 3).tolist()) for name, runs in data.runs.items()}
    assert [len(runs) for runs in data.runs.values()] == [24, 3, 3]
    assert len(set.union(*orders.values())) == sum(len(one) for one in orders.values()) == 10
    train = data.zoo.run[data.rows("train")]
    assert torch.equal(train, data.runs["train"])
    assert len(set((train[:8] // 3).tolist())) == 8
    assert torch.equal(train[:8] % 3, torch.zeros(8, dtype=torch.long))
    few = ZooDataModule(task, str(tmp_path / "zoo"), collector, train_runs=8)
    assert torch.equal(few.zoo.run[few.rows("train")], train[:8])


def test_fewer_train_runs_leave_the_other_splits_alone(task, zoo_path):
    every, few = make(task, zoo_path).runs, make(task, zoo_path, train_runs=5)
    assert few.runs["train"].tolist() == every["train"][:5].tolist()
    assert all(torch.equal(few.runs[split], every[split]) for split in ("val", "test"))
    assert set(few.zoo.run[few.rows("train")].tolist()) == set(few.runs["train"].tolist())
    with pytest.raises(ValueError, match=r"train_runs is 1000, the train split has \d+ runs"):
        make(task, zoo_path, train_runs=1000)


def test_batches_hold_networks_with_their_starts(task, zoo_path):
    data, zoo = make(task, zoo_path), Zoo.open(zoo_path)
    for batch in [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]:
        rows = zoo.final()[batch.run]
        assert torch.equal(batch.x1, zoo.theta[rows])
        assert torch.equal(batch.start, zoo.start[batch.run])
        assert batch.label is None


def test_space_description_is_plain_and_rebuilds_the_space(task, zoo_path):
    description = ZooDataModule(task, str(zoo_path)).space_description
    assert json.loads(json.dumps(description)) == description
    assert WeightSpace.from_description(description) == task.space


def test_calibration_is_the_first_train_networks(task, zoo_path):
    data = make(task, zoo_path)
    batch = data.calibration(4)
    assert batch.run.tolist() == data.runs["train"][:4].tolist()


def test_an_absent_zoo_is_collected(task, collector, zoo_path, tmp_path):
    data = make(task, tmp_path / "new", collector=collector)
    assert torch.equal(data.zoo.theta, Zoo.open(zoo_path).theta)


def test_a_zoo_that_cannot_be_split_is_not_collected(task, tmp_path):
    data = ZooDataModule(task, str(tmp_path / "zoo"), Collector(runs=100, runs_per_order=50))
    with pytest.raises(ValueError, match="2 items are too few"):
        data.prepare_data()
    assert not (tmp_path / "zoo").exists()


def test_an_incomplete_zoo_is_completed(task, collector, tmp_path):
    collector.collect(task, tmp_path / "new", share=(0, 2), progress=False)
    assert len(make(task, tmp_path / "new", collector=collector).zoo) == 30


def test_an_absent_zoo_without_collector_is_an_error(task, tmp_path):
    with pytest.raises(ZooError, match="there is no zoo at"):
        make(task, tmp_path / "new")


def test_a_collector_of_other_settings_is_an_error(task, zoo_path):
    with pytest.raises(ZooError, match=r"holds a zoo of other settings: collector.init_args"):
        make(task, zoo_path, collector=Collector(runs=10, optimizer=Adam(0.1)))


@pytest.mark.parametrize("change", [{"memory": "1MiB"}, {"shard_runs": 7}, {"device": "cuda"}], ids=str)
def test_how_a_zoo_was_cut_does_not_matter(task, zoo_path, change):
    settings = {"runs": 10, "epochs": 2, "batch_size": 16, "snapshots": EverySnapshot(2), "shard_runs": 4, **change}
    assert len(make(task, zoo_path, collector=Collector(**settings)).zoo) == 30


def test_another_architecture_is_an_error(task, zoo_path):
    with pytest.raises(ZooError, match="weights of another architecture"):
        make(type(task)(hidden=6), zoo_path)


def test_another_task_is_an_error(task, zoo_path):
    with pytest.raises(ZooError, match=r"task.init_args.spread is 1.0 there and 2.0 here"):
        make(type(task)(spread=2.0), zoo_path)


def test_weights_that_are_not_finite_are_an_error(task, zoo_path):
    file = zoo_path / "shard-00001.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["theta"][0, 0] = torch.nan
    file.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(ZooError, match="hold NaN or infinity: runs 4"):
        make(task, zoo_path)


def test_a_batch_larger_than_the_train_split_is_an_error(task, zoo_path):
    with pytest.raises(ValueError, match=r"batch_size 9 .* is larger than the train split of 8 networks"):
        make(task, zoo_path, batch_size=9)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"passes": 0}])
def test_numbers_must_be_positive(task, change):
    with pytest.raises(ValueError, match="must be at least 1"):
        ZooDataModule(task, "zoo", **change)


def test_unknown_splits_are_an_error(task, zoo_path):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        make(task, zoo_path).networks("dev")


def test_random_permutations_keep_functions_and_move_starts_along(task, zoo_path):
    plain, permuted = make(task, zoo_path), make(task, zoo_path, permute=True)
    inputs = task.data("val")[0]
    for before, after in zip(plain.train_dataloader(), permuted.train_dataloader(), strict=True):
        assert torch.equal(before.run, after.run)
        assert not torch.equal(before.x1, after.x1)
        for a, b in ((before.x1, after.x1), (before.start, after.start)):
            torch.testing.assert_close(
                task.space.forward(a, inputs), task.space.forward(b, inputs), rtol=1e-4, atol=1e-5
            )
        difference = task.space.forward(after.x1 - after.start, inputs)
        torch.testing.assert_close(
            difference, task.space.forward(before.x1 - before.start, inputs), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(next(iter(plain.val_dataloader())).x1, next(iter(permuted.val_dataloader())).x1)


@pytest.fixture
def scrambled(task, tmp_path):
    """Twelve runs, two snapshots each: one network, permuted, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, task.space.dim, generator=generator).expand(12, -1)
    theta = task.space.permute(base, random_permutations(task.space, 12, generator))
    noisy = theta + 0.01 * torch.randn(theta.shape, generator=generator)
    rows = torch.stack([noisy, theta], 1).flatten(0, 1)
    run, step = torch.arange(12).repeat_interleave(2), torch.arange(2).repeat(12)
    write_networks(tmp_path / "scrambled", rows, task.space, run, step, 2 * theta, task=task, kind="zoo")
    return tmp_path / "scrambled"


def test_alignment_brings_all_to_the_reference(task, scrambled):
    data = make(task, scrambled, aligner=WeightMatching(), final_only=False)
    reference = data.zoo.rows(data.zoo.final()[data.zoo.position(torch.tensor([data.reference_run]))])
    finals = torch.cat([data.networks(split).x1 for split in ("train", "val", "test")])
    assert torch.equal(finals, reference.expand(12, -1))
    for batch in data.train_dataloader():
        torch.testing.assert_close(batch.x1, reference.expand(3, -1), atol=0.06, rtol=0)
        assert torch.equal(batch.start, 2 * reference.expand(3, -1))


def test_alignment_is_cached(task, scrambled, monkeypatch):
    first = make(task, scrambled, aligner=WeightMatching()).networks("test").x1
    other = next(seed for seed in range(100) if 0 not in split_runs(torch.arange(12), seed=seed)["train"])
    monkeypatch.setattr(WeightMatching, "align", lambda *_, **__: pytest.fail("aligned again"))
    assert torch.equal(make(task, scrambled, aligner=WeightMatching()).networks("test").x1, first)
    with pytest.raises(pytest.fail.Exception, match="aligned again"):
        make(task, scrambled, aligner=WeightMatching(iterations=7))
    with pytest.raises(pytest.fail.Exception, match="aligned again"):
        make(task, scrambled, aligner=WeightMatching(), split_seed=other)


@pytest.mark.parametrize("damage", ["truncated", "no permutation"])
def test_a_damaged_cache_is_made_anew(task, scrambled, damage):
    first = make(task, scrambled, aligner=WeightMatching()).networks("train").x1
    (cache,) = scrambled.glob("alignment-*.safetensors")
    content = cache.read_bytes()
    broken = {"perm.0": torch.zeros(12, 5, dtype=torch.long)}
    cache.write_bytes(content[:-3] if damage == "truncated" else safetensors.torch.save(broken))
    assert torch.equal(make(task, scrambled, aligner=WeightMatching()).networks("train").x1, first)
    assert cache.read_bytes() == content


def test_alignment_that_changes_functions_is_refused(task, scrambled):
    with pytest.raises(ValueError, match="alignment changed the function"):
        make(task, scrambled, aligner=Wrong())


def test_a_folder_that_cannot_be_written_only_costs_the_cache(task, scrambled, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(align_module, "write_whole", refuse)
    with pytest.warns(UserWarning, match="cannot be cached"):
        make(task, scrambled, aligner=WeightMatching())


def fit(task, path, folder=None, ckpt_path=None):
    module = Recorder(folder)
    data = ZooDataModule(task, str(path), batch_size=3)
    trainer = pl.Trainer(**TRAINER, max_epochs=4, num_sanity_val_steps=0, log_every_n_steps=1)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_a_resumed_fit_sees_the_same_batches(task, zoo_path, tmp_path, step):
    whole, _ = fit(task, zoo_path, tmp_path)
    assert len(whole.train_runs) == 8
    assert len({str(batch) for batch in whole.train_runs}) == 8
    resumed, _ = fit(task, zoo_path, ckpt_path=tmp_path / f"{step}.ckpt")
    assert resumed.train_runs == whole.train_runs[step:]
    assert torch.equal(resumed.weight, whole.weight)


def test_validation_sees_validation_runs(task, zoo_path):
    module, trainer = fit(task, zoo_path)
    assert module.val_runs == 4 * trainer.datamodule.runs["val"].tolist()


@pytest.mark.parametrize("change", [{}, {"permute": True}, {"aligner": WeightMatching()}], ids=["", "permute", "align"])
def test_earlier_snapshots_go_with_their_network(task, zoo_path, change):
    data = make(task, zoo_path, snapshots=True, **change)
    zoo, checked = data.zoo, 0
    for batch in data.train_dataloader():
        assert batch.path.shape == (3, 2, task.space.dim)
        torch.testing.assert_close(batch.path_times, torch.tensor([[2 / 6, 4 / 6]]).expand(3, 2))
        for x1, path, run in zip(batch.x1, batch.path, batch.run, strict=True):
            rows = (zoo.run == run).nonzero()[:, 0]
            stored = zoo.theta[rows[zoo.step[rows].argsort()]]
            inputs = torch.randn(5, 4)
            functions = task.space.forward(torch.stack([*path, x1]), inputs)
            torch.testing.assert_close(functions, task.space.forward(stored, inputs))
            # One permutation for all: distances along the way are those of the zoo.
            torch.testing.assert_close((path - x1).norm(dim=1), (stored[:2] - stored[2]).norm(dim=1))
            checked += 1
    assert checked == 6
    assert data.networks("train").path is None
    assert data.calibration(4).path.shape == (4, 2, task.space.dim)


def test_earlier_snapshots_that_are_not_there(task, tmp_path, zoo_path):
    Collector(runs=10, epochs=1, batch_size=16).collect(task, tmp_path / "final", progress=False)
    with pytest.raises(ZooError, match="keeps 1 to 1 snapshots per run"):
        make(task, tmp_path / "final", snapshots=True).calibration(2)
    with pytest.raises(ValueError, match="needs final_only=True"):
        make(task, zoo_path, snapshots=True, final_only=False)
