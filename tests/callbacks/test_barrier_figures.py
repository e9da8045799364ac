from __future__ import annotations

import numpy as np
import pytest
import torch

from wsflow.alignment.barrier import Barriers, Paths
from wsflow.callbacks.barrier_figures import barrier_matrices, path_curves


@pytest.fixture
def results(generator: torch.Generator) -> dict[str, Barriers]:
    """Nine networks of three runs that do not stand together; the second result has a tenth of the barriers."""
    run, found = torch.arange(9) % 3, {}
    for label, size in (("before", 1.0), ("after", 0.1)):
        loss = size * torch.rand(9, 9, generator=generator, dtype=torch.float64)
        loss = (loss + loss.T) / 2
        found[label] = Barriers(run, {"loss": torch.zeros(9, dtype=torch.float64)}, {"loss": loss.fill_diagonal_(0)})
    return found


def test_matrices_share_one_colour_scale_and_say_their_means(results: dict[str, Barriers]) -> None:
    figure = barrier_matrices(results)
    panels = [axes for axes in figure.axes if axes.images]
    limits = {image.get_clim() for axes in panels for image in axes.images}
    assert len(panels) == 2
    assert len(limits) == 1
    assert next(iter(limits))[0] == 0
    for axes, (label, result) in zip(panels, results.items(), strict=True):
        assert axes.get_title() == f"{label}\n{result.mean:.3f} ({result.std:.3f})"


def test_networks_of_a_run_stand_together(results: dict[str, Barriers]) -> None:
    shown = np.asarray(barrier_matrices(results).axes[0].images[0].get_array())
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    np.testing.assert_array_equal(shown, results["before"].matrix.numpy()[np.ix_(order, order)])


def test_curves_are_means_over_pairs() -> None:
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    loss = torch.stack([t * (1 - t), 3 * t * (1 - t)])
    figure = path_curves({"line": Paths(t, {"loss": loss, "accuracy": 1 - loss})})
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("loss", "accuracy")
    np.testing.assert_allclose(first.lines[0].get_ydata(), loss.mean(0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["line"]


def test_a_task_without_accuracy_has_one_panel() -> None:
    t = torch.linspace(0, 1, 3)
    assert len(path_curves({"line": Paths(t, {"loss": torch.rand(2, 3), "mse": torch.rand(2, 3)})}).axes) == 1


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no barriers to draw"):
        barrier_matrices({})
    with pytest.raises(ValueError, match="no paths to draw"):
        path_curves({})
