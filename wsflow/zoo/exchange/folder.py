"""A folder that is there in full or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from wsflow.zoo.shards import ZooError


def refuse_existing(path: Path) -> None:
    """Raise ZooError where something is at the path already; an empty folder is nothing."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise ZooError(f"{path} exists already; give another path or remove it")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder under a hidden name, which takes its own name when the block ends and vanishes where it fails.

    Raises:
        ZooError: where something is at the path already.
    """
    refuse_existing(path)
    path = path.absolute()
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise ZooError(f"{above} is a file; {path} cannot be made below it")
    temporary = above / f".{path.name}.{uuid4().hex}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
