"""A report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = {
    "accuracy": "accuracy",
    "mse": "MSE",
    "loss": "loss",
    "nll": "NLL",
    "ensemble_accuracy": "ensemble\naccuracy",
    "ensemble_mse": "ensemble\nMSE",
    "ensemble_nll": "ensemble\nNLL",
    "nn_ratio.function": "NN ratio\nfunction",
    "nn_ratio.weight": "NN ratio\nweight",
    "z_u": "Z_U",
    "dispersion": "disper-\nsion",
    "noise": "added\nnoise",
    "grand_mean": "grand\nmean",
    "mean_error": "rms error\nof means",
    "std": "mean\nstd",
}
"""Keys that a table shows, in order, with their headings."""


def render(report: Mapping[str, float]) -> Table:
    """A table with a row for the samples, the held-out runs and each baseline.

    Args:
        report: Flat keys, as :func:`wsflow.metrics.evaluate` gives them.

    Raises:
        ValueError: where the report has no samples.
    """
    rows, columns = shown(report)
    table = Table(
        title="Generated networks beside held-out runs and baselines",
        caption=caption(report, rows, columns),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("networks", no_wrap=True)
    for key in columns:
        table.add_column(COLUMNS[key], justify="right", no_wrap=True)
    for prefix, label in rows.items():
        table.add_row(label, *(cell(report, f"{prefix}{key}") for key in columns))
    return table


def render_text(report: Mapping[str, float], width: int = 120) -> str:
    """The same table in plain characters, for logs and files."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, record=True)
    console.print(render(report))
    return console.export_text()


def shown(report: Mapping[str, float]) -> tuple[dict[str, str], list[str]]:
    """What a table of a report shows: rows, as prefixes of keys with their labels, and columns, as keys of COLUMNS.

    Raises:
        ValueError: where the report has no samples.
    """
    rows = _rows(report)
    if "samples." not in rows:
        raise ValueError("the report has no key that begins with 'samples.'")
    return rows, [key for key in COLUMNS if any(f"{prefix}{key}" in report for prefix in rows)]


def _rows(report: Mapping[str, float]) -> dict[str, str]:
    """Prefixes of keys, with labels."""
    known = {"samples.": "generated", "heldout.": "held-out runs", "heldout.raw.": "  as trained"}
    known["heldout.projected."] = "  in latent space"
    known["best_single."] = "best training run"
    for name in dict.fromkeys(key.split(".")[1] for key in report if key.startswith("baselines.")):
        known[f"baselines.{name}."] = name
        known[f"baselines.{name}.function_matched."] = "  in function only"
    return {prefix: label for prefix, label in known.items() if any(key.startswith(prefix) for key in report)}


def caption(report: Mapping[str, float], rows: Mapping[str, str], columns: Sequence[str]) -> str | None:
    """How to read the table, a line for each thing that it shows."""
    lines = []
    if any(f"samples.{key}.std" in report for key in columns):
        lines.append("±: standard deviation over networks")
    if "samples.ensemble_size" in report:
        lines.append(f"ensemble: the averaged prediction of {report['samples.ensemble_size']:.0f} networks")
    if {"nn_ratio.function", "nn_ratio.weight"} & set(columns):
        lines.append(
            "NN ratio: distance to the nearest training network over that of held-out runs; 1: as new, near 0: copies"
        )
    if "z_u" in columns:
        lines.append("Z_U: rank test of these distances; far below 0: copies")
    if "dispersion" in columns:
        lines.append("dispersion: spread of weights over that of held-out runs; below 1: too narrow")
    if "noise" in columns:
        lines.append("added noise: makes a baseline as new as the generated networks, in function and in weight")
    if any(".function_matched." in prefix for prefix in rows):
        lines.append("in function only: the same baseline with less noise, as new in function and less so in weight")
    return "\n".join(lines) or None


def cell(report: Mapping[str, float], key: str) -> str:
    """A number of a report, with its spread where it has one; empty where it is not there."""
    if key not in report:
        return ""
    value, spread = report[key], report.get(f"{key}.std")
    return f"{value:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
