from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from wsflow.tasks import MNIST, BreastCancer, Gaussians
from wsflow.weightspace import NetworkInitializer
from wsflow.zoo import SGD, Adam, Collector, EverySnapshot, ValidationSnapshot, Zoo, ZooError
from wsflow.zoo import collect as module
from wsflow.zoo.train import DataOrder, draw_starts, run_generator

OPTIMIZERS = {
    "adam": Adam(0.01, weight_decay=0.1),
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True),
}


def train_alone(task, start, orders, optimizer, epochs, batch_size):
    """The slow reference: one run as an ordinary network in an ordinary loop."""
    network = task.space.to_module(start).train()
    flat = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[type(optimizer).__name__.lower()]
    settings = dict(vars(optimizer))
    descent = flat(network.parameters(), **settings)
    inputs, targets = task.data("train")
    for _ in range(epochs):
        for index in torch.split(orders.epoch()[0], batch_size):
            descent.zero_grad()
            F.cross_entropy(network(inputs[index]), targets[index]).backward()
            descent.step()
    return task.space.flatten(network.state_dict())


def contents(path: Path) -> dict[str, bytes]:
    """Files by name; a temporary file that a killed writer left stays for an hour."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.suffix != ".tmp"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_each_run_is_trained_as_if_alone(task, optimizer, tmp_path):
    collector = Collector(runs=3, epochs=3, batch_size=16, optimizer=optimizer, seed=5)
    collector.collect(task, tmp_path, progress=False)
    zoo = Zoo.open(tmp_path)
    for run in range(3):
        alone = train_alone(task, zoo.start[run], DataOrder(38, 5, [run]), optimizer, 3, 16)
        torch.testing.assert_close(zoo.theta[run], alone, rtol=1e-4, atol=1e-5)


def test_contents_are_complete(task, zoo_path):
    zoo = Zoo.open(zoo_path)
    assert zoo.theta.shape == (30, task.space.dim)
    assert zoo.run.tolist() == [run for run in range(10) for _ in range(3)]
    assert zoo.step.tolist() == [2, 4, 6] * 10
    assert zoo.run_ids.tolist() == list(range(10))
    for split in ("val", "test"):
        for name, value in task.evaluate(zoo.theta, split).items():
            torch.testing.assert_close(zoo.metrics[f"{split}.{name}"], value)
    assert set(zoo.metrics) == {"val.loss", "val.accuracy", "test.loss", "test.accuracy"}
    zoo.verify()


def test_starts_are_kept_and_training_helps(task, zoo_path):
    zoo = Zoo.open(zoo_path)
    expected = draw_starts(task, Collector().initializer, 0, range(10))
    assert torch.equal(zoo.start, expected)
    assert (
        task.evaluate(zoo.rows(zoo.final()), "train")["loss"].mean() < task.evaluate(zoo.start, "train")["loss"].mean()
    )


@pytest.mark.parametrize("shard_runs", [1, 3, 10])
def test_order_and_starts_do_not_depend_on_the_cut(task, zoo_path, tmp_path, shard_runs):
    collector = Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=shard_runs)
    collector.collect(task, tmp_path / "other", progress=False)
    first, second = Zoo.open(zoo_path), Zoo.open(tmp_path / "other")
    assert torch.equal(first.start, second.start)
    torch.testing.assert_close(first.theta, second.theta, rtol=1e-4, atol=1e-6)


def test_memory_cuts_chunks(task, zoo_path, tmp_path):
    collector = Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=4, memory="8KB")
    assert collector.chunk_runs(task) == 1
    collector.collect(task, tmp_path / "other", progress=False)
    torch.testing.assert_close(Zoo.open(zoo_path).theta, Zoo.open(tmp_path / "other").theta, rtol=1e-4, atol=1e-6)


def test_data_order_is_that_of_run_and_epoch():
    together, alone = DataOrder(20, 3, [4, 7]), DataOrder(20, 3, [7])
    epochs = [together.epoch() for _ in range(2)]
    assert all(torch.equal(epoch[1], alone.epoch()[0]) for epoch in epochs)
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0].sort(1).values, torch.arange(20).expand(2, -1))
    assert not torch.equal(DataOrder(20, 4, [4]).epoch()[0], epochs[0][0])


@pytest.mark.parametrize("cut", [{}, {"shard_runs": 3}, {"memory": "8KB"}], ids=["whole", "shards", "memory"])
def test_runs_that_share_an_order_are_trained_as_if_alone(task, tmp_path, cut):
    collector = Collector(runs=5, epochs=3, batch_size=16, optimizer=SGD(0.1), seed=5, runs_per_order=2, **cut)
    collector.collect(task, tmp_path, progress=False)
    zoo = Zoo.open(tmp_path)
    assert zoo.order.tolist() == [0, 0, 1, 1, 2]
    for run in range(5):
        alone = train_alone(task, zoo.start[run], DataOrder(38, 5, [run // 2]), SGD(0.1), 3, 16)
        torch.testing.assert_close(zoo.theta[run], alone, rtol=1e-4, atol=1e-5)


def test_chunks_are_of_one_order_and_hold_every_run_once(task):
    collector = Collector(runs=23, shard_runs=10, runs_per_order=4)
    chunks = [chunk for shard in range(collector.shards) for chunk in collector._chunks(task, shard)]
    assert [run for chunk in chunks for run in chunk] == list(range(23))
    assert all(chunk[0] // 4 == chunk[-1] // 4 for chunk in chunks)
    assert max(len(chunk) for chunk in chunks) == collector.chunk_runs(task) == 4
    assert collector.estimate(task, 1)["chunk_runs"] == 4


def test_runs_that_share_no_order_leave_the_settings_as_they_were(task, zoo_path):
    assert "runs_per_order" not in Collector().description["init_args"]
    assert Zoo.open(zoo_path).order is None
    shared = Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=4, runs_per_order=2)
    with pytest.raises(ZooError, match="runs_per_order is None there and 2 here"):
        shared.collect(task, zoo_path, progress=False)
    with pytest.raises(ValueError, match="runs_per_order must be at least 1, got 0"):
        Collector(runs_per_order=0)


def test_collecting_twice_writes_the_same_bytes(task, collector, zoo_path, tmp_path):
    collector.collect(task, tmp_path / "again", progress=False)
    assert contents(tmp_path / "again") == contents(zoo_path)


def test_a_complete_zoo_is_left_alone(task, collector, zoo_path, monkeypatch):
    monkeypatch.setattr(Collector, "_collect_shard", lambda *_: pytest.fail("collected again"))
    assert collector.collect(task, zoo_path, progress=False)


def test_shares_make_one_zoo(task, collector, zoo_path, tmp_path):
    path = tmp_path / "shared"
    assert not collector.collect(task, path, share=(1, 2), progress=False)
    with pytest.raises(ZooError, match=r"no complete zoo .* 1 shards are finished"):
        Zoo.open(path)
    assert collector.collect(task, path, share=(0, 2), progress=False)
    assert contents(path) == contents(zoo_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "collector.init_args.seed is 0 there and 1 here"),
        ({"optimizer": Adam(0.5)}, "optimizer.init_args.lr is 0.001 there and 0.5 here"),
        ({"shard_runs": 5}, "collector.init_args.shard_runs is 4 there and 5 here"),
    ],
    ids=["seed", "optimizer", "shard_runs"],
)
def test_other_settings_are_refused(task, zoo_path, change, message):
    settings = {"runs": 10, "epochs": 2, "batch_size": 16, "snapshots": EverySnapshot(2), "shard_runs": 4}
    with pytest.raises(ZooError, match=message):
        Collector(**{**settings, **change}).collect(task, zoo_path, progress=False)


def test_a_collection_may_go_on_with_less_memory(task, collector, zoo_path, tmp_path):
    path = tmp_path / "resumed"
    collector.collect(task, path, share=(0, 2), progress=False)
    lean = Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=4, memory="8KB")
    assert lean.collect(task, path, progress=False)
    torch.testing.assert_close(Zoo.open(zoo_path).theta, Zoo.open(path).theta, rtol=1e-4, atol=1e-6)


def test_no_two_runs_share_a_start():
    # Torch's CPU generator reads 32 bits: random seeds would collide here three times on average.
    seeds = {run_generator(0, run).initial_seed() % 2**32 for run in range(160_000)}
    assert len(seeds) == 160_000


def test_a_damaged_shard_is_collected_again(task, collector, zoo_path, tmp_path):
    whole = contents(zoo_path)
    shard = zoo_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    assert collector.collect(task, zoo_path, progress=False)
    assert contents(zoo_path) == whole


def test_a_shard_collected_again_with_other_rounding_is_the_manifests(task, collector, zoo_path, monkeypatch):
    original, shard = module.draw_starts, zoo_path / "shard-00001.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(before[:-8])
    monkeypatch.setattr(module, "draw_starts", lambda *arguments: original(*arguments) * (1 + 1e-6))
    assert collector.collect(task, zoo_path, progress=False)
    assert shard.read_bytes() != before
    Zoo.open(zoo_path).verify()


def test_networks_of_other_origin_are_not_overwritten(task, collector, zoo_path):
    (zoo_path / "settings.json").unlink()
    with pytest.raises(ZooError, match="'collect' did not make"):
        collector.collect(task, zoo_path, progress=False)


def test_validation_snapshots_begin_at_the_best(task, tmp_path):
    collector = Collector(runs=6, epochs=40, batch_size=16, optimizer=SGD(1.0), snapshots=ValidationSnapshot(3))
    collector.collect(task, tmp_path, progress=False)
    zoo = Zoo.open(tmp_path)
    for run in range(6):
        rows = (zoo.run == run).nonzero().squeeze(1)
        loss, step = zoo.metrics["val.loss"][rows], zoo.step[rows]
        assert int(loss.argmin()) == 0
        assert int(step[-1]) == 120
        assert torch.equal(step, torch.arange(int(step[0]), 121, 3))
    assert len(zoo) < 6 * 40


def test_diverged_runs_are_dropped_by_number(task, tmp_path, monkeypatch):
    original = module.draw_starts

    def spoiled(task, initializer, seed, runs):
        start = original(task, initializer, seed, runs)
        start[[r in (1, 6) for r in runs]] = torch.inf
        return start

    monkeypatch.setattr(module, "draw_starts", spoiled)
    collector = Collector(runs=8, epochs=1, batch_size=16, shard_runs=4)
    with pytest.warns(UserWarning, match="dropped 1 runs that diverged") as caught:
        collector.collect(task, tmp_path, progress=False)
    assert [str(w.message).rpartition(": ")[2] for w in caught] == ["[1]", "[6]"]
    zoo = Zoo.open(tmp_path)
    zoo.verify()
    assert zoo.run.tolist() == [0, 2, 3, 4, 5, 7] == zoo.run_ids.tolist()
    assert zoo.manifest["dropped"] == [1, 6]


def test_one_diverged_run_does_not_touch_the_others(task, zoo_path, tmp_path, monkeypatch):
    original = module.draw_starts

    def spoiled(task, initializer, seed, runs):
        start = original(task, initializer, seed, runs)
        start[[r == 2 for r in runs]] = torch.nan
        return start

    monkeypatch.setattr(module, "draw_starts", spoiled)
    collector = Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=4)
    with pytest.warns(UserWarning, match=r"diverged: \[2\]"):
        collector.collect(task, tmp_path / "other", progress=False)
    whole, other = Zoo.open(zoo_path), Zoo.open(tmp_path / "other")
    assert torch.equal(whole.theta[whole.run != 2], other.theta)


@pytest.mark.filterwarnings("ignore:dropped 4 runs:UserWarning")
def test_a_shard_of_diverged_runs_is_refused(task, tmp_path):
    collector = Collector(runs=4, epochs=30, batch_size=16, optimizer=SGD(1e12))
    with pytest.raises(ZooError, match="all runs of shard 0 diverged"):
        collector.collect(task, tmp_path, progress=False)
    collector.optimizer = SGD(0.1)
    with pytest.raises(ZooError, match=rf"lr is .* there and 0.1 here; no run .* delete {tmp_path}/settings.json"):
        collector.collect(task, tmp_path, progress=False)
    (tmp_path / "settings.json").unlink()
    assert collector.collect(task, tmp_path, progress=False)


def test_data_that_cannot_be_read_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="is not in"):
        Collector(runs=4).collect(MNIST(data_dir=str(tmp_path / "absent")), tmp_path / "zoo", progress=False)
    assert not list(tmp_path.iterdir())


def test_gaussian_networks_are_drawn(tmp_path):
    task = Gaussians(widths=[4, 3, 2])
    Collector(runs=300, shard_runs=100, seed=1).collect(task, tmp_path, progress=False)
    zoo = Zoo.open(tmp_path)
    assert zoo.start is None
    assert zoo.metrics == {}
    assert zoo.theta.shape == (300, task.space.dim)
    assert abs(float(zoo.theta.mean()) - 1) < 0.05
    assert torch.equal(zoo.final(), torch.arange(300))


def test_initializer_is_the_law_of_the_starts(task, tmp_path):
    Collector(runs=4, epochs=1, initializer=NetworkInitializer()).collect(task, tmp_path, progress=False)
    start = Zoo.open(tmp_path).start
    assert start[:, :20].abs().max() <= 0.5  # nn.Linear draws from U(-1 / sqrt(4), 1 / sqrt(4))
    assert len(torch.unique(start, dim=0)) == 4


def test_estimate_says_time_and_memory(task, collector):
    estimate = collector.estimate(task, steps=2)
    assert estimate["seconds"] > 0
    assert estimate["memory_bytes"] > 0
    assert estimate["disk_bytes"] == 10 * 4 * task.space.dim * 4
    assert (estimate["shards"], estimate["chunk_runs"], estimate["steps"]) == (3, 4, 6)
    assert Collector(runs=3).estimate(Gaussians())["seconds"] == 0


def test_progress_is_shown_on_stderr(task, tmp_path, capsys):
    Collector(runs=2, epochs=3).collect(task, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3 epochs" in err


@pytest.mark.parametrize("name", ["runs", "epochs", "batch_size", "shard_runs"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        Collector(**{name: 0})


@pytest.mark.parametrize("text", ["much", "2GG", "-1MB", ""])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="memory must be a size"):
        Collector(memory=text)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from clusters_plugin import Clusters
from wsflow.zoo import Collector, EverySnapshot
collector = Collector(runs=120, epochs=4, batch_size=16, snapshots=EverySnapshot(5), shard_runs=5)
collector.collect(Clusters(), sys.argv[2], progress=False)
"""


def test_a_killed_collection_resumes_to_the_same_bytes(task, plugin, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(plugin), str(killed)], env=env)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("shard-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(list(killed.glob("shard-*.json"))) < 24
    assert not (killed / "zoo.json").exists()
    collector = Collector(runs=120, epochs=4, batch_size=16, snapshots=EverySnapshot(5), shard_runs=5)
    for path in (killed, whole):
        assert collector.collect(task, path, progress=False)
    assert contents(killed) == contents(whole)


def test_starts_that_cannot_be_drawn_end_a_collection_before_anything_is_written(tmp_path):
    class Undrawn(NetworkInitializer):
        def sample(self, space, n, generator):
            raise ValueError("no layer draws it")

    with pytest.raises(ValueError, match="no layer draws it"):
        Collector(runs=4, epochs=1, initializer=Undrawn()).collect(BreastCancer(), tmp_path / "zoo", progress=False)
    assert not (tmp_path / "zoo").exists()
