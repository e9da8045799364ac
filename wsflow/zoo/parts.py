"""Generated networks that the tasks of an array write, each its part.

Part i of n holds the consecutive networks ``i N // n`` to ``(i + 1) N // n - 1``, in shard i of the folder.  The first
task to come writes the settings, and every other one refuses to add to networks of other settings.  Whoever finds all
parts there writes the manifest, which makes the folder complete: the networks of one task, in the same order.  A part
that failed is run again; one that is finished stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.files import held
from wsflow.weightspace import WeightSpace
from wsflow.zoo.settings import refuse_other_settings
from wsflow.zoo.shards import ZooError, read_json, read_sidecar, shard_tensors, write_json, write_shard
from wsflow.zoo.write import MANIFEST, write_manifest

SETTINGS = "settings.json"


class SamplesPart:
    """One part of the generated networks in a folder.

    Args:
        path: The folder, for all parts the same.
        share: (i, n), which part of how many.
        count: Networks in all parts together.
        settings: Plain data that says what they are; it goes to the manifest.
        identity: Further settings that must agree and do not go to the manifest.

    Raises:
        ZooError: where there are fewer networks than parts, or the folder holds networks of other settings.
    """

    def __init__(
        self,
        path: str | Path,
        share: tuple[int, int],
        count: int,
        settings: Mapping[str, Any],
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.share, self.count, self.settings = Path(path), share, count, dict(settings)
        if count < share[1]:
            raise ZooError(f"{count} networks cannot be split into {share[1]} parts")
        self._claim({"parts": share[1], "networks": count, **self.settings, **(identity or {})})

    @property
    def indices(self) -> range:
        """The sample indices of this part."""
        i, n = self.share
        return range(i * self.count // n, (i + 1) * self.count // n)

    @property
    def finished(self) -> bool:
        """Whether this part has been written."""
        return read_sidecar(self.path, self.share[0]) is not None

    def write(self, space: WeightSpace, theta: Tensor, seconds: float, device: str) -> None:
        """Write this part and, where it is the last one missing, complete the folder.

        Args:
            space: The networks' weight space.
            theta: Networks (n, D), in the order of :attr:`indices`.
            seconds: What they took.
            device: What these are seconds of.

        Raises:
            ZooError: where a weight is not finite, or the networks are not as many as the indices.
        """
        run = torch.tensor(self.indices)
        if len(theta) != len(run):
            raise ZooError(f"part {self.share[0]} of {self.share[1]} has {len(run)} networks, got {len(theta)}")
        tensors = shard_tensors(theta, run, torch.zeros_like(run))
        write_shard(self.path, self.share[0], tensors, {"seconds": seconds, "device": device})
        self.complete(space)

    def complete(self, space: WeightSpace) -> bool:
        """Write the manifest if all parts are there; whether they are."""
        found = [read_sidecar(self.path, index) for index in range(self.share[1])]
        sidecars = [sidecar for sidecar in found if sidecar is not None]
        if len(sidecars) < len(found):
            return False
        seconds = sum(sidecar["seconds"] for sidecar in sidecars)
        devices = ", ".join(sorted({sidecar["device"] for sidecar in sidecars}))
        cost = {"seconds_per_network": seconds / self.count, "device": devices}
        write_manifest(self.path, space, sidecars, "samples", extra={**self.settings, **cost})
        return True

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Write the settings to a new folder, or compare them with those of one that exists."""
        file = self.path / SETTINGS
        with held(file):
            if file.exists():
                refuse_other_settings(self.path, read_json(file), settings)
            elif (self.path / MANIFEST).exists() or any(self.path.glob("shard-*")):
                raise ZooError(f"{self.path} holds networks that were not written part by part; give another folder")
            else:
                write_json(file, settings)
