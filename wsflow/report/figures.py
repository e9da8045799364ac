"""The figures of a report; each is a matplotlib Figure of its own, outside pyplot, with no background.

Figures are narrow, so that their text can be read on a phone, and their colours show on light and on dark pages.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wsflow.bayes import Reliability
from wsflow.report.networks import Paths

GENERATED, HELDOUT, OTHER, FAINT = "#dd6b20", "#3f83c8", "#2f9e6e", "#9a9a9a"
KINDS = (GENERATED, HELDOUT, OTHER)
WIDTH, HEIGHT = 4.6, 3.3

DARK = (
    "<style>@media (prefers-color-scheme: dark) { svg { fill: #e4e4e0 } "
    '[style*="stroke: #000000"] { stroke: #e4e4e0 !important } '
    '[style*="fill: #000000"] { fill: #e4e4e0 !important } }</style>'
)
"""What makes the black of a figure light on dark screens."""

Numbers = NDArray[np.float64]
Curve = Sequence[tuple[float, float]]


def svg(figure: Figure) -> bytes:
    """A figure as SVG whose text is light where the reader's screen is dark."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None, "Creator": None})
    head, mark, rest = buffer.getvalue().partition(b"<defs>")
    return head + DARK.encode() + mark + rest


def png(figure: Figure) -> bytes:
    """A figure as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def training_curves(curves: Mapping[str, Curve], label: str, held: Mapping[str, Curve] | None = None) -> Figure:
    """Numbers along the steps of trainings, on a logarithmic scale where all are positive.

    Args:
        curves: By run.
        label: Of the vertical axis.
        held: The same of validation runs, by run, drawn dashed.
    """
    columns = 2 if max(map(len, curves)) <= 16 else 1
    rows = -(-len(curves) // columns) if len(curves) > 1 else 0
    figure, axes = _plot(HEIGHT + 0.2 * rows)
    colors = mpl.color_sequences["tab10"]
    for number, (name, points) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": GENERATED if len(curves) == 1 else colors[number % len(colors)],
            "linewidth": 1.3,
        }
        axes.plot(*_columns(points), label=name if len(curves) > 1 else "train" if held else None, alpha=0.85, **style)
        other = (held or {}).get(name, [])
        if other:
            style["color"] = HELDOUT if len(curves) == 1 else style["color"]
            axes.plot(*_columns(other), linestyle="--", label="validation" if len(curves) == 1 else None, **style)
    values = [value for points in (*curves.values(), *(held or {}).values()) for _, value in points]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    if len(curves) > 1:
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    elif held:
        axes.legend(frameon=False, fontsize=9)
    return figure


def quality_over_steps(lines: Mapping[str, Curve], label: str, level: float | None = None) -> Figure:
    """A score over the number of solver steps (the thesis's Figure 7.3).

    Args:
        lines: By run and way of sampling.
        label: Of the vertical axis.
        level: Of held-out networks, drawn dashed, where all lines share it.
    """
    figure, axes = _plot(HEIGHT + 0.22 * len(lines))
    for (name, points), color in zip(lines.items(), mpl.color_sequences["tab10"] * len(lines), strict=False):
        axes.plot(*_columns(points), marker="o", markersize=4, label=name, color=color)
    if level is not None:
        axes.axhline(level, color=FAINT, linestyle="--", linewidth=1.2, label="held-out runs")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("solver steps")
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def reliability_diagram(found: Mapping[str, Reliability]) -> Figure:
    """Accuracy over confidence; on the diagonal a prediction is right as often as it says.

    Args:
        found: By name, of one ensemble each; bins without data points are left out.
    """
    figure, axes = _plot(3.9)
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
    for (name, one), color in zip(found.items(), KINDS, strict=False):
        count, confidence, accuracy = one.count[0], one.confidence[0], one.accuracy[0]
        some = count > 0
        sizes = 8 + 90 * (count[some] / count.sum()).sqrt().numpy()
        axes.plot(confidence[some], accuracy[some], color=color, linewidth=1.2, label=name)
        axes.scatter(confidence[some], accuracy[some], s=sizes, color=color, linewidths=0, alpha=0.8)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share of right predictions")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    return figure


def nearest_curves(distances: Mapping[str, Numbers]) -> Figure:
    """Share of networks within a distance of a training network; further right is newer.

    Args:
        distances: Sorted, by name.
    """
    figure, axes = _plot()
    for (name, values), color in zip(distances.items(), KINDS, strict=False):
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, share, where="post", color=color, linewidth=1.6, label=f"{name} ({len(values)})")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("distance to the nearest training network")
    axes.set_ylabel("share of networks")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def path_figure(paths: Paths) -> Figure:
    """Where samples go from the prior (t = 0) to weights (t = 1)."""
    figure, axes = _plot(3.9)
    for name, cloud, color in (("prior", paths.starts, FAINT), ("training networks", paths.train, HELDOUT)):
        axes.scatter(cloud[:, 0], cloud[:, 1], s=9, color=color, alpha=0.6, linewidths=0, label=name, rasterized=True)
    for k in range(paths.states.shape[1]):
        axes.plot(*paths.states[:, k].T, color=GENERATED, linewidth=0.8, alpha=0.7)
    end = paths.states[-1]
    axes.scatter(end[:, 0], end[:, 1], s=16, color=GENERATED, linewidths=0, marker="^", label="samples at t = 1")
    axes.set_xlabel(f"first component ({100 * paths.share[0]:.1f} % of the way)")
    axes.set_ylabel(f"second ({100 * paths.share[1]:.1f} %)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, markerscale=1.6)
    return figure


def overlap_figure(overlaps: Mapping[str, Numbers], label: str) -> Figure:
    """Histograms of how many errors two networks share, over pairs.

    Args:
        overlaps: Finite numbers from 0 to 1, by kind of pair.
        label: Of the horizontal axis.
    """
    figure, axes = _plot()
    values = np.concatenate(list(overlaps.values()))
    edges = np.linspace(0, max(float(values.max()), 0.05), 31).tolist()
    for (name, found), color in zip(overlaps.items(), KINDS, strict=False):
        weights = np.full(len(found), 1 / len(found))
        legend = f"{name}, mean {found.mean():.2f}"
        axes.hist(found, edges, weights=weights, histtype="stepfilled", alpha=0.25, color=color)
        axes.hist(found, edges, weights=weights, histtype="step", linewidth=1.5, color=color, label=legend)
    axes.set_xlabel(label)
    axes.set_ylabel("share of pairs")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def level_of(values: Sequence[float | None]) -> float | None:
    """The one value that all agree on, or None."""
    known = {round(value, 9) for value in values if value is not None and isfinite(value)}
    return known.pop() if len(known) == 1 and None not in values else None


def _plot(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    return figure, axes


def _columns(points: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
