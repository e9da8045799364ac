"""Curves of experiments with several points: accuracy, loss and what tells copies, over one setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wsflow.files import replacing

PANELS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "dispersion": "dispersion",
    "nn_ratio.function": "NN ratio, function",
}


def save_curves(lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], axis: str, path: Path) -> None:
    """Draw a panel a metric, with the spread over seeds where there is one, and held-out runs as a dashed line.

    Several lines have a legend, a single one is named above the panels.

    Args:
        lines: By name, the place of every point and its results.
        axis: Name of the horizontal axis, which is logarithmic.
        path: The PNG file.
    """
    figure = Figure(figsize=(3.2 * len(PANELS), 3.2), layout="constrained")
    for panel, (metric, words) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, points in lines.items():
            known = [(x, values) for x, values in points if f"samples.{metric}" in values]
            heights = [values[f"samples.{metric}"] for _, values in known]
            spreads = [values.get("spread", {}).get(f"samples.{metric}", 0.0) for _, values in known]
            panel.errorbar([x for x, _ in known], heights, yerr=spreads, marker="o", markersize=3, label=name)
        for level in sorted({values.get(f"heldout.{metric}", 1.0) for line in lines.values() for _, values in line}):
            panel.axhline(level, color="grey", linestyle="--", linewidth=0.8)
        places = sorted({x for line in lines.values() for x, _ in line})
        panel.set_xscale("log", base=2)
        panel.set_xticks(places, [f"{x:g}" for x in places])
        panel.set_xlabel(axis)
        panel.set_title(words)
    if len(lines) > 1:
        figure.axes[0].legend(fontsize="small")
    else:
        figure.suptitle(next(iter(lines)), fontsize="medium")
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=110, metadata={"Software": None})
