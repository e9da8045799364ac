"""Networks of a zoo as files, and back."""

from __future__ import annotations

import pytest
import safetensors
import torch
from exchange_states import random_state

from wsflow.weightspace import WeightSpace
from wsflow.weightspace.statistics import batch_statistics
from wsflow.zoo import Zoo, ZooError, export_network, export_zoo, import_zoo, write_networks


@pytest.fixture
def zoo(mlp_space, theta, tmp_path):
    """Three runs, with metrics that no decimal writes exactly."""
    run, step = torch.tensor([2, 2, 5, 11, 11]), torch.tensor([1, 4, 4, 1, 4])
    metrics = {"val.loss": torch.rand(5) / 3, "lr": torch.tensor([1e-3, 0.1, torch.nan, 1 / 3, 7e20])}
    write_networks(tmp_path / "first", theta, mlp_space, run, step, metrics=metrics, kind="zoo")
    return Zoo.open(tmp_path / "first")


def normed_zoo(space, path, extended=True):
    theta = torch.stack([space.flatten(random_state(space, seed), buffers=True) for seed in range(3)])
    write_networks(path, theta if extended else theta[:, : space.dim], space)
    return Zoo.open(path)


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_export_and_import_are_exact(zoo, mlp_space, out, format):
    files = export_zoo(zoo, out, format=format)
    assert [file.name for file in files] == [f"network-{i:06d}.{format}" for i in range(5)]
    back = import_zoo(out, out.with_name("back"), mlp_space, table=out / "networks.csv")
    for name in ("theta", "run", "step"):
        assert torch.equal(getattr(back, name), getattr(zoo, name))
    assert back.metrics.keys() == zoo.metrics.keys()
    for name, value in zoo.metrics.items():
        torch.testing.assert_close(back.metrics[name], value, rtol=0, atol=0, equal_nan=True)
    again = export_zoo(back, out.with_name("again"), format=format)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_running_statistics_go_round(normed_space, tmp_path, out, format):
    zoo = normed_zoo(normed_space, tmp_path / "first")
    export_zoo(zoo, out, format=format)
    back = import_zoo(out, tmp_path / "back", normed_space, pattern=r"network-(?P<run>\d+)")
    assert torch.equal(back.extended(torch.arange(3)), zoo.extended(torch.arange(3)))
    assert torch.equal(back.run, torch.arange(3))


def test_files_load_into_the_network_alone(normed_space, tmp_path, out):
    zoo = normed_zoo(normed_space, tmp_path / "first")
    one, other = (export_zoo(zoo, out.with_name(f), [2], format=f)[0] for f in ("pt", "safetensors"))
    state = torch.load(one, weights_only=True)
    module = normed_space.to_module(zoo.extended(torch.tensor([0]))[0])
    module.load_state_dict(state)  # strict: frozen tensors, statistics and counters are there
    with safetensors.safe_open(other, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), value) for name, value in state.items())
    inputs = torch.randn(4, 1, 6, 6)
    assert torch.equal(module(inputs), normed_space.to_module(zoo.extended(torch.tensor([2]))[0])(inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the evaluator's own
def test_onnx_computes_the_same(normed_space, tmp_path, out):
    from onnx import load, numpy_helper
    from onnx.reference import ReferenceEvaluator

    zoo = normed_zoo(normed_space, tmp_path / "first")
    inputs = torch.randn(5, 1, 6, 6)
    for i, file in enumerate(export_zoo(zoo, out, format="onnx")):
        module = normed_space.to_module(zoo.extended(torch.tensor([i]))[0])
        (logits,) = ReferenceEvaluator(str(file)).run(None, {"input": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), module(inputs).detach(), rtol=1e-4, atol=1e-5)
        tensors = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in load(file).graph.initializer}
        state = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        assert all(torch.equal(tensors[name], value) for name, value in state.items())
        assert str(normed_space.template.forward.__code__.co_filename).encode() not in file.read_bytes()


def test_one_network_to_a_file(mlp_space, theta, tmp_path):
    export_network(mlp_space, theta[3], tmp_path / "net.safetensors")
    back = import_zoo(tmp_path / "net.safetensors", tmp_path / "zoo", mlp_space)
    assert torch.equal(back.theta[0], theta[3])
    with pytest.raises(ZooError, match=r"net\.safetensors exists already"):
        export_network(mlp_space, theta[3], tmp_path / "net.safetensors")
    with pytest.raises(ZooError, match="unknown format 'txt'; formats are safetensors, pt, onnx"):
        export_network(mlp_space, theta[3], tmp_path / "net.txt")
    with pytest.raises(ZooError, match="holds NaN or infinity"):
        export_network(mlp_space, theta[3] / 0, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"shape \(5, 51\)|one network"):
        export_network(mlp_space, theta, tmp_path / "all.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "zoo"]


def test_what_cannot_be_exported(zoo, normed_space, mlp_space, tmp_path, out, left):
    before = left()
    with pytest.raises(ZooError, match=r"has networks 0 to 4; network 5 cannot be exported"):
        export_zoo(zoo, out, [0, 5])
    with pytest.raises(ZooError, match="nothing cannot be exported"):
        export_zoo(zoo, out, [])
    with pytest.raises(ZooError, match="twice"):
        export_zoo(zoo, out, [1, 1])
    with pytest.raises(ZooError, match="unknown format 'hdf5'"):
        export_zoo(zoo, out, format="hdf5")
    with pytest.raises(ZooError, match="first exists already"):
        export_zoo(zoo, zoo.path)
    assert left() == before
    bare = normed_zoo(normed_space, tmp_path / "bare", extended=False)
    with pytest.raises(ZooError, match="the network's running statistics are not known; compute them on train data"):
        export_zoo(bare, out)
    assert left() == sorted([*before, "bare"])


def test_missing_running_statistics_are_those_of_the_train_data(foreign_plugin, tmp_path, out):
    (foreign_plugin / "normed_task.py").write_text(
        """
import torch
from wsflow.tasks import ClassificationTask


class Pictures(ClassificationTask):
    network = {"class_path": "foreign_plugin.normed", "init_args": {}, "input_shape": [1, 6, 6]}

    def load(self):
        pictures = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        return {s: (pictures[i::3], torch.arange(40)[i::3] % 2) for i, s in enumerate(("train", "val", "test"))}
"""
    )
    from normed_task import Pictures

    task = Pictures()
    space: WeightSpace = task.space
    theta = torch.stack([space.flatten(random_state(space, seed)) for seed in range(3)])
    write_networks(tmp_path / "bare", theta, space, task=task)
    export_zoo(Zoo.open(tmp_path / "bare"), out)
    back = import_zoo(out, tmp_path / "back", space)
    expected = task.with_statistics(theta)
    torch.testing.assert_close(expected, batch_statistics(space, theta, task.data("train")[0]))
    torch.testing.assert_close(back.extended(torch.arange(3)), expected, rtol=1e-6, atol=1e-7)
    data = {"class_path": "wsflow.zoo.ZooDataModule", "init_args": {"task": task.description}}
    write_networks(tmp_path / "generated", theta, space, extra={"data": data})  # as 'predict' writes them
    export_zoo(Zoo.open(tmp_path / "generated"), tmp_path / "too")
    again = import_zoo(tmp_path / "too", tmp_path / "again", space)
    torch.testing.assert_close(again.extended(torch.arange(3)), expected, rtol=1e-6, atol=1e-7)


def test_zoos_with_running_statistics_are_cut_and_merged(normed_space, tmp_path):
    from wsflow.zoo.commands import merge, subset

    zoo = normed_zoo(normed_space, tmp_path / "first")
    subset(str(zoo.path), str(tmp_path / "a"), runs=1)
    subset(str(zoo.path), str(tmp_path / "b"), skip=1)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "c"))
    assert torch.equal(Zoo.open(tmp_path / "c").extended(torch.arange(3)), zoo.extended(torch.arange(3)))
    other = normed_zoo(normed_space, tmp_path / "bare", extended=False)
    with pytest.raises(ZooError, match="differ in running statistics"):
        merge([str(zoo.path), str(other.path)], str(tmp_path / "d"))
    assert other.buffers is None
    assert other.extended(torch.arange(2)).shape == (2, normed_space.dim)


def test_running_statistics_that_are_not_finite_or_of_another_shape(normed_space, tmp_path):
    from wsflow.zoo import write_manifest
    from wsflow.zoo.shards import shard_tensors, write_shard

    theta, buffers = torch.ones(2, normed_space.dim), torch.ones(2, 6)
    run, step = torch.arange(2), torch.zeros(2)
    tensors = shard_tensors(theta, run, step, buffers=buffers / 0)
    with pytest.raises(ZooError, match=r"running statistics of 2 runs hold NaN or infinity"):
        write_shard(tmp_path, 0, tensors)
    sidecar = write_shard(tmp_path, 0, shard_tensors(theta, run, step, buffers=buffers[:, :5]))
    write_manifest(tmp_path, normed_space, [sidecar])
    with pytest.raises(ZooError, match="running statistics of another architecture"):
        Zoo.open(tmp_path)


@pytest.mark.slow
def test_torchvision_networks_go_round(tmp_path, out):
    """As DataParallel saves them; ImageNet's stem, twenty batch norms."""
    description = {"class_path": "torchvision.models.resnet18", "input_shape": [3, 64, 64]}
    space = WeightSpace.from_description(description)
    states = [random_state(space, seed, scale=0.1) for seed in range(2)]
    (tmp_path / "foreign").mkdir()
    for i, state in enumerate(states):
        named = {f"module.{name}": value for name, value in state.items()}
        torch.save({"state_dict": named, "best_acc1": 70.0}, tmp_path / f"foreign/seed{i}.pth")
    zoo = import_zoo(tmp_path / "foreign", tmp_path / "first", space, pattern=r"seed(?P<run>\d+)")
    export_zoo(zoo, out, format="pt")
    for i, state in enumerate(states):
        back = torch.load(out / f"network-{i:06d}.pt", weights_only=True)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state if state[name].is_floating_point())


def test_orders_of_the_data_that_export_leaves_out_are_said(mlp_space, theta, tmp_path, out):
    start, order = theta[:2] + 1, torch.tensor([0, 0])
    write_networks(tmp_path / "shared", theta[:2], mlp_space, start=start, kind="zoo", order=order)
    with pytest.warns(UserWarning, match="saw the data in one order; exported files do not say which"):
        export_zoo(Zoo.open(tmp_path / "shared"), out)
