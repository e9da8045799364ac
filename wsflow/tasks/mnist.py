"""MNIST and Fashion-MNIST, read with torchvision from a local copy.

The data folder has torchvision's layout: ``MNIST/raw`` and ``FashionMNIST/raw`` with the four IDX files, unpacked or as
``.gz``.  Archives are unpacked beside themselves or, where that folder cannot be written, in a cache folder
(``$XDG_CACHE_HOME/wsflow`` or ``~/.cache/wsflow``).  Files get their names when they are whole, so that processes that
start together do not read what others are still writing.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from wsflow.tasks.classification import ClassificationTask
from wsflow.tasks.splits import split_indices, standardise

VALIDATION = 5000


class _Images(ClassificationTask):
    """Ten classes of 28x28 images in torchvision's format; 5,000 of the 60,000 train images are for validation."""

    local: ClassVar[tuple[str, ...]] = ("data_dir", "download")
    source: ClassVar[str]
    """Name of the torchvision class, and of the folder."""

    data_dir: str
    split_seed: int
    download: bool

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """55,000 train, 5,000 validation and 10,000 test images (1, 28, 28).

        Raises:
            ValueError: where the files are missing or damaged.
        """
        from torchvision import datasets

        dataset = getattr(datasets, self.source)
        root = unpacked(dataset, Path(self.data_dir), self.download)
        try:
            full, test = dataset(root, train=True), dataset(root, train=False)
        except (ValueError, RuntimeError, AssertionError) as error:
            raw = root / self.source / "raw"
            raise ValueError(
                f"{raw} holds damaged files: delete those without .gz, which are unpacked again ({error})"
            ) from error
        fractions = [1 - VALIDATION / len(full.data), VALIDATION / len(full.data)]
        parts = split_indices(len(full.data), fractions, self.split_seed, full.targets)
        images = [*(full.data[index] for index in parts), test.data]
        labels = [*(full.targets[index] for index in parts), test.targets]
        scaled = standardise(*(part[:, None] for part in images), axes=(0, 1, 2, 3))
        return dict(zip(("train", "val", "test"), zip(scaled, labels, strict=True), strict=True))

    def _where(self, data_dir: str | None, split_seed: int, download: bool) -> None:
        self.data_dir = data_dir if data_dir is not None else os.environ.get("WSFLOW_DATA", "data")
        self.split_seed, self.download = split_seed, download


class _Perceptron(_Images):
    def __init__(
        self,
        widths: Sequence[int] = (784, 10, 10),
        data_dir: str | None = None,
        split_seed: int = 0,
        download: bool = False,
    ) -> None:
        self.widths = list(widths)
        self._where(data_dir, split_seed, download)

    @property
    def network(self) -> dict[str, Any]:
        """A ReLU network with logits for ten classes."""
        args = {"widths": self.widths}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}


class _Convolutional(_Images):
    def __init__(
        self,
        channels: Sequence[int] = (8, 10),
        kernels: Sequence[int] = (4, 3),
        strides: Sequence[int] = (4, 2),
        paddings: Sequence[int] = (0, 1),
        batch_norm: bool = False,
        pool: bool = False,
        data_dir: str | None = None,
        split_seed: int = 0,
        download: bool = False,
    ) -> None:
        self.channels, self.kernels, self.strides = list(channels), list(kernels), list(strides)
        self.paddings, self.batch_norm, self.pool = list(paddings), batch_norm, pool
        self._where(data_dir, split_seed, download)

    @property
    def network(self) -> dict[str, Any]:
        """A convolutional ReLU network with logits for ten classes."""
        names = ("channels", "kernels", "strides", "paddings", "batch_norm", "pool")
        args = {"input_shape": [1, 28, 28], **{name: getattr(self, name) for name in names}}
        return {
            "class_path": "wsflow.weightspace.cnn",
            "init_args": args,
            "output_activation": "softmax",
            "input_shape": [1, 28, 28],
        }


class MNIST(_Perceptron):
    """Handwritten digits (LeCun et al. 1998): 55,000 train, 5,000 validation and 10,000 test images.

    Images are shifted and scaled by the train split's mean and standard deviation over all pixels.

    Args:
        widths: Layer sizes of the base network; the thesis's by default.
        data_dir: Folder that holds ``MNIST/raw``; the environment variable ``WSFLOW_DATA``, or ``data``, by default.
        split_seed: Seed of the validation split.
        download: Whether torchvision may download files that are not there.
    """

    source = "MNIST"
    terms = "Yann LeCun and Corinna Cortes hold the copyright of MNIST, made from data of NIST; CC BY-SA 3.0"


class FashionMNIST(_Perceptron):
    """Clothes (Xiao et al. 2017): 55,000 train, 5,000 validation and 10,000 test images.

    Images are shifted and scaled by the train split's mean and standard deviation over all pixels.

    Args:
        widths: Layer sizes of the base network.
        data_dir: Folder that holds ``FashionMNIST/raw``; the environment variable ``WSFLOW_DATA``, or ``data``, by
            default.
        split_seed: Seed of the validation split.
        download: Whether torchvision may download files that are not there.
    """

    source = "FashionMNIST"
    terms = "Zalando SE (Xiao et al. 2017); MIT licence"


class ConvMNIST(_Convolutional):
    """:class:`MNIST` with a convolutional base network (:func:`wsflow.weightspace.cnn`).

    Args:
        channels: Channels that each convolution puts out.
        kernels: Side of each convolution's kernel.
        strides: Stride of each convolution.
        paddings: Zeros around the input of each convolution.
        batch_norm: Whether batch norm follows each convolution.
        pool: Whether the last layer reads each channel's mean, and not its whole map.
        data_dir: As of :class:`MNIST`.
        split_seed: Seed of the validation split.
        download: Whether torchvision may download files that are not there.
    """

    source = "MNIST"
    terms = "Yann LeCun and Corinna Cortes hold the copyright of MNIST, made from data of NIST; CC BY-SA 3.0"


class ConvFashionMNIST(_Convolutional):
    """:class:`FashionMNIST` with a convolutional base network (:func:`wsflow.weightspace.cnn`).

    Args:
        channels: Channels that each convolution puts out.
        kernels: Side of each convolution's kernel.
        strides: Stride of each convolution.
        paddings: Zeros around the input of each convolution.
        batch_norm: Whether batch norm follows each convolution.
        pool: Whether the last layer reads each channel's mean, and not its whole map.
        data_dir: As of :class:`FashionMNIST`.
        split_seed: Seed of the validation split.
        download: Whether torchvision may download files that are not there.
    """

    source = "FashionMNIST"
    terms = "Zalando SE (Xiao et al. 2017); MIT licence"


def unpacked(dataset: Any, root: Path, download: bool) -> Path:
    """A root under which torchvision finds the unpacked files of a dataset.

    Args:
        dataset: Torchvision's class, of the kind of ``torchvision.datasets.MNIST``.
        root: Folder that holds the class's archives, or its unpacked files.
        download: Whether files that are not there may be downloaded.

    Returns:
        ``root``, or a folder in the cache where archives have to be unpacked and ``root`` cannot be written to.

    Raises:
        ValueError: where files are missing or damaged.
    """
    from torchvision.datasets.utils import check_integrity

    raw = root / dataset.__name__ / "raw"
    archives = [(raw / name, md5) for name, md5 in dataset.resources]
    if all(file.with_suffix("").exists() for file, _ in archives):
        return root
    missing = [file.name for file, _ in archives if not file.exists()]
    if missing and download:
        _download(dataset, root)
        return root
    if missing:
        raise ValueError(
            f"{dataset.__name__} is not in {root}: {raw} lacks {', '.join(missing)}; copy the files there, set "
            "WSFLOW_DATA or data_dir to a folder that has them, or set download=true"
        )
    damaged = [file.name for file, md5 in archives if not check_integrity(str(file), md5)]
    if damaged:
        raise ValueError(f"{raw} holds damaged files: {', '.join(damaged)} (wrong MD5)")
    if not os.access(raw, os.W_OK):
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsflow"
    for archive, _ in archives:
        _unpack(archive, root / dataset.__name__ / "raw")
    return root


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder that lacks its file, which gets its name when it is whole."""
    if (folder / archive.stem).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as own:
        whole = Path(own) / archive.stem
        with gzip.open(archive) as packed, whole.open("wb") as file:
            shutil.copyfileobj(packed, file)
        os.replace(whole, folder / archive.stem)


def _download(dataset: Any, root: Path) -> None:
    """Let torchvision download into a folder of this process's own, and move the files when all are whole."""
    raw = root / dataset.__name__ / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=raw) as own:
        try:
            dataset(own, download=True)
        except RuntimeError as error:
            raise ValueError(
                f"{dataset.__name__} could not be downloaded to {raw}: {' '.join(str(error).split())}"
            ) from error
        for file in (Path(own) / dataset.__name__ / "raw").iterdir():
            os.replace(file, raw / file.name)
