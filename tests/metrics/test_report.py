from __future__ import annotations

import pytest

from wsflow.metrics import render, render_text

REPORT = {
    "samples.accuracy": 0.98765,
    "samples.accuracy.std": 0.01,
    "samples.ensemble_size": 60.0,
    "samples.nn_ratio.function": 0.9,
    "samples.dispersion": 1.01,
    "samples.dispersion.1.weight": 7.77,
    "heldout.accuracy": 0.99,
    "heldout.accuracy.std": 0.02,
    "baselines.gaussian.accuracy": 0.5,
    "baselines.gaussian.noise": 0.25,
    "baselines.gaussian.function_matched.accuracy": 0.75,
    "baselines.gaussian.function_matched.noise": 0.125,
    "timing.evaluation": 1.0,
}


def test_a_row_for_each_family_and_a_column_for_each_score() -> None:
    table = render(REPORT)
    assert [list(column.cells) for column in table.columns] == [
        ["generated", "held-out runs", "gaussian", "  in function only"],
        ["0.988 ± 0.010", "0.990 ± 0.020", "0.500", "0.750"],
        ["0.900", "", "", ""],
        ["1.010", "", "", ""],
        ["", "", "0.250", "0.125"],
    ]


def test_plain_text_has_the_same_cells_and_no_escapes() -> None:
    text = render_text(REPORT)
    for cell in ("generated", "gaussian", "0.988 ± 0.010", "NN ratio"):
        assert cell in text
    assert "\x1b" not in text
    assert "7.77" not in text


def test_a_caption_says_how_to_read_it() -> None:
    lines = str(render(REPORT).caption).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "±",
        "ensemble",
        "NN ratio",
        "dispersion",
        "added noise",
        "in function only",
    ]
    assert "of 60 networks" in lines[1]
    assert render({"samples.std": 1.0}).caption is None


def test_a_task_without_data() -> None:
    text = render_text({"samples.grand_mean": 1.01, "samples.std": 0.98, "heldout.grand_mean": 1.0, "heldout.std": 1.0})
    assert "grand" in text
    assert "1.010" in text


def test_a_report_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="samples"):
        render({"heldout.accuracy": 1.0})


def test_all_columns_of_classification_fit_in_120_characters() -> None:
    scores = ["accuracy", "loss", "ensemble_accuracy", "ensemble_nll", "nn_ratio.function", "nn_ratio.weight", "z_u"]
    families = ["samples", "heldout", "baselines.displacement", "baselines.displacement.function_matched"]
    report = {f"{name}.{score}": -9.9999 for name in families for score in [*scores, "dispersion", "noise"]}
    report |= {f"{name}.{score}": 0.9999 for name in families for score in ("accuracy", "loss")}
    report |= {f"{name}.{score}.std": 0.9999 for name in families for score in ("accuracy", "loss")}
    text = render_text(report, 120)
    assert "…" not in text
    assert text.count("1.000 ± 1.000") == 8
    assert max(len(line) for line in text.splitlines()) <= 120
