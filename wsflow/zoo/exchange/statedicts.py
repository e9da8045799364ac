"""Reading one network's file: a ``state_dict`` as safetensors, torch or Lightning wrote it, or a Hugging Face folder.

Nothing in a file is ever executed: torch's files are read with ``weights_only=True``, and what that refuses is refused
here, with the name of what the file wants to build.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.zoo.shards import ZooError, read_json, read_tensors

TORCH = (".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of torch's own files; ``.bin`` is Hugging Face's name for one, ``.ckpt`` Lightning's."""

SUFFIXES = (".safetensors", *TORCH)
"""Suffixes of files that hold one network."""

INDEX = ".index.json"
"""How the list of parts ends that a large Hugging Face model is cut into."""

NESTS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
"""Entries of a checkpoint that are taken for its ``state_dict``, where exactly one of them holds tensors."""


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a network's file by name.

    Args:
        path: The file, or the index of a model in parts.
        key: Where in a torch file the ``state_dict`` lies; dots lead into nested dicts.  Found where not given.  Of a
            safetensors file, what the names of its tensors begin with, before a dot.

    Raises:
        ZooError: where the file is damaged, holds anything but tensors and plain data, or no ``state_dict``.
    """
    if path.name.endswith(INDEX):
        return _parts(path)
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
        if key is None:
            return tensors
        chosen = {n.removeprefix(f"{key}."): value for n, value in tensors.items() if n.startswith(f"{key}.")}
        if not chosen:
            raise ZooError(f"{path} has no tensor {key}.*; there are {list(tensors)[:9]}")
        return chosen
    return state_of(path, load(path), key)


def load(path: Path) -> Any:
    """What a torch file holds: tensors and plain data, on the CPU.

    Raises:
        ZooError: where it is damaged or holds anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of old and of sparse storages; what does not fit is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None:
            raise ZooError(f"{path} is damaged or no torch file ({type(error).__name__})") from None
        raise ZooError(
            f"{path} wants to build {unsafe[1]}, and only tensors and plain data are loaded; "
            "where you trust the file, open it yourself and save its state_dict alone"
        ) from None


def state_of(path: Path, content: Any, key: str | None = None) -> dict[str, Tensor]:
    """The ``state_dict`` in what a torch file holds; arguments and errors as for :func:`read_state`."""
    if key is not None:
        return _states(_entry(path, content, key), f"{path}: entry {key!r}")
    if _is_state(content):
        return dict(content)
    found = [name for name in NESTS if isinstance(content, Mapping) and _is_state(content.get(name))]
    if len(found) == 1:
        return dict(content[found[0]])
    if found:
        raise ZooError(f"{path} holds several networks, {', '.join(found)}: choose one by --key")
    there = f"the entries {list(content)[:9]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ZooError(f"{path} holds no state_dict but {there}; say by --key where it lies")


def _entry(path: Path, content: Any, key: str) -> Any:
    for part in [key] if isinstance(content, Mapping) and key in content else key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            there = f"; there are {list(content)[:9]}" if isinstance(content, Mapping) else ""
            raise ZooError(f"{path} has no entry {key!r}{there}")
        content = content[part]
    return content


def _states(content: Any, what: str) -> dict[str, Tensor]:
    if not _is_state(content):
        raise ZooError(f"{what} is no state_dict")
    return dict(content)


def _is_state(content: Any) -> bool:
    """Whether this is a dict of tensors; the empty one is none."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _parts(index: Path) -> dict[str, Tensor]:
    """The tensors of a model in parts; the index says which part holds which tensor."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(places, Mapping) or not all(isinstance(part, str) for part in places.values()):
        raise ZooError(f"{index} is no index of a model in parts: it lacks weight_map")
    parts = {part: read_state(_beside(index, part)) for part in sorted(set(places.values()))}
    for name, part in places.items():
        if name not in parts[part]:
            raise ZooError(f"{index} places tensor {name!r} in {part}, which does not hold it")
    return {name: parts[part][name] for name, part in places.items()}


def _beside(index: Path, part: str) -> Path:
    path = index.parent / part
    if path.parent != index.parent or not part.endswith(SUFFIXES):
        raise ZooError(f"{index} names {part!r}, which is no file of weights beside it")
    if not path.exists():
        raise ZooError(f"{path} is missing; {index.name} lists it")
    return path
