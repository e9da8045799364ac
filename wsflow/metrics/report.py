"""A report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO

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
    "dispersion": "dispersion",
    "noise": "added\nnoise",
    "grand_mean": "grand mean",
    "mean_error": "rms error\nof means",
    "std": "mean std",
}
"""Keys that a table shows, in order, with their headings."""


def render(report: Mapping[str, float]) -> Table:
    """A table with a row for the samples, the held-out runs and each baseline.

    Args:
        report: Flat keys, as :func:`wsflow.metrics.evaluate` gives them.

    Raises:
        ValueError: where the report has no samples.
    """
    rows = _rows(report)
    if "samples." not in rows:
        raise ValueError("the report has no key that begins with 'samples.'")
    columns = [key for key in COLUMNS if any(f"{prefix}{key}" in report for prefix in rows)]
    table = Table(title="Generated networks beside held-out runs and baselines", caption=_caption(report, columns))
    table.add_column("networks", no_wrap=True)
    for key in columns:
        table.add_column(COLUMNS[key], justify="right", no_wrap=True)
    for prefix, label in rows.items():
        table.add_row(label, *(_cell(report, f"{prefix}{key}") for key in columns))
    return table


def render_text(report: Mapping[str, float], width: int = 160) -> str:
    """The same table in plain characters, for logs and files."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, record=True)
    console.print(render(report))
    return console.export_text()


def _rows(report: Mapping[str, float]) -> dict[str, str]:
    """Prefixes of keys, with labels."""
    known = {"samples.": "generated", "heldout.": "held-out runs"}
    for name in dict.fromkeys(key.split(".")[1] for key in report if key.startswith("baselines.")):
        known[f"baselines.{name}."] = name
        known[f"baselines.{name}.function_matched."] = f"{name}, in function"
    return {prefix: label for prefix, label in known.items() if any(key.startswith(prefix) for key in report)}


def _caption(report: Mapping[str, float], columns: Sequence[str]) -> str | None:
    """How to read the columns, in a line."""
    parts = ["± over networks"] if any(f"samples.{key}.std" in report for key in columns) else []
    if "nn_ratio.function" in columns:
        parts.append("unseen real runs: NN ratio 1, Z_U 0, dispersion 1")
    if "samples.ensemble_size" in report:
        parts.append(f"ensembles of {report['samples.ensemble_size']:.0f}")
    if "noise" in columns:
        parts.append("baselines get noise to be as new")
    return "; ".join(parts) or None


def _cell(report: Mapping[str, float], key: str) -> str:
    if key not in report:
        return ""
    value, spread = report[key], report.get(f"{key}.std")
    return f"{value:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
