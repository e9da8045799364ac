"""Checkpoints and other files that are there in full or not at all.

Lightning writes to the system's temporary folder and moves the file, which is a copy where that folder is on another
file system: a process killed meanwhile leaves half a checkpoint in place of the last good one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and renames it; the command line uses it always."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save to a local file in this way, and elsewhere as Lightning does."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


@contextmanager
def replacing(place: Path) -> Iterator[IO[bytes]]:
    """A file beside its place, for writing; when it is whole and on the disk, it takes that place.

    Args:
        place: The file, whose folder is made; one that is there stays as it was if anything fails.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
