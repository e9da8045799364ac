"""Files of many networks: stacks of named tensors, and arrays of flat vectors."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from exchange_states import random_state

from wsflow.zoo import ZooError, import_zoo
from wsflow.zoo.exchange import importing

NAMES = ["3.bias", "1.weight", "1.bias", "3.weight"]
"""All tensors of the network in an order that is not the space's."""


def write(arrays, path):
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file({name: torch.from_numpy(value) for name, value in arrays.items()}, path)
    else:
        torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)
    return path


def stacked(states):
    return {name: torch.stack([state[name] for state in states]).numpy() for name in states[0]}


def rows(states, names):
    return np.stack([np.concatenate([state[name].flatten().numpy() for name in names]) for state in states])


@pytest.fixture
def small_shards(monkeypatch):
    """Two networks of the small perceptron in a shard."""
    monkeypatch.setattr(importing, "SHARD_BYTES", 450)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors", ".pt"])
def test_stacks_of_named_tensors(mlp_space, states, theta, folder, out, suffix, small_shards):
    zoo = import_zoo(write(stacked(states), folder / f"all{suffix}"), out, mlp_space)
    assert torch.equal(zoo.theta, theta)
    assert [shard["rows"] for shard in zoo.manifest["shards"]] == [2, 2, 1]
    assert zoo.run.tolist() == [0, 1, 2, 3, 4]
    zoo.verify()


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors", ".pt", ".npy"])
def test_an_array_in_an_order_of_names(mlp_space, states, theta, folder, out, suffix, small_shards):
    path = write({"weights": rows(states, NAMES)}, folder / f"all{suffix}")
    assert torch.equal(import_zoo(path, out, mlp_space, order=NAMES).theta, theta)
    assert torch.equal(import_zoo(path, out.with_name("b"), mlp_space, order=", ".join(NAMES)).theta, theta)


def test_orders_with_a_name(mlp_space, theta, folder, out):
    flat = write({"weights": theta}, folder / "flat.npy")
    assert torch.equal(import_zoo(flat, out, mlp_space, order="flat").theta, theta)
    modules = [mlp_space.to_module(one) for one in theta]
    vectors = torch.stack([torch.nn.utils.parameters_to_vector(module.parameters()).detach() for module in modules])
    path = write({"weights": vectors}, folder / "vectors.npy")
    assert torch.equal(import_zoo(path, out.with_name("b"), mlp_space, order="parameters").theta, theta)


def test_an_array_needs_an_order(mlp_space, theta, folder, out, left):
    with pytest.raises(ZooError, match=r"all\.npz holds an array 'w': say what its rows hold by --order"):
        import_zoo(write({"w": theta, "accuracy": theta[:, 0]}, folder / "all.npz"), out, mlp_space)
    assert left() == []


def test_a_key_chooses_an_array(mlp_space, theta, folder, out):
    path = write({"train/w": theta, "test/w": theta[:2]}, folder / "all.h5")
    with pytest.raises(ZooError, match=r"holds the arrays \['test\.w', 'train\.w'\]: choose one by --key"):
        import_zoo(path, out, mlp_space, order="flat")
    assert torch.equal(import_zoo(path, out, mlp_space, order="flat", key="train.w").theta, theta)


def test_other_arrays_may_hold_anything(mlp_space, theta, folder, out):
    np.savez(folder / "all.npz", names=np.array(["a", "b"]), w=theta.numpy())
    with h5py.File(folder / "all.h5", "w") as file:
        file["names"], file["w"] = ["a", "b"], theta.numpy()
    for name in ("all.npz", "all.h5"):
        zoo = import_zoo(folder / name, out.with_name(name), mlp_space, order="flat", key="w")
        assert torch.equal(zoo.theta, theta)


def test_a_group_of_stacks(mlp_space, states, theta, folder, out):
    arrays = {f"train/{name.replace('.', '/')}": value for name, value in stacked(states).items()}
    path = write(arrays | {"test/1/weight": stacked(states)["1.weight"]}, folder / "all.h5")
    assert torch.equal(import_zoo(path, out, mlp_space, key="train").theta, theta)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_in_another_order_and_fortran_arrays(mlp_space, states, theta, folder, out, save, small_shards):
    arrays = stacked(states)
    arrays["1.weight"] = np.asfortranarray(arrays["1.weight"])
    save(folder / "all.npz", **arrays)
    (folder / "t.csv").write_text("run\n3\n3\n1\n0\n1\n")
    zoo = import_zoo(folder / "all.npz", out, mlp_space, table=folder / "t.csv")
    assert torch.equal(zoo.theta, theta[[3, 2, 4, 0, 1]])
    assert zoo.run.tolist() == [0, 1, 1, 3, 3]
    assert zoo.step.tolist() == [0, 0, 1, 0, 1]


def test_hdf5_rows_in_another_order(mlp_space, theta, folder, out):
    path = write({"w": theta}, folder / "all.h5")
    (folder / "t.csv").write_text("run\n4\n3\n2\n1\n0\n")
    assert torch.equal(import_zoo(path, out, mlp_space, order="flat", table=folder / "t.csv").theta, theta.flip(0))


@pytest.mark.parametrize("dtype", [">f4", "<f4", "<f8", ">f8"])
def test_byte_orders_and_widths(mlp_space, theta, folder, out, dtype):
    np.save(folder / "all.npy", theta.numpy().astype(dtype))
    assert torch.equal(import_zoo(folder / "all.npy", out, mlp_space, order="flat").theta, theta)


def test_stacks_with_running_statistics(normed_space, folder, out):
    states = [random_state(normed_space, seed) for seed in range(4)]
    extended = torch.stack([normed_space.flatten(state, buffers=True) for state in states])
    zoo = import_zoo(write(stacked(states), folder / "all.npz"), out, normed_space)
    assert torch.equal(zoo.extended(torch.arange(4)), extended)
    flat = write({"w": extended}, folder / "flat.npy")
    assert torch.equal(
        import_zoo(flat, out.with_name("b"), normed_space, order="flat").extended(torch.arange(4)), extended
    )
    names = list(states[0])  # with the counter of batch norm, as a state_dict has it
    array = write({"w": rows(states, names)}, folder / "names.npy")
    zoo = import_zoo(array, out.with_name("c"), normed_space, order=names)
    assert torch.equal(zoo.extended(torch.arange(4)), extended)


def test_a_large_stream_is_read_in_parts(mlp_space, folder, out, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 4 * mlp_space.dim * 100)
    theta = torch.randn(1000, mlp_space.dim, generator=torch.Generator().manual_seed(0))
    np.savez_compressed(folder / "all.npz", w=theta.numpy())
    zoo = import_zoo(folder / "all.npz", out, mlp_space, order="flat")
    assert len(zoo.manifest["shards"]) == 10
    assert torch.equal(zoo.theta, theta)


@pytest.mark.parametrize(
    ("array", "order", "words"),
    [
        (np.zeros((5, 50)), "flat", r"a row has 50 numbers, 4 tensors in this order 51"),
        (np.zeros((5, 51)), ["1.weight", "1.bias"], r"a row has 51 numbers, 2 tensors in this order 30"),
        (np.zeros((5, 30)), ["1.weight", "1.bias"], r"missing tensors '3\.bias', '3\.weight'"),
        (np.zeros((5, 51)), ["1.weight", "4.bias"], r"the order names '4\.bias', which the network does not have"),
        (np.zeros((5, 51)), [*NAMES, "1.bias"], r"the order names '1\.bias' twice"),
        (np.zeros(51), "flat", r"flat vectors are an array \(N, D\), found shape \(51,\)"),
        (np.zeros((5, 51), dtype=int), "flat", r"tensor '1\.weight' is int64; weights are floating point"),
        (np.zeros((5, 51), dtype=complex), "flat", r"holds complex128, not numbers of at most 64 bits"),
        (np.zeros((0, 51)), "flat", r"there are no networks to import"),
    ],
    ids=["columns", "columns of names", "missing", "unknown", "twice", "axes", "integers", "complex", "empty"],
)
def test_arrays_that_do_not_fit(mlp_space, folder, out, left, array, order, words):
    np.save(folder / "all.npy", array)
    with pytest.raises(ZooError, match=words):
        import_zoo(folder / "all.npy", out, mlp_space, order=order)
    assert left() == []


def test_objects_in_arrays_are_not_loaded(mlp_space, folder, out, left):
    np.savez(folder / "all.npz", w=np.full((2, 51), {"a": 1}, dtype=object))
    np.save(folder / "all.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ZooError, match=r"all\.npz: 'w' holds object, not numbers"):
        import_zoo(folder / "all.npz", out, mlp_space, order="flat")
    with pytest.raises(ZooError, match=r"all\.npy is damaged or no \.npy file"):
        import_zoo(folder / "all.npy", out, mlp_space, order="flat")
    assert left() == []


def test_stacks_of_different_lengths(mlp_space, states, folder, out, left):
    arrays = stacked(states)
    arrays["1.bias"] = arrays["1.bias"][:3]
    with pytest.raises(ZooError, match=r"stacks of different lengths: \{'1\.bias': 3, '1\.weight': 5"):
        import_zoo(write(arrays, folder / "all.npz"), out, mlp_space)
    assert left() == []


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".safetensors", ".pt"])
def test_damaged_files(mlp_space, states, theta, folder, out, left, suffix):
    path = write(stacked(states) if suffix != ".npy" else {"w": theta}, folder / f"all{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ZooError, match=rf"all\{suffix}.* (is|cannot)"):
        import_zoo(path, out, mlp_space, order=None if suffix != ".npy" else "flat")
    assert left() == []


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("copies", [1, 2000])
def test_a_flipped_bit_in_an_archive(mlp_space, theta, folder, out, left, save, copies, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 4 * mlp_space.dim * 1000)
    path = folder / "all.npz"
    save(path, w=theta.repeat(copies, 1).numpy())
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(ZooError, match=r"all\.npz: 'w' (cannot be read|is damaged): (Bad CRC|Error -3)"):
        import_zoo(path, out, mlp_space, order="flat")
    assert left() == []
