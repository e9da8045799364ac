"""Where networks come from: files of one network each, stacks of named tensors, or one array of flat vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from wsflow.zoo.exchange import arrays, statedicts
from wsflow.zoo.exchange.arrays import Rows, TensorRows
from wsflow.zoo.exchange.fitting import Fitter
from wsflow.zoo.exchange.folders import NetworkFile, find_networks, network_file
from wsflow.zoo.shards import ZooError, read_tensors
from wsflow.zoo.write import MANIFEST

FLAT, PARAMETERS = "flat", "parameters"
"""Orders of an array that have a name: the weight space's own, and ``torch.nn.utils.parameters_to_vector``'s."""


class Source(ABC):
    """Networks that can be read in any order.

    Attributes:
        names: One per network, for messages and for the list of what was imported.
    """

    names: Sequence[str]

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Tensor:
        """The networks ``rows``, (n, D + D_b) float32.

        Raises:
            ZooError: where a file cannot be read or does not fit the weight space.
        """


class Files(Source):
    """Files of one network each.

    Args:
        files: The files.
        fitter: Of the weight space.
        key: Where in each file the ``state_dict`` lies; found by default.
    """

    def __init__(self, files: Sequence[NetworkFile], fitter: Fitter, key: str | None = None) -> None:
        self.files, self.fitter, self.key = files, fitter, key
        self.names = [file.name for file in files]

    def read(self, rows: Sequence[int]) -> Tensor:
        """The networks of these files."""
        result = torch.empty(len(rows), self.fitter.space.full_dim)
        for place, row in enumerate(rows):
            path = self.files[row].path
            result[place] = self.fitter.fit(statedicts.read_state(path, self.key), str(path))
        return result


class Stacks(Source):
    """Tensors of N networks by name, each (N, *shape), in one file.

    Args:
        stacks: By name in the file.
        fitter: Of the weight space.
        path: The file.

    Raises:
        ZooError: where names do not fit or the stacks have different lengths.
    """

    def __init__(self, stacks: Mapping[str, Rows], fitter: Fitter, path: Path) -> None:
        self.path, self.fitter = path, fitter
        self.stacks = {key: stacks[key] for key in fitter.names(stacks.keys(), str(path))}
        lengths = {key: stack.shape[0] if stack.shape else 0 for key, stack in self.stacks.items()}
        if len(set(lengths.values())) != 1:
            raise ZooError(f"{path}: stacks of different lengths: {dict(sorted(lengths.items()))}")
        self.names = [f"{path.name}[{row}]" for row in range(next(iter(lengths.values())))]

    def read(self, rows: Sequence[int]) -> Tensor:
        """The networks in these rows."""
        taken = {key: stack.take(rows) for key, stack in self.stacks.items()}
        return self.fitter.fit(taken, str(self.path), lead=(len(rows),))


class Flat(Source):
    """Flat vectors of N networks in one array (N, columns).

    Args:
        array: The array.
        order: ``flat``, ``parameters``, or the names of the tensors that lie side by side in a row, each row-major.
        fitter: Of the weight space.
        path: The file.

    Raises:
        ZooError: where an order names an unknown tensor or the columns are not as many as it has numbers.
    """

    def __init__(self, array: Rows, order: str | Sequence[str], fitter: Fitter, path: Path) -> None:
        self.array, self.fitter, self.path = array, fitter, path
        if len(array.shape) != 2:
            raise ZooError(f"{path}: flat vectors are an array (N, D), found shape {array.shape}")
        self.shapes = self._shapes(order)
        columns, needed = array.shape[1], sum(map(prod, self.shapes.values()))
        if columns != needed:
            raise ZooError(f"{path}: a row has {columns} numbers, {len(self.shapes)} tensors in this order {needed}")
        fitter.names(self.shapes.keys(), f"{path}, in this order")
        self.names = [f"{path.name}[{row}]" for row in range(array.shape[0])]

    def read(self, rows: Sequence[int]) -> Tensor:
        """The networks in these rows."""
        taken = self.array.take(rows)
        parts = torch.split(taken, [prod(shape) for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        state = {name: part.reshape(len(rows), *shape) for (name, shape), part in named}
        return self.fitter.fit(state, str(self.path), lead=(len(rows),))

    def _shapes(self, order: str | Sequence[str]) -> dict[str, tuple[int, ...]]:
        space, known = self.fitter.space, self.fitter.known
        if order == FLAT:
            extended = self.array.shape[1] == space.full_dim
            names = [t.name for t in space.tensors + space.buffer_tensors * extended]
        elif order == PARAMETERS:
            names = [name for name, _ in space.template.named_parameters()]
        else:
            names = [name.strip() for name in order.split(",")] if isinstance(order, str) else list(order)
        if unknown := [name for name in names if name not in known]:
            raise ZooError(f"the order names {unknown[0]!r}, which the network does not have; it has {list(known)}")
        if len(set(names)) != len(names):
            raise ZooError(f"the order names {max(names, key=names.count)!r} twice")
        return {name: known[name] for name in names}


def open_source(path: Path, fitter: Fitter, key: str | None = None, order: str | Sequence[str] | None = None) -> Source:
    """The networks at a path, whatever it is.

    Args:
        path: A folder of files of one network each, a file of one network, or a file of many.
        fitter: Of the weight space.
        key: Which entry of the file, or of each file, to read.
        order: What a row of an array of flat vectors holds; without one, tensors are known by their names.

    Raises:
        ZooError: where there is nothing to import, or it does not say what it is.
    """
    if not path.exists():
        raise ZooError(f"there is nothing at {path}")
    if path.is_dir():
        if (path / MANIFEST).exists():
            raise ZooError(f"{path} is a zoo of wsflow already")
        if order is not None:
            raise ZooError(f"{path} is a folder; an order is for one array of flat vectors")
        return Files(find_networks(path), fitter, key)
    if not path.name.endswith((*arrays.SUFFIXES, *statedicts.SUFFIXES, statedicts.INDEX)):
        known = ", ".join((*statedicts.SUFFIXES, *arrays.SUFFIXES))
        raise ZooError(f"{path} has an unknown suffix; files are {known}")
    if order is not None:
        return Flat(_array(path, key), order, fitter, path)
    return _by_name(path, fitter, key)


def _by_name(path: Path, fitter: Fitter, key: str | None) -> Source:
    if path.name.endswith(statedicts.INDEX):
        return Files([network_file(path)], fitter)
    stacks = _stacks(path, key)
    flat = [name for name, rows in stacks.items() if len(rows.shape) == 2]
    if flat and not any(name.endswith(tuple(fitter.shapes)) for name in stacks):
        raise ZooError(
            f"{path} holds an array {flat[0]!r}: say what its rows hold by --order (the names of tensors, {FLAT!r} for "
            f"the weight space's own order, {PARAMETERS!r} for that of the network's parameters)"
        )
    shapes = {name: rows.shape for name, rows in stacks.items()}
    if fitter.is_stack(shapes, str(path)):
        return Stacks(stacks, fitter, path)
    return _Single({name: rows.whole() for name, rows in stacks.items()}, fitter, path)


class _Single(Source):
    """One network that is in memory already."""

    def __init__(self, state: Mapping[str, Tensor], fitter: Fitter, path: Path) -> None:
        self.state, self.fitter, self.path, self.names = state, fitter, path, [path.name]

    def read(self, rows: Sequence[int]) -> Tensor:
        return self.fitter.fit(self.state, str(self.path))[None].expand(len(rows), -1)


def _stacks(path: Path, key: str | None) -> dict[str, Rows]:
    """Arrays by name; with a key, those of the group of that name."""
    if path.suffix in arrays.SUFFIXES:
        found = arrays.open_arrays(path)
        if key is None:
            return found
        inside = {name.removeprefix(f"{key}."): rows for name, rows in found.items() if name.startswith(f"{key}.")}
        if inside or key in found:
            return inside or {key: found[key]}
        raise ZooError(f"{path} has no entry {key!r}; there are {list(found)}")
    return {name: TensorRows(tensor) for name, tensor in statedicts.read_state(path, key).items()}


def _array(path: Path, key: str | None) -> Rows:
    """The one array of a file, or the one that the key names."""
    found: dict[str, Rows]
    if path.suffix in arrays.SUFFIXES:
        found = arrays.open_arrays(path)
    elif path.suffix == ".safetensors":
        found = {name: TensorRows(tensor) for name, tensor in read_tensors(path).items()}
    else:
        content = statedicts.load(path)
        content = content if isinstance(content, Mapping) else {"array": content}
        found = {str(n): TensorRows(value) for n, value in content.items() if isinstance(value, Tensor)}
    if key is not None and key in found:
        return found[key]
    if key is None and len(found) == 1:
        return next(iter(found.values()))
    raise ZooError(f"{path} holds the arrays {list(found)}: choose one by --key")
