"""Foreign networks that do not fit: one clear error, and nothing is left behind."""

from __future__ import annotations

import shutil

import pytest
import torch

from wsflow.weightspace import WeightSpace
from wsflow.zoo import ZooDataModule, ZooError, import_zoo, write_networks
from wsflow.zoo.commands import info, merge, subset, verify
from wsflow.zoo.exchange import importing


def changed(state, **changes):
    return {name: value for name, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"3.bias": None}, r"b\.pt: missing tensor '3\.bias'; there are tensors '1\.bias', '1\.weight', '3\.weight'"),
        ({"fc.weight": torch.ones(2)}, r"b\.pt: the network has no tensor 'fc\.weight'; .* --ignore PATTERN"),
        ({"1.weight": torch.ones(5, 4)}, r"b\.pt: tensor '1\.weight' has shape \(5, 4\), expected \(6, 4\)"),
        ({"1.weight": torch.ones(4, 6)}, r"'1\.weight' has shape \(4, 6\), expected \(6, 4\); it looks transposed"),
        ({"1.bias": torch.ones(3, 6)}, r"has shape \(3, 6\), expected \(6,\); a file of stacked networks"),
        ({"1.bias": torch.ones(6, dtype=torch.int8)}, r"tensor '1\.bias' is int8; weights are floating point"),
        ({"1.bias": torch.ones(6).to_sparse()}, r"tensor '1\.bias' is sparse_coo"),
        ({"3.bias": torch.tensor([0.0, torch.nan, 1])}, r"b\.pt: tensor '3\.bias' holds NaN, infinity"),
        ({"1.weight": torch.full((6, 4), 1e39, dtype=torch.float64)}, r"b\.pt: tensor '1\.weight' holds NaN, infinity"),
    ],
    ids=["missing", "unexpected", "shape", "transposed", "stack", "integers", "sparse", "nan", "overflow"],
)
def test_a_network_that_does_not_fit(mlp_space, states, folder, out, left, changes, words, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 1)  # the first network is written before the second is read
    torch.save(states[0], folder / "a.pt")
    torch.save(changed(states[1], **changes), folder / "b.pt")
    with pytest.raises(ZooError, match=words) as caught:
        import_zoo(folder, out, mlp_space)
    assert "\n" not in str(caught.value)
    assert left() == []


def test_keras_kernels_look_transposed(normed_space, folder, out):
    state = {name: value.clone() for name, value in normed_space.template.state_dict().items()}
    torch.save(state | {"0.weight": torch.ones(3, 3, 1, 3)}, folder / "a.pt")
    with pytest.raises(ZooError, match=r"has shape \(3, 3, 1, 3\), expected \(3, 1, 3, 3\); it looks transposed"):
        import_zoo(folder, out, normed_space)


def test_ignored_tensors(mlp_space, states, theta, folder, out):
    torch.save(states[0] | {"head.weight": torch.ones(2), "loss.w": torch.ones(1)}, folder / "a.pt")
    assert torch.equal(import_zoo(folder, out, mlp_space, ignore=r"^head\.|loss").theta, theta[:1])


def test_invalid_networks_can_be_left_out(mlp_space, states, theta, folder, out, left):
    for i, state in enumerate(states):
        bad = {"3.bias": torch.full((3,), torch.inf)} if i in (1, 4) else {}
        torch.save(state | bad, folder / f"run{i // 2}_step{i % 2}.pt")
    zoo = import_zoo(folder, out, mlp_space, pattern=r"run(?P<run>\d)_step(?P<step>\d)", drop_invalid=True)
    assert torch.equal(zoo.theta, theta[[0, 2, 3]])
    assert zoo.run.tolist() == [0, 1, 1]
    assert (zoo.manifest["runs"], zoo.manifest["dropped"]) == (2, [2])
    assert zoo.manifest["import"]["left_out"] == ["run0_step1.pt", "run2_step0.pt"]
    for i in range(5):
        torch.save(states[i] | {"3.bias": torch.full((3,), torch.nan)}, folder / f"run{i // 2}_step{i % 2}.pt")
    with pytest.raises(ZooError, match="there are no networks to import; 5 were left out"):
        import_zoo(folder, out.with_name("b"), mlp_space, drop_invalid=True)
    assert left() == ["zoo"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
def test_damaged_files(mlp_space, states, folder, out, left, suffix):
    (folder / f"a{suffix}").write_bytes(b"these are no weights at all")
    with pytest.raises(ZooError, match=rf"a\{suffix} is damaged"):
        import_zoo(folder, out, mlp_space)
    assert left() == []


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"a": 1, "b": torch.ones(2)}, torch.ones(3)])
def test_files_without_a_state_dict(mlp_space, folder, out, content):
    torch.save(content, folder / "a.pt")
    with pytest.raises(ZooError, match=r"a\.pt holds no state_dict but .*; say by --key where it lies"):
        import_zoo(folder, out, mlp_space)


def test_nothing_to_import(mlp_space, folder, out, tmp_path):
    with pytest.raises(ZooError, match="there is nothing at"):
        import_zoo(tmp_path / "absent", out, mlp_space)
    (folder / "all.npz").touch()
    with pytest.raises(ZooError, match=r"there is no file of weights below .* an array is given by its own path"):
        import_zoo(folder, out, mlp_space)
    (folder / "notes.txt").touch()
    with pytest.raises(ZooError, match=r"notes\.txt has an unknown suffix"):
        import_zoo(folder / "notes.txt", out, mlp_space)


def test_folders_take_no_order_and_arrays_no_pattern(mlp_space, states, theta, folder, out):
    torch.save(states[0], folder / "a.pt")
    torch.save(theta, folder / "all.pth")
    with pytest.raises(ZooError, match="is a folder; an order is for one array"):
        import_zoo(folder, out, mlp_space, order="flat")
    with pytest.raises(ZooError, match="give a table of labels"):
        import_zoo(folder / "all.pth", out, mlp_space, order="flat", pattern=r"(?P<run>\d)")


def test_a_zoo_is_no_foreign_folder(mlp_space, theta, folder, out):
    write_networks(folder, theta, mlp_space)
    with pytest.raises(ZooError, match="is a zoo of wsflow already"):
        import_zoo(folder, out, mlp_space)


def test_what_exists_is_not_overwritten(mlp_space, states, folder, out):
    torch.save(states[0], folder / "a.pt")
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    with pytest.raises(ZooError, match="exists already"):
        import_zoo(folder, out, mlp_space)
    assert (out / "precious.txt").read_text() == "keep me"
    (out / "precious.txt").unlink()
    assert len(import_zoo(folder, out, mlp_space)) == 1  # an empty folder is nothing


def test_folders_above_are_made_only_for_a_zoo(mlp_space, states, folder, out, left):
    torch.save(states[0] | {"3.bias": torch.ones(4)}, folder / "a.pt")
    with pytest.raises(ZooError):
        import_zoo(folder, out / "deep/down", mlp_space)
    assert left() == []
    torch.save(states[0], folder / "a.pt")
    assert len(import_zoo(folder, out / "deep/down", mlp_space)) == 1


def test_a_space_without_a_description(states, folder, out, left, mlp_space):
    torch.save(states[0], folder / "a.pt")
    with pytest.raises(ZooError, match="needs a weight space with a description"):
        import_zoo(folder, out, WeightSpace.from_module(mlp_space.template))
    assert left() == []


def test_another_tasks_network(task, mlp_space, states, folder, out):
    torch.save(states[0], folder / "a.pt")
    with pytest.raises(ZooError, match="the base network of task clusters is not the network that is imported"):
        import_zoo(folder, out, mlp_space, task)


def test_the_same_files_give_the_same_bytes(mlp_space, states, folder, out):
    for i, state in enumerate(states):
        torch.save(state, folder / f"{i}.pt")
    other = shutil.copytree(folder, folder.with_name("copy"))
    import_zoo(folder, out, mlp_space)
    import_zoo(other, out.with_name("b"), mlp_space)
    for file in ("shard-00000.safetensors", "shard-00000.json", "networks.csv"):
        assert (out / file).read_bytes() == (out.with_name("b") / file).read_bytes()


@pytest.fixture
def imported(task, folder, tmp_path):
    """Runs 0 to 19 of two snapshots each, on a task of four inputs and three classes."""
    generator = torch.Generator().manual_seed(0)
    for run in range(20):
        for step in (1, 2):
            theta = torch.randn(task.space.dim, generator=generator)
            state = {name: value.clone() for name, value in task.space.unflatten(theta).items()}
            torch.save(state, folder / f"run{run}-{step}-acc{run / 100}.pt")
    pattern = r"run(?P<run>\d+)-(?P<step>\d)-acc(?P<val_accuracy>[\d.]+)"
    return import_zoo(folder, tmp_path / "zoo", task.space, task, pattern)


def test_an_imported_zoo_is_a_zoo(task, imported, tmp_path, capsys):
    info(str(imported.path))
    verify(str(imported.path))
    text = capsys.readouterr().out
    for part in (
        "Clusters",
        "20, without starts",
        "40, steps 1 to 2",
        "final val.accuracy",
        "all as the manifest says",
    ):
        assert part in text
    subset(str(imported.path), str(tmp_path / "a"), runs=8)
    subset(str(imported.path), str(tmp_path / "b"), skip=8, final_only=True)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "merged"))


def test_an_imported_zoo_is_trained_on(task, imported):
    from wsflow.alignment import WeightMatching

    data = ZooDataModule(task, str(imported.path), batch_size=4, final_only=False, aligner=WeightMatching())
    data.setup()
    seen = {name: set(imported.run[data.rows(name)].tolist()) for name in ("train", "val", "test")}
    assert sum(map(len, seen.values())) == 20
    assert set.union(*seen.values()) == set(range(20))
    batch = next(iter(data.train_dataloader()))
    assert batch.x1.shape == (4, task.space.dim)
    assert batch.start is None
