"""Pictures of the lines between networks: matrices of midpoint barriers (the thesis's Figure 7.2), and curves."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsflow.alignment.barrier import Barriers, Paths

COLUMNS = 3
"""Matrices side by side."""

BAND = (0.1, 0.9)
"""The quantiles over pairs between which a curve's band lies."""


def barrier_matrices(results: Mapping[str, Barriers]) -> Figure:
    """The midpoint barriers of all pairs, a panel for each result, all in one colour scale.

    Networks of one run stand together.  The scale ends at the 99.5 % quantile over all panels; titles give mean and
    standard deviation over pairs of different runs.

    Raises:
        ValueError: where there is nothing to draw.
    """
    if not results:
        raise ValueError("there are no barriers to draw")
    columns = 2 if len(results) == 4 else min(COLUMNS, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.concatenate([result.values.numpy() for result in results.values()])
    top = float(np.quantile(values, 0.995))
    scale: dict[str, Any] = {"vmin": min(0.0, float(np.quantile(values, 0.005))), "vmax": top, "cmap": "viridis"}
    for axes, (label, result) in zip(panels, results.items(), strict=False):
        order = result.run.argsort(stable=True)
        image = axes.imshow(result.matrix[order][:, order].numpy(), **scale, interpolation="nearest")
        axes.set_title(f"{fill(label, 46)}\n{result.mean:.3f} ({result.std:.3f})", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=panels.tolist(), extend="max", shrink=0.9)
    bar.set_label("midpoint barrier of the loss")
    return figure


def path_curves(results: Mapping[str, Paths]) -> Figure:
    """Loss, and accuracy where there is one, along the lines: mean over pairs, and a band between two quantiles.

    Raises:
        ValueError: where there is nothing to draw.
    """
    if not results:
        raise ValueError("there are no paths to draw")
    scores = [score for score in ("loss", "accuracy") if all(score in paths.scores for paths in results.values())]
    figure = Figure(figsize=(4.8 * len(scores), 3.9), layout="constrained")
    colors = ["#808080", *mpl.color_sequences["Dark2"]]
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for (label, result), color in zip(results.items(), colors * len(results), strict=False):
            t, values = result.t.numpy(), result.scores[score].numpy()
            low, high = _band(values)
            axes.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(t, values.mean(0), color=color, linewidth=1.6, label=label)
        axes.set_xlabel("t, from one network to the other")
        axes.set_ylabel(score)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, fontsize=8, ncols=2
    )
    return figure


def _band(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two quantiles (2, K) over the pairs of (P, K)."""
    return np.asarray(np.quantile(values, BAND, axis=0))
