"""Pictures of generated networks beside trained ones.

Each function returns a matplotlib Figure of its own, outside pyplot: no window opens and nothing has to be closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from wsflow.files import replacing
from wsflow.metrics import Report

GENERATED, HELDOUT, TRAIN = "#c8501e", "#1f5a94", "#b5b5b5"
Numbers = NDArray[np.float64]
LABELS = {
    "accuracy": "accuracy of one network",
    "loss": "loss of one network (nats)",
    "mse": "mean squared error of one network",
    "nll": "negative log-likelihood of one network (nats)",
}


def score_histogram(report: Report, score: str = "accuracy") -> Figure:
    """Histogram of a score over generated and held-out networks, such as ``accuracy``, ``loss`` or ``mse``.

    Raises:
        ValueError: where the report does not have the score.
    """
    have = report.families["samples"].quality.scores
    if score not in have:
        raise ValueError(f"the report has no score {score!r}, only {sorted(have)}")
    values = {name: report.families[name].quality.scores[score] for name in ("samples", "heldout")}
    figure = _histogram(values, LABELS.get(score, score))
    figure.axes[0].set_title("How good the networks are")
    return figure


def distance_histogram(report: Report) -> Figure:
    """Histogram of the distance to the nearest training network, of generated and held-out networks."""
    values = {name: report.families[name].function_distance for name in ("samples", "heldout")}
    figure = _histogram(values, "distance to the nearest training network\n(rms difference of predictions)")
    figure.axes[0].set_title("How new the networks are")
    return figure


def principal_components(report: Report) -> Figure:
    """Training, held-out and generated networks on the first two principal components of the training networks.

    Networks are in canonical form and matched to one reference.  Components fitted to few networks in many dimensions
    fit their noise too, so that training networks spread a little wider than any others, real or generated.

    Raises:
        ValueError: for a report of a task with no data, or with fewer than two training networks.
    """
    if report.train is None or len(report.train) < 2:
        raise ValueError("principal components need at least two training networks in the report")
    pca = PCA(2, random_state=0).fit(_single(report.train))  # of many large networks by random projections
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    clouds = (
        ("training runs", report.train, TRAIN, "."),
        ("held-out runs", report.families["heldout"].x, HELDOUT, "o"),
        ("generated", report.families["samples"].x, GENERATED, "^"),
    )
    for name, x, color, marker in clouds:
        points = pca.transform(_single(x))
        legend = f"{name} ({len(x)})"
        axes.scatter(points[:, 0], points[:, 1], s=14, c=color, marker=marker, alpha=0.75, linewidths=0, label=legend)
    share = 100 * pca.explained_variance_ratio_
    axes.set_xlabel(f"first principal component ({share[0]:.1f} % of variance)")
    axes.set_ylabel(f"second principal component ({share[1]:.1f} %)")
    axes.set_title("Aligned canonical weights")
    axes.legend(frameon=False, fontsize=9)
    return _plain(figure)


def weight_means(samples: Mapping[str, Tensor], mean: float = 1.0, std: float = 1.0) -> Figure:
    """Histograms of each network's mean weight, with the law that independent N(mean, std^2) weights would have.

    Means of D such weights are N(mean, std^2 / D); the thesis's Figure 7.1 for its Gaussian task.

    Args:
        samples: Networks (n, D) by the name they have in the legend.
        mean: Of every weight under the target law.
        std: Of every weight under the target law.

    Raises:
        ValueError: for no samples, or samples of different weight spaces.
    """
    dims = {theta.shape[1] for theta in samples.values()}
    if len(dims) != 1 or not all(len(theta) for theta in samples.values()):
        raise ValueError(f"mean weights need networks of one weight space, got {_shapes(samples)}")
    means = {name: _array(theta).mean(axis=1) for name, theta in samples.items()}
    spread = std / dims.pop() ** 0.5
    lowest, highest = (f([mean, *(f(x) for x in means.values())]) for f in (min, max))
    edges = np.linspace(min(lowest, mean - 4 * spread), max(highest, mean + 4 * spread), 61)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    colors = [GENERATED, HELDOUT, *mpl.color_sequences["Dark2"]]
    for (name, x), color in zip(means.items(), colors, strict=False):
        legend = f"{name} ({len(x)}), {x.mean():.4f} ± {x.std():.4f}"
        axes.hist(x, edges.tolist(), density=True, alpha=0.35, color=color, label=legend)
        axes.hist(x, edges.tolist(), density=True, histtype="step", color=color, linewidth=1.2)
    at = np.linspace(edges[0], edges[-1], 400)
    law = np.exp(-(((at - mean) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    axes.plot(at, law, color="black", linewidth=1.2, linestyle="--", label=f"target, {mean:.4f} ± {spread:.4f}")
    axes.set_xlabel("mean of a network's weights")
    axes.set_ylabel("density")
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
    return _plain(figure)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure (the suffix says in what format); folders are made."""
    path = Path(path)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    return path


def save_all(report: Report, folder: str | Path) -> list[Path]:
    """Every picture that the report has the numbers for, as PNG files in a folder."""
    if not report.families:
        return []
    folder = Path(folder)
    figures = {score: score_histogram(report, score) for score in report.families["samples"].quality.scores}
    figures |= {"distance": distance_histogram(report), "principal_components": principal_components(report)}
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _histogram(values: dict[str, Tensor], label: str) -> Figure:
    """Two histograms over the same bins, as shares since the numbers of networks differ; dashed lines are means."""
    samples, heldout = (_array(values[name]) for name in ("samples", "heldout"))
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    bins = _bins(np.concatenate([samples, heldout])).tolist()
    for name, x, color in (("held-out runs", heldout, HELDOUT), ("generated", samples, GENERATED)):
        weights = np.full(len(x), 1 / len(x))
        legend = f"{name} ({len(x)}), mean {x.mean():.3g}"
        axes.hist(x, bins, weights=weights, alpha=0.45, color=color, label=legend)
        axes.hist(x, bins, weights=weights, histtype="step", color=color, linewidth=1.2)
        axes.axvline(x.mean(), color=color, linestyle="--", linewidth=1)
    axes.set_xlabel(label)
    axes.set_ylabel("share of networks")
    axes.legend(frameon=False, fontsize=9)
    return _plain(figure)


def _bins(values: Numbers) -> Numbers:
    """At most 40 bins; one around each value where there are few different ones, as accuracies on little data have."""
    distinct = np.unique(values.round(9))
    if len(distinct) == 1:
        return np.asarray(distinct[0] + np.array([-0.5, 0.5]) * (abs(distinct[0]) * 0.01 or 0.01))
    gap = np.diff(distinct).min()
    count = round(np.ptp(distinct) / gap) + 1
    if count <= 40:
        return np.asarray(distinct[0] + gap * (np.arange(count + 1) - 0.5))
    return np.linspace(values.min(), values.max(), 25)


def _shapes(samples: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(theta.shape) for name, theta in samples.items()}


def _plain(figure: Figure) -> Figure:
    figure.axes[0].spines[["top", "right"]].set_visible(False)
    return figure


def _single(x: Tensor) -> NDArray[np.float32]:
    return np.asarray(x.detach().cpu(), dtype=np.float32)


def _array(x: Tensor) -> Numbers:
    return np.asarray(x.detach().cpu(), dtype=np.float64)
