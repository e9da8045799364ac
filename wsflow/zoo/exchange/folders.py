"""Finding the files of networks in a folder, in an order that does not depend on the file system.

A folder that Hugging Face wrote holds one network (``model.safetensors`` or ``pytorch_model.bin``, perhaps in parts)
beside files that are none, such as an optimiser's state; it counts as one network and is called by the folder's name.
Every other file with a known suffix is a network of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from wsflow.zoo.exchange.statedicts import INDEX, SUFFIXES
from wsflow.zoo.shards import ZooError
from wsflow.zoo.write import MANIFEST

HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
"""A model's file in a Hugging Face folder; the first that is there is read."""


class NetworkFile(NamedTuple):
    """One network on disk.

    Attributes:
        path: The file to read.
        name: Its path below the folder that is imported, or that of the Hugging Face folder it lies in.
        stem: The name without the file's suffix; patterns read this.
    """

    path: Path
    name: str
    stem: str


def natural(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sort key that puts ``run9`` before ``run10``."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), text


def find_networks(folder: Path) -> list[NetworkFile]:
    """The networks below a folder, in natural order of their names.

    Hidden files and folders, and wsflow's own zoos, are passed over.

    Raises:
        ZooError: where there is none.
    """
    found = []
    for root, folders, files in os.walk(folder):
        if MANIFEST in files:  # a zoo of wsflow, such as one that was imported into this folder
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += _in_folder(Path(root), folder, [name for name in files if not name.startswith(".")])
    if not found:
        raise ZooError(
            f"there is no file of weights below {folder} ({', '.join(SUFFIXES)}); an array is given by its own path"
        )
    return sorted(found, key=lambda file: natural(file.name))


def network_file(path: Path) -> NetworkFile:
    """A file that is imported on its own."""
    return NetworkFile(path, path.name, path.name.removesuffix(path.suffix))


def _in_folder(root: Path, top: Path, files: list[str]) -> list[NetworkFile]:
    model = _hugging_face(files)
    if model is not None:
        name = root.relative_to(top).as_posix() if root != top else root.resolve().name
        return [NetworkFile(root / model, name, name)]
    networks = [root / name for name in files if name.endswith(SUFFIXES)]
    names = [path.relative_to(top).as_posix() for path in networks]
    return [NetworkFile(path, n, n.removesuffix(path.suffix)) for path, n in zip(networks, names, strict=True)]


def _hugging_face(files: list[str]) -> str | None:
    """The model's file, if these are the files of a Hugging Face folder."""
    for model in HUGGING_FACE:
        if model + INDEX in files:
            return model + INDEX
        if model in files and "config.json" in files:
            return model
    return None
