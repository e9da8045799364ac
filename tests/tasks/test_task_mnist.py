from __future__ import annotations

import gzip
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from wsflow.tasks import MNIST, BaseTask, ConvFashionMNIST, ConvMNIST, FashionMNIST
from wsflow.tasks import mnist as module

SIZES = {"train": 40, "t10k": 10}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args):
        """Nothing."""


def write_archives(raw, damaged=False):
    """Tiny IDX archives in torchvision's layout; returns their names and MD5."""
    raw.mkdir(parents=True)
    rng, resources = np.random.default_rng(0), []
    for part, count in SIZES.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        headers = {"images-idx3": (2051, count, 28, 28), "labels-idx1": (2049, count)}
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = gzip.compress(np.array(headers[kind], dtype=">i4").tobytes() + array.tobytes(), mtime=0)
            name = f"{part}-{kind}-ubyte.gz"
            (raw / name).write_bytes(content[:-1] if damaged else content)
            resources.append((name, hashlib.md5(content).hexdigest()))
    return resources


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST as Dataset  # noqa: N811

    monkeypatch.setattr(module, "VALIDATION", 10)
    monkeypatch.setattr(Dataset, "resources", write_archives(tmp_path / "data" / "MNIST" / "raw"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def check(task):
    assert [tuple(task.data(split)[0].shape) for split in ("train", "val", "test")] == [
        (30, 1, 28, 28),
        (10, 1, 28, 28),
        (10, 1, 28, 28),
    ]
    train, labels = task.data("train")
    assert train.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(train.mean())) < 1e-6
    assert abs(float(train.std(correction=0)) - 1) < 1e-6


def test_archives_are_unpacked_beside_themselves(tiny):
    check(MNIST(data_dir=str(tiny)))
    assert (tiny / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
    check(MNIST(data_dir=str(tiny)))


def test_files_get_their_names_when_they_are_whole(tiny, monkeypatch):
    """Else a process that starts meanwhile reads an empty file, and one that is killed leaves half a file for good."""
    raw, copy = tiny / "MNIST" / "raw", module.shutil.copyfileobj
    archives = {file.name for file in raw.iterdir()}
    seen = []

    def killed(source, target):
        target.write(source.read(100))
        seen.append(len(list(raw.glob("*-ubyte"))))
        if len(seen) == 3:
            raise OSError("no space left")
        copy(source, target)

    monkeypatch.setattr(module.shutil, "copyfileobj", killed)
    with pytest.raises(OSError, match="no space left"):
        MNIST(data_dir=str(tiny)).data("train")
    assert seen == [0, 1, 2]
    assert len(list(raw.iterdir())) == len(archives) + 2
    monkeypatch.setattr(module.shutil, "copyfileobj", copy)
    check(MNIST(data_dir=str(tiny)))


def test_processes_that_start_together_share_a_folder(tiny):
    with ThreadPoolExecutor(4) as pool:
        tasks = list(pool.map(lambda _: MNIST(data_dir=str(tiny)).data("train")[0], range(4)))
    assert all(torch.equal(tasks[0], other) for other in tasks)
    assert not list((tiny / "MNIST" / "raw").glob(".*"))


@pytest.mark.parametrize("kept", [0, 100])
def test_half_a_file_is_named(tiny, kept):
    check(MNIST(data_dir=str(tiny)))
    half = tiny / "MNIST" / "raw" / "train-images-idx3-ubyte"
    half.write_bytes(half.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"MNIST/raw holds damaged files: delete those without .gz"):
        MNIST(data_dir=str(tiny)).data("train")
    half.unlink()
    check(MNIST(data_dir=str(tiny)))


def test_downloads_are_moved_when_all_are_whole(tiny, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST as Dataset  # noqa: N811

    raw = tiny / "MNIST" / "raw"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(raw))) as server:
        monkeypatch.setattr(Dataset, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        Thread(target=server.serve_forever, daemon=True).start()
        check(MNIST(data_dir=str(tmp_path / "other"), download=True))
        assert len(list((tmp_path / "other" / "MNIST" / "raw").iterdir())) == 8
        (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
        with pytest.raises(ValueError, match=r"MNIST could not be downloaded to .*corrupted"):
            MNIST(data_dir=str(tmp_path / "third"), download=True).data("train")
        server.shutdown()
    assert not list((tmp_path / "third" / "MNIST" / "raw").iterdir())


def test_the_benchmark_reads_archives_as_the_task_does(tiny, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setenv("WSFLOW_DATA", str(tiny))
    from collect_images import images

    inputs, label = images()[3]
    assert inputs.shape == (1, 28, 28)
    assert label == 3


def test_a_read_only_folder_is_unpacked_in_the_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    check(MNIST(data_dir=str(tiny)))
    assert not (tiny / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
    assert (tmp_path / "cache" / "wsflow" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_the_environment_names_the_folder(tiny, monkeypatch):
    monkeypatch.setenv("WSFLOW_DATA", str(tiny))
    check(MNIST())


def test_the_description_does_not_hold_the_folder(tiny):
    task = MNIST(widths=(784, 4, 10), data_dir=str(tiny))
    assert task.description["init_args"] == {"widths": [784, 4, 10], "split_seed": 0}
    assert BaseTask.from_description(task.description).space == task.space


def test_a_convolutional_task_is_described_by_its_network(tiny):
    task = ConvMNIST(channels=(4, 3), batch_norm=True, data_dir=str(tiny))
    check(task)
    args = task.description["init_args"]
    assert args == {
        "channels": [4, 3],
        "kernels": [4, 3],
        "strides": [4, 2],
        "paddings": [0, 1],
        "batch_norm": True,
        "pool": False,
        "split_seed": 0,
    }
    assert BaseTask.from_description(task.description).space == task.space
    assert task.name == "conv_mnist"
    assert task.network["input_shape"] == [1, 28, 28]
    assert task.evaluate(torch.randn(2, task.space.dim), "val")["loss"].shape == (2,)


def test_the_default_convolutional_networks_are_small():
    assert ConvFashionMNIST().space.dim == 2476
    assert ConvFashionMNIST(batch_norm=True).space.dim == 2494


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST, ConvMNIST, ConvFashionMNIST])
def test_missing_files_are_named(cls, tmp_path):
    with pytest.raises(ValueError, match=f"{cls.source} is not in .*lacks train-images-idx3-ubyte.gz.*WSFLOW_DATA"):
        cls(data_dir=str(tmp_path)).data("train")


def test_damaged_files_are_named(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST as Dataset  # noqa: N811

    monkeypatch.setattr(Dataset, "resources", write_archives(tmp_path / "MNIST" / "raw", damaged=True))
    with pytest.raises(ValueError, match=r"damaged files: train-images-idx3-ubyte.gz"):
        MNIST(data_dir=str(tmp_path)).data("train")
