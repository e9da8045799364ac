"""What ``wsflow barrier`` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich import box
from rich.table import Table

from wsflow.commands.connectivity import Connectivity
from wsflow.files import write_whole

TABLE_WIDTH = 120

QUANTILES = (0.1, 0.5, 0.9)
"""Over pairs, of the curves in the JSON file."""


def numbers(result: Connectivity, before: Connectivity) -> dict[str, Any]:
    """What a result comes to, plain data.

    Args:
        result: Of one aligner and target.
        before: Of the networks as they are.
    """
    found, line = result.barriers, result.paths
    scores = {name: {"ends": float(ends.mean()), "middle": found.middle(name)} for name, ends in found.ends.items()}
    return {
        "aligner": result.aligner,
        "target": result.target,
        "barrier": {
            "mean": found.mean,
            "standard_error": found.standard_error if isfinite(found.standard_error) else None,
            "std": found.std,
            "largest": found.largest,
            "cut": 1 - found.mean / before.barriers.mean,
            "pairs": len(found.values),
        },
        "path": {
            "barrier": float(line.barrier.mean()),
            "instability": float(line.instability.mean()),
            "pairs": len(line.barrier),
            "curves": {name: _curve(values) for name, values in line.scores.items()} | {"t": line.t.tolist()},
        },
        "scores": scores,
        "seconds": result.seconds,
    }


def _curve(values: torch.Tensor) -> dict[str, list[float]]:
    """Mean and quantiles over pairs of (P, K)."""
    levels = torch.tensor(QUANTILES, dtype=values.dtype)
    quantiles = {f"quantile_{q}": row.tolist() for q, row in zip(QUANTILES, values.quantile(levels, 0), strict=True)}
    return {"mean": values.mean(0).tolist(), **quantiles}


def render(results: Sequence[Connectivity], split: str) -> Table:
    """A table with a row for each result, the networks as they are first."""
    before = results[0]
    has_accuracy = "accuracy" in before.barriers.ends
    table = Table(
        title=_title(before, split),
        caption=_caption(before),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("aligner", overflow="fold")
    table.add_column("aligned to", no_wrap=True)
    headings = ["barrier\nmidpoint", "cut", "largest", "barrier\nline", "loss\nmidpoint"]
    for heading in [*headings, *(["accuracy\nmidpoint"] if has_accuracy else []), "aligning\nseconds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.aligner or "none", result.target, *_cells(numbers(result, before), has_accuracy))
    return table


def _cells(row: Mapping[str, Any], has_accuracy: bool) -> list[str]:
    barrier, scores = row["barrier"], row["scores"]
    cut = f"{100 * barrier['cut']:.1f} %" if row["aligner"] else ""
    error = barrier["standard_error"]
    mean = f"{barrier['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")
    cells = [mean, cut, f"{barrier['largest']:.3f}", f"{row['path']['barrier']:.4f}", f"{scores['loss']['middle']:.4f}"]
    accuracy = [f"{scores['accuracy']['middle']:.4f}"] if has_accuracy else []
    return [*cells, *accuracy, f"{row['seconds']:.2f}" if row["aligner"] else ""]


def _title(before: Connectivity, split: str) -> str:
    found = before.barriers
    scores = ", ".join(f"{name} {float(value.mean()):.4f}" for name, value in found.ends.items())
    return f"Lines between {len(found.run)} networks of {len(torch.unique(found.run))} runs; {split} data: {scores}"


def _caption(before: Connectivity) -> str:
    lines = (
        "barrier, midpoint: loss half-way minus the mean loss of both networks, over "
        f"{len(before.barriers.values)} pairs of different runs; ±: standard error over runs (jackknife)",
        f"barrier, line: the largest rise above the chord, over {len(before.paths.barrier)} pairs and "
        f"{len(before.paths.t)} points",
    )
    return "\n".join(lines)


def write(folder: Path, results: Sequence[Connectivity], origin: Mapping[str, Any]) -> Path:
    """Write ``barrier.json``, the matrices as ``barriers.safetensors``, and the pictures as PNG and SVG.

    Args:
        folder: Where; made if it is missing.
        results: The networks as they are first.
        origin: What was measured, plain data.

    Returns:
        The folder.
    """
    from wsflow.callbacks.barrier_figures import barrier_matrices, path_curves  # matplotlib takes its time to import
    from wsflow.callbacks.figures import save

    folder.mkdir(parents=True, exist_ok=True)
    rows = [numbers(result, results[0]) for result in results]
    write_whole(folder / "barrier.json", json.dumps({"origin": dict(origin), "results": rows}, indent=2) + "\n")
    matrices = {result.label: result.barriers.matrix.contiguous() for result in results}
    write_whole(folder / "barriers.safetensors", safetensors.torch.save(matrices))
    pictures = {
        "matrices": barrier_matrices({result.label: result.barriers for result in results}),
        "curves": path_curves({result.label: result.paths for result in results}),
    }
    for name, figure in pictures.items():
        for suffix in ("png", "svg"):
            save(figure, folder / f"{name}.{suffix}")
    return folder
