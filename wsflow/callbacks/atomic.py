"""Checkpoints that are there in full or not at all.

Lightning writes to the system's temporary folder and moves the file, which is a copy where that folder is on another
file system: a process killed meanwhile leaves half a checkpoint in place of the last good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from wsflow.files import replacing


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and renames it; the command line uses it always."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save to a local file in this way, and elsewhere as Lightning does."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)
