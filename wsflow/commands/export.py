"""``wsflow export``: networks as files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence

from wsflow.zoo import Zoo, ZooError, export_zoo

ALL = "all"


def export(samples: str, output: str, index: Sequence[str] = (ALL,), format: str = "safetensors") -> None:
    """Write networks of a zoo, or generated ones, to one file each.

    Args:
        samples: The folder of the zoo or of the generated networks.
        output: Folder to make.
        index: Which networks, by their place in the zoo, or all.
        format: safetensors, pt or onnx.

    Raises:
        ValueError: where there is no such network, it cannot be written, or the folder exists already.
    """
    wrong = [one for one in index if not one.isdecimal()]
    if wrong and list(index) != [ALL]:
        raise ZooError(f"an index is a number or {ALL!r}, found {wrong[0]!r}")
    files = export_zoo(Zoo.open(samples), output, None if wrong else [int(one) for one in index], format)
    print(f"{len(files)} networks in {output}, {files[0].name} and so on" if len(files) > 1 else f"{files[0]}")
