from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest
import safetensors.torch
import torch

from wsflow.weightspace import WeightSpace, mlp
from wsflow.zoo import Zoo, ZooError, split_runs, write_networks
from wsflow.zoo.shards import shard_tensors, write_json, write_shard

NETWORK = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [3, 4, 2]}, "output_activation": "softmax"}


@pytest.fixture
def space():
    return WeightSpace.from_description(NETWORK)


@pytest.fixture
def written(space, tmp_path):
    """Seven snapshots of the runs 3, 5 and 9, in shards of about three rows."""
    theta = torch.arange(7.0)[:, None].expand(7, space.dim).contiguous()
    run, step = torch.tensor([3, 3, 5, 9, 9, 9, 9]), torch.tensor([1, 2, 2, 1, 2, 3, 4])
    start = -torch.tensor([3.0, 5.0, 9.0])[:, None].expand(3, space.dim)
    path = tmp_path / "zoo"
    write_networks(path, theta, space, run, step, start, {"val.loss": theta[:, 0]}, kind="zoo", shard_rows=3)
    return path


def edit(path, **changes):
    manifest = json.loads((path / "zoo.json").read_text())
    (path / "zoo.json").write_text(json.dumps(manifest | changes))


def test_what_is_written_is_read(written, space):
    zoo = Zoo.open(written)
    assert len(zoo.manifest["shards"]) == 2
    assert zoo.space == space
    assert zoo.theta[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert zoo.run.tolist() == [3, 3, 5, 9, 9, 9, 9]
    assert zoo.step.tolist() == [1, 2, 2, 1, 2, 3, 4]
    assert zoo.run_ids.tolist() == [3, 5, 9]
    assert zoo.metrics["val.loss"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (len(zoo), zoo.kind, zoo.task) == (7, "zoo", None)
    zoo.verify()


def test_rows_cross_shards(written):
    assert Zoo.open(written).rows(torch.tensor([6, 0, 3, 6]))[:, 0].tolist() == [6, 0, 3, 6]


def test_finals_are_the_last_of_each_run(written):
    assert Zoo.open(written).final().tolist() == [1, 2, 6]


def test_finals_of_many_snapshots_are_the_last_ones_with_several_threads(space, tmp_path):
    """Two threads that write to one place leave what came last, and not what is last."""
    run, step = torch.arange(300).repeat_interleave(80), torch.arange(80).repeat(300)
    write_networks(tmp_path / "zoo", torch.zeros(len(run), space.dim), space, run, step, kind="zoo")
    zoo, threads = Zoo.open(tmp_path / "zoo"), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert all(torch.equal(zoo.final(), torch.arange(79, 24_000, 80)) for _ in range(50))
    finally:
        torch.set_num_threads(threads)


def test_starts_belong_to_runs(written):
    zoo = Zoo.open(written)
    assert zoo.starts_of(torch.tensor([9, 3, 9]))[:, 0].tolist() == [-9, -3, -9]
    assert "start" not in vars(zoo)  # those of other runs are not read
    with pytest.raises(ZooError, match="has no run 4"):
        zoo.starts_of(torch.tensor([3, 4]))


def test_shards_in_any_order_of_runs(space, tmp_path):
    from wsflow.zoo import write_manifest

    sidecars = []
    for index, runs in enumerate([[4, 6], [1, 5]]):
        theta = torch.tensor(runs, dtype=torch.float)[:, None].expand(2, space.dim)
        tensors = shard_tensors(theta, torch.tensor(runs), torch.zeros(2))
        sidecars.append(write_shard(tmp_path, index, tensors))
    write_manifest(tmp_path, space, sidecars, kind="samples")
    zoo = Zoo.open(tmp_path)
    assert zoo.run_ids.tolist() == [1, 4, 5, 6]
    assert zoo.rows(zoo.final())[:, 0].tolist() == [1, 4, 5, 6]
    with pytest.raises(ZooError, match="keeps no initial weights"):
        zoo.starts_of(torch.tensor([4]))
    zoo.verify()


def test_reading_leaves_the_files_alone(written):
    before = {file.name: file.read_bytes() for file in written.iterdir()}
    zoo = Zoo.open(written)
    zoo.rows(torch.arange(7)).zero_()
    zoo.theta.zero_()
    network = zoo.space.to_module(Zoo.open(written).theta[3])
    torch.nn.init.zeros_(network[1].weight)
    assert {file.name: file.read_bytes() for file in written.iterdir()} == before
    assert Zoo.open(written).theta[3, 0] == 3


def test_a_single_shard_is_mapped_and_never_written(space, tmp_path):
    write_networks(tmp_path, torch.ones(4, space.dim), space)
    content = (tmp_path / "shard-00000.safetensors").read_bytes()
    Zoo.open(tmp_path).theta.zero_()
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == content


def test_no_zoo(tmp_path):
    with pytest.raises(ZooError, match=r"there is no zoo at .*wsflow collect"):
        Zoo.open(tmp_path / "nowhere")
    with pytest.raises(ZooError, match=r"no complete zoo at .*: empty"):
        Zoo.open(tmp_path)


def test_a_missing_shard_is_named(written):
    (written / "shard-00001.safetensors").unlink()
    with pytest.raises(ZooError, match=r"shard-00001.safetensors is missing"):
        Zoo.open(written)


def test_a_truncated_shard_is_named(written):
    file = written / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ZooError, match=r"shard-00000.safetensors is truncated or damaged"):
        Zoo.open(written)


def test_a_damaged_header_is_named(written):
    file = written / "shard-00000.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ZooError, match=r"shard-00000.safetensors is damaged"):
        Zoo.open(written)


def test_a_flipped_bit_is_found_by_verify(written):
    file = written / "shard-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ZooError, match=r"shard-00000.safetensors is damaged: its SHA-256"):
        Zoo.open(written).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not the manifest of a wsflow zoo"),
        ({"version": 99}, "format version 99.*update"),
        ({"shards": []}, "damaged: it lacks shards"),
        ({"rows": 6}, "inconsistent"),
        ({"version": "x", "rows": None}, "zoo.json is damaged: version, rows cannot be read"),
        ({"shards": 3}, "zoo.json is damaged: shards cannot be read"),
        ({"shards": [{}]}, "zoo.json is damaged: shards cannot be read"),
        ({"space": None, "task": "x", "data": []}, "zoo.json is damaged: space, task, data cannot be read"),
        ({"seconds_per_network": "x"}, "zoo.json is damaged: seconds_per_network cannot be read"),
        ({"space": {**NETWORK, "init_args": {"widths": [3, 5, 2]}}}, "weights of another architecture.*D = 32"),
        ({"space": {**NETWORK, "class_path": "nowhere.net"}}, "'nowhere.net' cannot be imported"),
    ],
    ids=str,
)
def test_wrong_manifests_are_refused(written, changes, message):
    edit(written, **changes)
    with pytest.raises(ValueError, match=message):
        Zoo.open(written).verify()


@pytest.mark.parametrize("content", ["[1, 2]", "{", "\x00"], ids=["list", "half", "binary"])
def test_what_is_no_manifest_is_refused(written, content):
    (written / "zoo.json").write_text(content)
    with pytest.raises(ZooError, match=r"zoo.json (is not the manifest|cannot be read)"):
        Zoo.open(written)


def test_a_shard_without_weights_is_refused(written):
    file = written / "shard-00000.safetensors"
    size = file.stat().st_size
    safetensors.torch.save_file({"other": torch.zeros(2)}, file)
    manifest = json.loads((written / "zoo.json").read_text())
    manifest["shards"][0]["bytes"] = file.stat().st_size
    assert size != file.stat().st_size
    edit(written, shards=manifest["shards"])
    with pytest.raises(ZooError, match="lacks the tensors"):
        Zoo.open(written)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_written(space, tmp_path, value):
    theta = torch.ones(4, space.dim)
    theta[2, 5] = value
    with pytest.raises(ZooError, match="weights of 1 runs hold NaN or infinity: runs 2"):
        write_networks(tmp_path / "zoo", theta, space)
    assert not (tmp_path / "zoo" / "zoo.json").exists()


def test_weights_that_are_not_finite_are_found(written):
    file = written / "shard-00001.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["theta"][1, 0] = torch.nan
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ZooError, match="weights of 1 runs hold NaN or infinity: runs 9"):
        Zoo.open(written).check_finite()


def test_an_existing_zoo_is_not_overwritten(written, space):
    with pytest.raises(ZooError, match="already holds a zoo"):
        write_networks(written, torch.ones(1, space.dim), space)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": torch.tensor([0, 1, 0])}, "runs must ascend"),
        ({"step": torch.tensor([0, 1])}, "one entry per network"),
        ({"start": torch.ones(2, 26)}, r"starts of 3 runs have the shape \(3, 26\), got \(2, 26\)"),
        ({"start": torch.ones(3, 27)}, r"got \(3, 27\)"),
        ({"metrics": {"val.loss": torch.ones(2)}}, "metrics of 3 networks"),
        ({"run": torch.tensor([0, 0, 1]), "step": torch.tensor([4, 4, 4])}, "ascend within a run"),
    ],
    ids=["runs", "steps", "starts", "wide starts", "metrics", "equal steps"],
)
def test_misfits_are_not_written(space, tmp_path, arguments, message):
    with pytest.raises(ZooError, match=message):
        write_networks(tmp_path, torch.ones(3, space.dim), space, **arguments)


def test_nothing_is_not_a_zoo(space, tmp_path):
    with pytest.raises(ZooError, match="no networks"):
        write_networks(tmp_path, torch.ones(0, space.dim), space)


def test_a_space_needs_a_description(tmp_path):
    space = WeightSpace.from_module(mlp([3, 4, 2]))
    with pytest.raises(ZooError, match="needs a weight space with a description"):
        write_networks(tmp_path, torch.ones(1, space.dim), space)


def test_leftovers_of_killed_writers_are_removed_and_files_of_other_writers_are_not(space, tmp_path):
    old, new = tmp_path / ".shard-00000.safetensors.1.tmp", tmp_path / ".zoo.json.2.tmp"
    for file in (old, new):
        file.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    write_networks(tmp_path, torch.ones(1, space.dim), space)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".zoo.json.2.tmp",
        "shard-00000.json",
        "shard-00000.safetensors",
        "zoo.json",
    ]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    replace, both = os.replace, threading.Barrier(2)

    def together(source, target):
        both.wait(timeout=60)  # until both temporary files are written
        replace(source, target)

    monkeypatch.setattr(os, "replace", together)
    failures = []

    def write(value):
        try:
            write_json(tmp_path / "zoo.json", value)
        except OSError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert json.loads((tmp_path / "zoo.json").read_text()) in (1, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["zoo.json"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "zoo.json", 1)
    assert not list(tmp_path.iterdir())


def test_moved_zoos_open(written, tmp_path):
    shutil.move(written, tmp_path / "moved")
    assert len(Zoo.open(tmp_path / "moved")) == 7


def test_runs_are_split_once_and_for_all():
    ids = torch.arange(40)[torch.randperm(40)] * 3
    parts = split_runs(ids, seed=1)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [32, 4, 4]
    assert torch.equal(torch.cat(list(parts.values())).sort().values, ids.sort().values)
    again = split_runs(ids.flip(0), seed=1)
    assert all(torch.equal(parts[name], again[name]) for name in parts)
    assert not torch.equal(parts["val"], split_runs(ids, seed=2)["val"])


def test_runs_of_one_order_come_into_one_split():
    ids = torch.arange(40)[torch.randperm(40)] * 3
    order = ids // 12
    parts = split_runs(ids, seed=1, order=order)
    assert torch.equal(torch.cat(list(parts.values())).sort().values, ids.sort().values)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [32, 4, 4]
    orders = [set((part // 12).tolist()) for part in parts.values()]
    assert len(set.union(*orders)) == sum(len(one) for one in orders) == 10
    with pytest.raises(ValueError, match=r"2 items are too few .* one order stay together"):
        split_runs(ids, order=ids // 60)


def test_orders_need_starts_and_every_file(tmp_path, space):
    theta = torch.randn(4, space.dim)
    with pytest.raises(ZooError, match="need as many starts"):
        write_networks(tmp_path / "a", theta, space, order=torch.arange(4))
    with pytest.raises(ZooError, match="3 orders"):
        write_networks(tmp_path / "a", theta, space, start=theta, order=torch.arange(3))
    write_networks(tmp_path / "a", theta, space, start=theta, order=torch.tensor([0, 0, 5, 5]), shard_rows=2)
    assert Zoo.open(tmp_path / "a").order.tolist() == [0, 0, 5, 5]
    tensors = shard_tensors(theta[:2], torch.arange(2), torch.zeros(2), None, theta[:2], torch.arange(2))
    sidecar = write_shard(tmp_path / "a", 0, tensors)
    manifest = json.loads((tmp_path / "a" / "zoo.json").read_text())
    write_json(tmp_path / "a" / "zoo.json", {**manifest, "shards": [sidecar, manifest["shards"][1]]})
    with pytest.raises(ZooError, match="which runs share an order"):
        Zoo.open(tmp_path / "a")


def test_tensors_that_share_memory_are_written(space, tmp_path):
    theta, numbers = torch.randn(3, space.dim), torch.arange(3.0)
    write_networks(tmp_path, theta, space, start=theta, metrics={"val.loss": numbers, "val.accuracy": numbers})
    zoo = Zoo.open(tmp_path)
    assert torch.equal(zoo.start, theta)
    assert torch.equal(zoo.metrics["val.accuracy"], numbers)


@pytest.mark.parametrize("index", [[-1], [0, 7]])
def test_snapshots_that_are_not_there_are_refused(written, index):
    with pytest.raises(ZooError, match="has snapshots 0 to 6"):
        Zoo.open(written).rows(torch.tensor(index))
