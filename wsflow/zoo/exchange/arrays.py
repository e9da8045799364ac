"""Reading rows of arrays in ``.npy``, ``.npz`` and ``.h5`` files, without the whole file in memory.

An entry of an ``.npz`` is read as a stream from its beginning to its end; only where rows are asked for in another
order is it read whole.
"""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from wsflow.zoo.shards import ZooError

PIECE = 2**24
"""Bytes of a compressed stream that are read at once."""

HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", *HDF5)
"""Suffixes of files that hold arrays."""


class Rows(ABC):
    """An array whose rows are read when asked for.

    Attributes:
        shape: Its shape.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Tensor:
        """These rows, (n, ...)."""

    def whole(self) -> Tensor:
        """The whole array."""
        return self.take(range(self.shape[0])) if self.shape else self.take([])


class TensorRows(Rows):
    """Rows of a tensor that is in memory or memory-mapped.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def take(self, rows: Sequence[int]) -> Tensor:
        """These rows, (n, ...)."""
        return self.tensor[torch.as_tensor(rows)] if self.shape else self.tensor


class ArrayRows(Rows):
    """Rows of a memory-mapped numpy array or of an HDF5 dataset.

    Args:
        array: The array.
        what: Its file and name, for errors.
    """

    def __init__(self, array: Any, what: str) -> None:
        self.array, self.shape, self.what = array, tuple(array.shape), what

    def take(self, rows: Sequence[int]) -> Tensor:
        """These rows, (n, ...)."""
        check_dtype(self.array.dtype, self.what)
        try:
            return self._taken(rows)
        except OSError as error:
            raise ZooError(f"{self.what} is damaged: {error}") from None

    def _taken(self, rows: Sequence[int]) -> Tensor:
        if not self.shape:
            return as_tensor(self.array[()])
        if contiguous(rows):
            return as_tensor(self.array[rows[0] : rows[-1] + 1])
        order = np.argsort(rows, kind="stable")  # HDF5 gives rows in ascending order only
        taken = self.array[np.asarray(rows)[order]]
        return as_tensor(taken)[torch.from_numpy(np.argsort(order))]


class StreamedRows(Rows):
    """Rows of an entry of an ``.npz``.

    Args:
        path: The file.
        name: The entry's name in the archive.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.what = path, name, f"{path}: {name.removesuffix('.npy')!r}"
        self._file, self._next = self._open(), 0

    def take(self, rows: Sequence[int]) -> Tensor:
        """These rows, (n, ...)."""
        check_dtype(self._dtype, self.what)
        if self.shape and contiguous(rows) and not self._fortran:
            return self._stream(rows[0], len(rows))
        return self._all()[torch.as_tensor(rows)] if self.shape else self._all()

    def _open(self) -> IO[bytes]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                file = archive.open(self.name)  # stays open
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, self._fortran, self._dtype = read(file)
        except (ValueError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise ZooError(f"{self.what} cannot be read: {error}") from None
        return file

    def _stream(self, first: int, count: int) -> Tensor:
        if first < self._next:
            self._file, self._next = self._open(), 0
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self._dtype.itemsize
        while self._next < first:
            self._next += self._read(size, 1)[1]
        content, read = self._read(size, count)
        self._next += read
        array = np.frombuffer(content, dtype=self._dtype).reshape(count, *self.shape[1:])
        return as_tensor(array)

    def _read(self, size: int, count: int) -> tuple[bytearray, int]:
        content = bytearray(size * count)
        view, filled = memoryview(content), 0
        try:
            while filled < len(content):
                part = self._file.read(min(len(content) - filled, PIECE))
                if not part:
                    raise ZooError(f"{self.what} is truncated")
                view[filled : filled + len(part)] = part
                filled += len(part)
        except (OSError, zlib.error, zipfile.BadZipFile) as error:
            raise ZooError(f"{self.what} is damaged: {error}") from None
        return content, count

    def _all(self) -> Tensor:
        if not hasattr(self, "_whole"):
            try:
                with np.load(self.path, allow_pickle=False) as archive:
                    self._whole = as_tensor(archive[self.name.removesuffix(".npy")])
            except (ValueError, OSError, zlib.error, zipfile.BadZipFile) as error:
                raise ZooError(f"{self.what} is damaged: {error}") from None
        return self._whole


def open_arrays(path: Path) -> dict[str, Rows]:
    """The arrays of a file by name, in the file's order; the one of an ``.npy`` is called ``array``.

    Groups of an HDF5 file become part of the names, with dots between.

    Raises:
        ZooError: where the file is damaged or holds something else than numbers, or h5py is not installed.
    """
    try:
        if path.suffix == ".npy":
            return {"array": ArrayRows(np.load(path, mmap_mode="r", allow_pickle=False), str(path))}
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return {name.removesuffix(".npy"): StreamedRows(path, name) for name in names}
        return _hdf5(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, (ZooError, FileNotFoundError)):
            raise
        raise ZooError(f"{path} is damaged or no {path.suffix} file: {error}") from None


def contiguous(rows: Sequence[int]) -> bool:
    """Whether rows follow one another."""
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def check_dtype(dtype: Any, what: str) -> None:
    """Refuse arrays of anything but numbers, and numbers that torch does not know."""
    if np.dtype(dtype).kind not in "fiub" or np.dtype(dtype).itemsize > 8:
        raise ZooError(f"{what} holds {dtype}, not numbers of at most 64 bits")


def as_tensor(array: Any) -> Tensor:
    """A numpy array of any byte order, or a number, as a tensor of its own."""
    values = np.asarray(array)
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))


def _hdf5(path: Path) -> dict[str, Rows]:
    try:
        import h5py
    except ImportError:
        raise ZooError(f"reading {path} needs h5py: pip install 'wsflow[import]'") from None
    datasets: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name.replace("/", ".")] = item

    h5py.File(path, "r").visititems(visit)
    return {name: ArrayRows(dataset, f"{path}: {name!r}") for name, dataset in datasets.items()}
