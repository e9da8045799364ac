"""The command that compares methods, with a flow that was really trained among them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from wsflow.cli import main
from wsflow.commands.comparison import MARK, read_comparison

ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))

TEXT = """
title: "Small"
task: BreastCancer
outliers: {outliers}
sizes: {sizes}
seeds: [0]
methods:
  trained:
    label: Trained networks
    method:
      class_path: DeepEnsemble
      init_args:
        recipe: &recipe {{class_path: Recipe, init_args: {{epochs: 2, batch_size: 455}}}}
  laplace:
    method: {{class_path: FullLaplace, init_args: {{recipe: *recipe, prior_precision: {precision}}}}}
  flow:
    method: {{class_path: FlowEnsemble, init_args: {{checkpoint: "{checkpoint}"}}}}
"""


@pytest.fixture
def write(trained, tmp_path):
    """Write the comparison; its path."""

    def run(precision=1.0, outliers="Noise", sizes=(1, 3)):
        file = tmp_path / "small.yaml"
        values = {"precision": precision, "outliers": outliers, "sizes": list(sizes)}
        file.write_text(TEXT.format(checkpoint=trained, **values))
        return str(file)

    return run


def test_methods_stand_side_by_side_and_are_fitted_once(write, tmp_path, capsys):
    file, results, page = write(), tmp_path / "found.json", tmp_path / "page.md"
    page.write_text(f"before\n<!-- baselines: {file} -->\nold\n<!-- end -->\nafter\n")
    arguments = ["baselines", file, "--results", str(results), "--page", str(page)]
    assert main(arguments) == 0
    kept = json.loads(results.read_text())["small"]
    assert kept["origin"]["split"] == "test"
    assert list(kept["methods"]) == ["trained", "laplace", "flow"]
    trained, flow = (kept["methods"][name]["by_seed"]["0"] for name in ("trained", "flow"))
    assert list(trained) == ["1", "3"]
    assert trained["3"].keys() >= {"accuracy", "nll", "brier", "ece", "ood_auroc", "seconds"}
    assert [trained[size]["gradient_evaluations"] for size in trained] == [2, 6]
    assert flow["3"]["zoo.networks"] == 32
    assert flow["3"]["zoo.gradient_evaluations"] == 32
    assert flow["3"]["flow.fit_seconds"] > 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| Trained networks | 3 |" in text
    assert "| laplace | 1 |" in text

    capsys.readouterr()
    known = json.loads(results.read_text())
    known["small"]["origin"]["commit"] = "that of the measurement"
    results.write_text(json.dumps(known))
    assert main([*arguments, "--seeds", "0"]) == 0
    assert "seed 0:" not in capsys.readouterr().out
    assert json.loads(results.read_text()) == known

    assert main(["baselines", write(precision=5.0), "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert "laplace, 3 networks, seed 0:" in out
    assert "trained, 3 networks, seed 0:" not in out


@pytest.mark.parametrize("other", [{"outliers": "ShuffledFeatures"}, {"sizes": (1, 2)}], ids=["outliers", "sizes"])
def test_what_was_judged_otherwise_is_measured_again(write, tmp_path, capsys, other):
    results = tmp_path / "found.json"
    arguments = ["--methods", "trained", "--results", str(results)]
    assert main(["baselines", write(), *arguments]) == 0
    first = json.loads(results.read_text())["small"]["methods"]["trained"]
    capsys.readouterr()
    assert main(["baselines", write(**other), *arguments]) == 0
    assert "trained, 1 networks, seed 0:" in capsys.readouterr().out
    again = json.loads(results.read_text())["small"]["methods"]["trained"]
    assert again["settings"] == first["settings"]
    assert again["by_seed"]["0"] != first["by_seed"]["0"]


def test_entries_of_before_the_shared_settings_count(write, tmp_path):
    results = tmp_path / "found.json"
    arguments = ["baselines", write(), "--methods", "trained", "--results", str(results)]
    assert main(arguments) == 0
    known = json.loads(results.read_text())
    del known["small"]["methods"]["trained"]["shared"]
    results.write_text(json.dumps(known))
    assert main(arguments) == 0
    assert json.loads(results.read_text()) == known


def test_a_flow_that_was_trained_again_is_judged_again(trained, tmp_path, capsys):
    """A checkpoint is known by its content; rows stay where it is gone, or where it was not noted."""
    checkpoint, results, file = tmp_path / "flow.ckpt", tmp_path / "found.json", tmp_path / "small.yaml"
    shutil.copy(trained, checkpoint)
    file.write_text(TEXT.format(checkpoint=checkpoint, precision=1.0, outliers="Noise", sizes=[1, 3]))
    arguments = ["baselines", str(file), "--methods", "flow", "--results", str(results)]
    assert main(arguments) == 0
    first = json.loads(results.read_text())["small"]["methods"]["flow"]
    assert list(first["read"]["0"]) == [str(checkpoint)]

    known = torch.load(checkpoint, weights_only=True)
    known["state_dict"] = {name: value * 1.5 for name, value in known["state_dict"].items()}
    torch.save(known, checkpoint)
    capsys.readouterr()
    assert main(arguments) == 0
    assert f"flow, seed 0: measured again, {checkpoint} is another than it was" in capsys.readouterr().out
    again = json.loads(results.read_text())["small"]["methods"]["flow"]
    assert again["by_seed"]["0"]["3"]["nll"] != first["by_seed"]["0"]["3"]["nll"]
    assert again["read"] != first["read"]

    kept = json.loads(results.read_text())
    checkpoint.unlink()
    assert main(arguments) == 0
    assert json.loads(results.read_text()) == kept
    shutil.copy(trained, checkpoint)
    del kept["small"]["methods"]["flow"]["read"]
    results.write_text(json.dumps(kept))
    assert main(arguments) == 0
    assert json.loads(results.read_text()) == kept


def test_validation_is_shown_and_not_kept(write, tmp_path, capsys):
    results = tmp_path / "found.json"
    options = ["--split", "val", "--methods", "trained", "--results", str(results)]
    assert main(["baselines", write(), *options]) == 0
    assert "| Trained networks | 3 |" in capsys.readouterr().out
    assert not results.exists()


def test_what_is_not_there_is_named(write, tmp_path, error_of):
    assert "there is no comparison file" in error_of(["baselines", str(tmp_path / "none.yaml")])
    assert "no method other; it has trained" in error_of(["baselines", write(), "--methods", "other"])
    assert "there is no page" in error_of(["baselines", write(), "--page", str(tmp_path / "none.md")])
    assert "sizes must be positive numbers, got []" in error_of(["baselines", write(sizes=())])


@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_shipped_comparisons_can_be_read(file):
    comparison, settings = read_comparison(file)
    assert settings.methods.keys() == comparison.methods.keys()
    assert "deep_ensemble" in settings.methods


def test_the_page_has_every_shipped_comparison():
    named = {name for _, name, _ in MARK.findall((ROOT / "docs" / "baselines.md").read_text())}
    assert named == {f"configs/baselines/{file.name}" for file in COMPARISONS}
