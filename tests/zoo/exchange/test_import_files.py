"""Files of one network each: torch, safetensors, Lightning, Hugging Face."""

from __future__ import annotations

import csv
import json
from argparse import Namespace

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
from exchange_states import random_state

from wsflow.weightspace import WeightSpace, mlp
from wsflow.zoo import Zoo, ZooError, import_zoo


def save(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_folder_of_state_dicts(mlp_space, states, theta, folder, out, suffix):
    for i, state in enumerate(states):
        save(state, folder / f"run{i + 7}{suffix}")
    (folder / "README.md").write_text("not a network")
    zoo = import_zoo(folder, out, mlp_space)
    assert torch.equal(zoo.theta, theta)  # run10 after run9
    assert zoo.run.tolist() == [0, 1, 2, 3, 4]
    assert zoo.step.tolist() == [0] * 5
    assert (zoo.kind, zoo.buffers, zoo.start, zoo.metrics) == ("zoo", None, None, {})
    zoo.verify()


def test_folders_below_and_mixed_formats(mlp_space, states, theta, folder, out):
    for state, name in zip(states, ["b/x.pt", "a/run10.pth", "a/run9.safetensors", ".hidden.pt", "c.pt"], strict=True):
        save(state, folder / name)
    zoo = import_zoo(folder, out, mlp_space)
    assert torch.equal(zoo.theta, theta[[2, 1, 0, 4]])
    with (out / "networks.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["run", "step", "file"]
    assert [file for _, _, file in lines[1:]] == ["a/run9.safetensors", "a/run10.pth", "b/x.pt", "c.pt"]


def test_a_zoo_in_the_folder_is_passed_over(mlp_space, states, theta, folder):
    save(states[0], folder / "a.pt")
    import_zoo(folder, folder / "zoo", mlp_space)
    assert torch.equal(import_zoo(folder, folder / "again", mlp_space).theta, theta[:1])


def test_one_file_is_one_network(mlp_space, states, theta, folder, out):
    save(states[0], folder / "net.pt")
    assert torch.equal(import_zoo(folder / "net.pt", out, mlp_space).theta, theta[:1])


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model._orig_mod.", "net.module."])
def test_a_prefix_of_all_names_is_found(mlp_space, states, theta, folder, out, prefix):
    save(under(prefix, states[0]), folder / "a.pt")
    save(states[1], folder / "b.pt")
    assert torch.equal(import_zoo(folder, out, mlp_space).theta, theta[:2])


def test_two_networks_in_a_file_need_a_prefix(mlp_space, states, theta, folder, out, left):
    save(under("model.", states[0]) | under("ema.", states[1]), folder / "a.pt")
    with pytest.raises(ZooError, match=r"a\.pt holds several networks, under the prefixes \['ema\.', 'model\.'\]"):
        import_zoo(folder, out, mlp_space)
    assert left() == []
    assert torch.equal(import_zoo(folder, out, mlp_space, prefix="ema.").theta, theta[1:2])


def test_what_lacks_a_prefix_that_is_found_is_not_passed_over(mlp_space, states, theta, folder, out, left):
    save(under("model.", states[0]) | {"criterion.weight": torch.ones(3)}, folder / "a.pt")
    with pytest.raises(ZooError, match=r"unexpected tensor 'criterion\.weight'; --prefix 'model\.' passes over"):
        import_zoo(folder, out, mlp_space)
    assert left() == []
    assert torch.equal(import_zoo(folder, out, mlp_space, prefix="model.").theta, theta[:1])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_a_nested_state_dict_is_found(mlp_space, states, theta, folder, out, key):
    save({key: states[0], "epoch": 3, "optimizer": {"lr": 0.1}}, folder / "a.pt")
    assert torch.equal(import_zoo(folder, out, mlp_space).theta, theta[:1])


def test_a_key_says_which_state_dict(mlp_space, states, theta, folder, out):
    save({"model": states[0], "net": states[1], "deep": {"ema": states[2]}}, folder / "a.pt")
    with pytest.raises(ZooError, match=r"several networks, model, net: choose one by --key"):
        import_zoo(folder, out, mlp_space)
    assert torch.equal(import_zoo(folder, out, mlp_space, key="net").theta, theta[1:2])
    assert torch.equal(import_zoo(folder, out.with_name("b"), mlp_space, key="deep.ema").theta, theta[2:3])
    with pytest.raises(ZooError, match=r"no entry 'deep\.best'; there are \['ema'\]"):
        import_zoo(folder, out.with_name("c"), mlp_space, key="deep.best")


def test_a_key_is_what_names_in_a_safetensors_file_begin_with(mlp_space, states, theta, folder, out):
    both = {f"model.{n}": v for n, v in states[0].items()} | {f"ema.net.{n}": v for n, v in states[1].items()}
    save({name: value.clone() for name, value in both.items()}, folder / "a.safetensors")
    assert torch.equal(import_zoo(folder, out, mlp_space, key="ema.net").theta, theta[1:2])
    with pytest.raises(ZooError, match=r"has no tensor best\.\*; there are \["):
        import_zoo(folder, out.with_name("b"), mlp_space, key="best")
    with pytest.raises(ZooError, match=r"ignore='\(' is no regular expression"):
        import_zoo(folder, out.with_name("b"), mlp_space, key="model", ignore="(")


class Lit(pl.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters()
        self.model = mlp([4, 6, 3])

    def training_step(self, batch):
        return self.model(batch[0]).pow(2).sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def checkpoint(config, state, path):
    module = Lit(config)
    module.model.load_state_dict(state)
    trainer = pl.Trainer(max_epochs=0, logger=False, accelerator="cpu", enable_progress_bar=False, barebones=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_checkpoints(mlp_space, states, theta, folder, out):
    for i in range(2):
        (folder / f"version_{i}").mkdir()
        checkpoint({"lr": 0.1}, states[i], folder / f"version_{i}/epoch=3-step=40.ckpt")
    zoo = import_zoo(folder, out, mlp_space, pattern=r"version_(?P<run>\d+)/.*step=(?P<step>\d+)")
    assert torch.equal(zoo.theta, theta[:2])
    assert zoo.step.tolist() == [40, 40]


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_would_run_code_is_refused(mlp_space, states, folder, out, left):
    checkpoint(Namespace(lr=0.1), states[0], folder / "a.ckpt")
    with pytest.raises(ZooError, match=r"a\.ckpt wants to build argparse\.Namespace, and only tensors"):
        import_zoo(folder, out, mlp_space)
    assert left() == []


def test_a_pickled_module_is_refused(mlp_space, folder, out, left):
    torch.save(mlp([4, 6, 3]), folder / "whole.pt")
    with pytest.raises(ZooError, match=r"whole\.pt wants to build torch\.nn\.modules\.\S+, .* save its state_dict"):
        import_zoo(folder, out, mlp_space)
    assert left() == []


def hugging_face(state, path, parts=1, suffix=".safetensors"):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    save({"exp_avg": torch.ones(3)}, path / "optimizer.pt")
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    if parts == 1:
        save(state, path / f"{stem}{suffix}")
        return
    names = sorted(state)
    places = {name: f"{stem}-{i % parts + 1:05d}-of-{parts:05d}{suffix}" for i, name in enumerate(names)}
    for part in set(places.values()):
        save({name: state[name] for name in names if places[name] == part}, path / part)
    (path / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("parts", [1, 2])
def test_hugging_face_folders(mlp_space, states, theta, folder, out, suffix, parts):
    for i, acc in [(0, "0.91"), (1, "0.8"), (2, "0.93")]:
        hugging_face(states[i], folder / f"seed-{i}_acc{acc}", parts, suffix)
    zoo = import_zoo(folder, out, mlp_space, pattern=r"seed-(?P<run>\d+)_acc(?P<test_accuracy>[\d.]+)")
    assert torch.equal(zoo.theta, theta[:3])
    torch.testing.assert_close(zoo.metrics["test.accuracy"], torch.tensor([0.91, 0.8, 0.93]))
    one = import_zoo(folder / "seed-1_acc0.8", out.with_name("one"), mlp_space)
    assert torch.equal(one.theta, theta[1:2])
    assert "seed-1_acc0.8" in (one.path / "networks.csv").read_text()


def test_a_model_in_parts_that_lacks_one(mlp_space, states, folder, out, left):
    hugging_face(states[0], folder / "a", parts=2)
    (folder / "a/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ZooError, match=r"model-00002-of-00002\.safetensors is missing; model\.safetensors\.index\.json"
    ):
        import_zoo(folder, out, mlp_space)
    assert left() == []


def test_an_index_cannot_lead_out_of_its_folder(mlp_space, states, folder, out):
    hugging_face(states[0], folder / "a", parts=2)
    save(states[0], folder / "other.pt")
    (folder / "a/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"1.weight": "../other.pt"}}))
    with pytest.raises(ZooError, match=r"names '\.\./other\.pt', which is no file of weights beside it"):
        import_zoo(folder / "a", out, mlp_space)


def test_half_precision_is_exact_and_double_is_rounded_once(mlp_space, states, theta, folder, out):
    for name, dtype in [("a", torch.float16), ("b", torch.bfloat16), ("d", torch.float64)]:
        save({n: v.to(dtype) for n, v in states[0].items()}, folder / f"{name}.pt")
    zoo = import_zoo(folder, out, mlp_space)  # float64 that float32 holds is no reason for a warning
    assert torch.equal(zoo.theta, torch.stack([theta[0].half().float(), theta[0].bfloat16().float(), theta[0]]))
    assert zoo.manifest["import"]["dtypes"] == ["bfloat16", "float16", "float64"]
    for name in ("d", "e"):
        save({n: v.double() / 3 for n, v in states[ord(name) - 100].items()}, folder / f"{name}.pt")
    with pytest.warns(UserWarning, match=r"rounded to float32, first in .*d\.pt") as caught:
        import_zoo(folder, out.with_name("rounded"), mlp_space)
    assert len(caught) == 1


def test_the_same_network_in_two_runs_is_said(mlp_space, states, folder, out):
    for name in ("a", "b", "c"):
        save(states[name == "b"], folder / f"{name}.pt")
    with pytest.warns(UserWarning, match=r"c\.pt is the same network as a\.pt of another run"):
        import_zoo(folder, out, mlp_space)


def test_unbalanced_deep_networks(folder, out):
    """Six hidden layers of 50, entries up to 30, as networks of other people have them."""
    description = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, *[50] * 6, 3]}}
    space = WeightSpace.from_description(description)
    generator = torch.Generator().manual_seed(0)
    theta = 60 * torch.rand(3, space.dim, generator=generator) - 30
    for i, one in enumerate(theta):
        save({n: v.clone() for n, v in space.unflatten(one).items()}, folder / f"{i}.pt")
    zoo = import_zoo(folder, out, space)
    assert torch.equal(zoo.theta, theta)
    inputs = torch.randn(8, 4, generator=generator)
    assert torch.equal(Zoo.open(out).space.to_module(zoo.theta[1])(inputs), space.to_module(theta[1])(inputs))


def test_batch_norm_networks_keep_their_running_statistics(normed_space, folder, out):
    states = [random_state(normed_space, seed) for seed in range(3)]
    for i, state in enumerate(states):
        save(under("module.", state), folder / f"{i}.pt")
    zoo = import_zoo(folder, out, normed_space)
    zoo.verify()
    assert zoo.buffers.shape == (3, 6)
    extended = torch.stack([normed_space.flatten(state, buffers=True) for state in states])
    assert torch.equal(zoo.extended(torch.tensor([2, 0])), extended[[2, 0]])
    module = normed_space.template
    inputs = torch.randn(5, 1, 6, 6)
    for i, state in enumerate(states):
        expected = torch.func.functional_call(module, state, inputs)
        assert torch.equal(zoo.space.to_module(zoo.extended(torch.tensor([i]))[0])(inputs), expected)


def test_negative_variances_and_missing_statistics_are_refused(normed_space, folder, out, left):
    state = random_state(normed_space, 0)
    save(state | {"1.running_var": torch.tensor([1.0, -0.5, 1.0])}, folder / "a.pt")
    with pytest.raises(ZooError, match=r"a\.pt: tensor '1\.running_var' holds NaN, infinity or a negative variance"):
        import_zoo(folder, out, normed_space)
    save({n: v for n, v in state.items() if "running" not in n}, folder / "a.pt")
    with pytest.raises(ZooError, match=r"missing tensors '1\.running_mean', '1\.running_var'"):
        import_zoo(folder, out, normed_space)
    assert left() == []


def test_selected_tensors_need_the_factorys_own_frozen_ones(states, folder, out, left):
    description = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 6, 3]}, "select": r"3\..*"}
    space = WeightSpace.from_description(description)
    own = {name: value.clone() for name, value in space.template.state_dict().items()}
    save(own | {name: states[0][name] for name in ("3.weight", "3.bias")}, folder / "a.pt")
    save({name: states[1][name] for name in ("3.weight", "3.bias")}, folder / "b.pt")
    zoo = import_zoo(folder, out, space)
    assert torch.equal(zoo.theta, torch.stack([space.flatten(state) for state in states[:2]]))
    save(states[2], folder / "c.pt")
    with pytest.raises(ZooError, match=r"c\.pt: tensor '1\.(weight|bias)' is no coordinate .* differs"):
        import_zoo(folder, out.with_name("other"), space)
    assert left() == ["zoo"]
