from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from wsflow.callbacks import figures
from wsflow.metrics import Evaluation, Report
from wsflow.tasks import BreastCancer, Gaussians


@pytest.fixture(scope="module")
def report() -> Report:
    task = BreastCancer([30, 4, 2])
    networks = torch.randn(50, task.space.dim, generator=torch.Generator().manual_seed(0))
    return Evaluation(task, networks[:20], networks[20:30], baselines=[])(networks[30:])


def test_files_are_written_for_every_picture(report: Report, tmp_path: Path) -> None:
    paths = figures.save_all(report, tmp_path / "new" / "folder")
    assert sorted(path.stem for path in paths) == ["accuracy", "distance", "loss", "principal_components"]
    for path in paths:
        pixels = mpl.image.imread(path)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_axes_are_labelled_and_the_legend_counts_networks(report: Report) -> None:
    for figure in (figures.score_histogram(report), figures.distance_histogram(report)):
        (axes,) = figure.axes
        assert axes.get_xlabel()
        assert axes.get_ylabel() == "share of networks"
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names[0].startswith("held-out runs (10), mean")
        assert names[1].startswith("generated (20), mean")


def test_shares_add_up_to_one(report: Report) -> None:
    (axes,) = figures.score_histogram(report, "loss").axes
    filled = [container for container in axes.containers if len(container) > 1]
    assert [sum(bar.get_height() for bar in bars) for bars in filled] == pytest.approx([1, 1])


def test_components_are_fitted_to_training_networks(report: Report) -> None:
    (axes,) = figures.principal_components(report).axes
    train, heldout, samples = (np.asarray(c.get_offsets()) for c in axes.collections)
    assert (len(train), len(heldout), len(samples)) == (20, 10, 20)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    x = report.train.double() - report.train.double().mean(0)
    np.testing.assert_allclose(np.abs(train.T @ train).max(), float(torch.linalg.svdvals(x)[0]) ** 2, rtol=1e-6)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0]], ids=["one", "equal", "zero"])
def test_equal_values_have_a_bin(values: list[float]) -> None:
    edges = figures._bins(np.array(values))
    assert edges[0] < values[0] < edges[-1]


def test_few_distinct_values_lie_in_the_middle_of_their_bins() -> None:
    edges = figures._bins(np.array([54, 56, 57, 57]) / 57)
    assert len(edges) == 5
    np.testing.assert_allclose((edges[:-1] + edges[1:]) / 2, np.array([54, 55, 56, 57]) / 57)


def test_an_unknown_score_is_named(report: Report) -> None:
    with pytest.raises(ValueError, match="'mse'"):
        figures.score_histogram(report, "mse")


def test_a_task_without_data_has_no_pictures(tmp_path: Path) -> None:
    task = Gaussians([4, 3, 2])
    theta = task.draw(30, torch.Generator().manual_seed(0))
    report = Evaluation(task, theta[:10], theta[10:20])(theta[20:])
    assert figures.save_all(report, tmp_path) == []
    with pytest.raises(ValueError, match="principal components"):
        figures.principal_components(report)


def test_mean_weights_lie_on_the_law_of_the_gaussian_task(tmp_path: Path) -> None:
    task = Gaussians([4, 3, 2], mean=-2.0, std=0.5)
    exact = task.draw(4000, torch.Generator().manual_seed(0))
    samples = {"exact": exact, "contracted": -2 + (exact[:1000] + 2) / 4}
    figure = figures.weight_means(samples, mean=-2.0, std=0.5)
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [name.split(",")[0] for name in names] == ["exact (4000)", "contracted (1000)", "target"]
    exact_bars, narrow_bars = (bars for bars in axes.containers if len(bars) > 1)
    (law,) = axes.lines
    widths = {bar.get_width() for bar in exact_bars}
    assert sum(bar.get_height() for bar in exact_bars) * max(widths) == pytest.approx(1)
    assert np.trapezoid(law.get_ydata(), law.get_xdata()) == pytest.approx(1, abs=1e-3)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in exact_bars]
    expected = np.interp(middles, law.get_xdata(), law.get_ydata())
    assert np.abs([bar.get_height() for bar in exact_bars] - expected).max() < 0.15 * law.get_ydata().max()
    assert max(bar.get_height() for bar in narrow_bars) > 2 * law.get_ydata().max()
    assert figures.save(figure, tmp_path / "means.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "samples",
    [{}, {"none": torch.ones(0, 5)}, {"one": torch.ones(2, 5), "other": torch.ones(2, 6)}],
    ids=["nothing", "no_networks", "spaces"],
)
def test_mean_weights_need_networks_of_one_space(samples: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="networks of one weight space"):
        figures.weight_means(samples)
