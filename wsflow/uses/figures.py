"""Learning curves of several kinds of starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from wsflow.files import replacing

NAMES = {"accuracy": "accuracy", "loss": "loss (nats)", "mse": "mean squared error", "nll": "NLL (nats)"}


def learning_curve_figure(result: Mapping[str, Any]) -> Figure:
    """A panel a score: the mean over seeds, with a band of one standard deviation over seeds.

    Args:
        result: As ``wsflow initialise`` writes it.
    """
    kinds = result["kinds"]
    scores = sorted(next(iter(kinds.values()))["curves"])
    figure = Figure(figsize=(4.6 * len(scores), 3.6), layout="constrained")
    for axes, score in zip(np.atleast_1d(figure.subplots(1, len(scores))), scores, strict=True):
        for (kind, values), color in zip(kinds.items(), mpl.color_sequences["Dark2"], strict=False):
            curve = values["curves"][score]
            mean = np.asarray(curve["mean"])
            spread = np.asarray([value or 0.0 for value in curve["std"]])
            axes.plot(values["steps"], mean, label=kind, color=color, linewidth=1.5)
            axes.fill_between(values["steps"], mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        if score == "accuracy":
            axes.axhline(result["origin"]["level"], color="grey", linestyle="--", linewidth=0.8)
        axes.set_xlabel("training steps")
        axes.set_ylabel(NAMES.get(score, score))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def save_learning_curves(result: Mapping[str, Any], folder: Path) -> None:
    """Write the figure as PNG and SVG."""
    figure = learning_curve_figure(result)
    with replacing(folder / "initialisation.png") as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    with replacing(folder / "initialisation.svg") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
