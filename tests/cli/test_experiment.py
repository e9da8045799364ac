"""Experiments: every stage of every seed once, and figures that the program itself keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from wsflow.cli import main
from wsflow.commands.experiment import _origin, stages
from wsflow.commands.experiment_file import cases
from wsflow.commands.parsers import training
from wsflow.commands.results import merge, read_results
from wsflow.commands.table import filled
from wsflow.zoo import Zoo

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))

TASK = """
import torch
from wsflow.tasks import ClassificationTask

class Bands(ClassificationTask):
    def __init__(self, hidden: int = 3):
        self.hidden = hidden

    @property
    def network(self):
        args = {"widths": [2, self.hidden, 2]}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}

    def load(self):
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] > 0).long()
        return {"train": (x[:40], y[:40]), "val": (x[40:50], y[40:50]), "test": (x[50:], y[50:])}
"""

FIT = """
trainer:
  accelerator: cpu
  max_epochs: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: ModelCheckpoint, init_args: {filename: last, enable_version_counter: false}}]
model:
  field:
    class_path: RelationalTransformer
    init_args: {width: 8, edge_width: 4, depth: 1, heads: 2}
data:
  task: {class_path: bands_task.Bands}
  path: zoos/bands
  batch_size: 8
  collector:
    class_path: Collector
    init_args: {runs: 60, epochs: 1}
"""

EXPERIMENT = """
title: Bands
configs: [fit.yaml]
n: 6
steps: 2
seeds: [0, 1]
baselines: false
overrides: {trainer.max_epochs: 1, model.path: {class_path: wsflow.flow.GeodesicPath, init_args: {sigma: 0.01}}}
points:
  plain: {published: {samples.accuracy: 0.5}}
  sweep: {run: bands_plain, steps: [1]}
figure: steps.png
"""


@pytest.fixture
def bands(package, tmp_path, monkeypatch):
    """An experiment file on a plug-in task, in the working directory."""
    (package / "bands_task.py").write_text(TASK)
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "bands.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bands.yaml"


@pytest.fixture
def run(bands, capsys):
    """Run the experiment; the stages that it started."""

    def command(*options):
        capsys.readouterr()
        assert main(["experiment", bands.name, "--results", "results.json", *options]) == 0
        return re.findall(r"^experiment: wsflow (\w+)", capsys.readouterr().out, re.MULTILINE)

    return command


def test_every_stage_runs_once_and_every_seed_is_kept(run, bands, tmp_path):
    assert run("--seeds", "0") == ["fit", *["predict", "evaluate"] * 2]
    first = read_results("results.json")
    assert list(first) == ["bands_plain", "bands_sweep_steps_1"]
    assert "spread" not in first["bands_plain"]

    assert run() == ["fit", *["predict", "evaluate"] * 2]
    assert run() == []
    found = read_results("results.json")["bands_plain"]
    report = json.loads((tmp_path / "runs/experiments/bands_plain/seed_1/bands_plain/report.json").read_text())
    for key in ("samples.accuracy", "samples.nn_ratio.function", "heldout.raw.loss", "best_single.accuracy"):
        values = [found["by_seed"][seed][key] for seed in "01"]
        assert values[1] == pytest.approx(report[key], rel=1e-5)
        assert found[key] == pytest.approx(sum(values) / 2, rel=1e-5)
        assert found["spread"][key] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-3, abs=1e-12)
    assert found["by_seed"]["0"] == first["bands_plain"]["by_seed"]["0"]
    assert found["origin"]["seeds"] == [0, 1]
    assert found["origin"]["settings"]["n"] == 6
    assert "timing.fit" in found
    assert (tmp_path / "steps.png").stat().st_size > 5_000


@pytest.mark.parametrize("flag", [("--fit_only",), ("--fit_only", "true"), ("--fit_only=true",)])
def test_fitting_alone_is_asked_for_in_every_way_that_a_switch_is_written(run, tmp_path, flag):
    assert run("--seeds", "0", "--points", "plain", *flag) == ["fit"]
    assert not (tmp_path / "results.json").exists()


def test_a_training_that_was_cut_short_goes_on(run, tmp_path):
    run("--seeds", "0", "--points", "plain", "--fit_only")
    place = tmp_path / "runs/experiments/bands_plain/seed_0"
    record = json.loads((place / "experiment.json").read_text())
    record["fit"]["done"] = False
    (place / "experiment.json").write_text(json.dumps(record))
    before = (place / "checkpoints/last.ckpt").read_bytes()
    assert run("--seeds", "0", "--points", "plain") == ["fit", "predict", "evaluate"]
    assert (place / "checkpoints/last.ckpt").read_bytes() == before  # nothing was left to train


def test_comments_in_configs_are_no_other_settings(run, tmp_path, error_of, bands):
    run("--seeds", "0", "--points", "plain", "--fit_only")
    config = tmp_path / "fit.yaml"
    text = config.read_text()
    config.write_text("# words\n" + text)
    file = tmp_path / "runs/experiments/bands_plain/seed_0/experiment.json"
    record = json.loads(file.read_text())
    record["fit"]["settings"]["configs"] = {"fit.yaml": text}  # as records of before hold it
    file.write_text(json.dumps(record))
    assert run("--seeds", "0", "--points", "plain", "--fit_only") == []
    config.write_text(text + "seed_everything: 5\n")
    assert "now (configs): remove it" in error_of(["experiment", bands.name, "--seeds", "0", "--fit_only"])


def test_a_task_of_a_job_array_runs_an_experiment_whole(run, bands, tmp_path, monkeypatch, error_of):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert run("--seeds", "0", "--points", "plain") == ["fit", "predict", "evaluate"]
    assert len(Zoo.open(tmp_path / "runs/experiments/bands_plain/seed_0/bands_plain/samples").theta) == 6
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes would each run the same experiment" in error_of(["experiment", bands.name])


def test_two_configs_of_one_name_are_told_apart(run, bands, tmp_path, error_of):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "fit.yaml").write_text("data: {batch_size: 4}\n")
    bands.write_text(bands.read_text().replace("[fit.yaml]", "[fit.yaml, more/fit.yaml]"))
    run("--seeds", "0", "--points", "plain", "--fit_only")
    (tmp_path / "fit.yaml").write_text(FIT.replace("depth: 1", "depth: 2"))
    assert "now (contents): remove it" in error_of(["experiment", bands.name, "--seeds", "0", "--fit_only"])


def test_a_training_begins_with_the_weights_of_another(run, bands, tmp_path, error_of):
    still = "{class_path: torch.optim.SGD, init_args: {lr: 0.0}}"
    point = f"  more: {{weights_of: bands_plain, overrides: {{model.optimizer: {still}}}}}\n"
    bands.write_text(bands.read_text().replace("figure:", point + "figure:"))
    alone = ["experiment", bands.name, "--results", "results.json", "--seeds", "0", "--points", "more"]
    assert "bands_more begins with the weights of bands_plain: run that first; there is no" in error_of(alone)
    assert not (tmp_path / "runs/experiments/bands_more").exists()
    assert run("--seeds", "0", "--points", "plain", "more") == ["fit", "predict", "evaluate"] * 2
    places = [tmp_path / "runs/experiments" / name / "seed_0/checkpoints" for name in ("bands_plain", "bands_more")]
    before, after = (torch.load(place / "last.ckpt", weights_only=True)["state_dict"] for place in places)
    for name, value in before.items():
        assert torch.equal(after[name], value), name

    times = [json.loads((place.parent / "timing.json").read_text()) for place in places]
    assert "fit_before" not in times[0]
    assert times[1]["fit_before"] == times[0]["fit"]
    kept = read_results("results.json")["bands_more"]
    assert kept["timing.fit_before"] == pytest.approx(times[0]["fit"], rel=1e-5)
    assert kept["timing.fit"] == pytest.approx(times[1]["fit"], rel=1e-5)

    records = [place.parent / "experiment.json" for place in places]
    base, record = (json.loads(file.read_text()) for file in records)
    del record["fit"]["settings"]["weights"]  # as records of before have none
    records[1].write_text(json.dumps(record))
    assert run("--seeds", "0", "--points", "more") == []
    record["fit"]["settings"]["weights"] = "0"
    records[1].write_text(json.dumps(record))
    assert "other settings than the experiment's now (weights): remove it" in error_of(alone)
    base["fit"]["done"] = False
    records[0].write_text(json.dumps(base))
    assert "run that first; there is no finished training that left" in error_of(alone)


def test_validation_figures_are_shown_and_not_kept(run, tmp_path):
    run("--seeds", "0", "--points", "plain", "--split", "val")
    assert not (tmp_path / "results.json").exists()


def test_the_flow_of_one_width_is_sampled_at_another(run, bands, tmp_path):
    text = bands.read_text().replace("overrides: {", "overrides: {model.weighting: PerTensor, ")
    text += "transfer: zoos/wide\ntransfer_configs: [fit.yaml]\n"
    bands.write_text(text + "transfer_overrides: {data.task.init_args.hidden: 5}\n")
    stages = ["fit", "collect", "transfer", "predict", "evaluate"]
    assert run("--seeds", "0", "--points", "plain") == stages
    samples = Zoo.open(tmp_path / "runs/experiments/bands_plain/seed_0/bands_plain/samples")
    assert samples.space == Zoo.open(tmp_path / "zoos/wide").space
    assert samples.theta.shape == (6, 2 * 5 + 5 + 5 * 2 + 2)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[fit.yaml]", "[gone.yaml]", "bands.yaml names the config gone.yaml, and there is no file gone.yaml"),
        ("n: 6", "networks: 6", "'networks' is not accepted"),
        ("max_epochs: 1", "max_epochs: 3", "holds a training of other settings than the experiment's now"),
    ],
)
def test_one_line_says_what_is_wrong(before, after, message, bands, tmp_path, error_of):
    place = tmp_path / "runs/experiments/bands_plain/seed_0"
    place.mkdir(parents=True)
    (place / "experiment.json").write_text(json.dumps({"fit": {"settings": {"options": []}, "done": True}}))
    bands.write_text(bands.read_text().replace(before, after))
    assert message in error_of(["experiment", bands.name])
    assert "there is no experiment file no.yaml" in error_of(["experiment", "no.yaml"])
    if before == "max_epochs: 1":
        assert "no point x; points are plain, sweep" in error_of(["experiment", bands.name, "--points", "x"])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("steps: [1]", "solver: Huen, steps: [1]", "bands_sweep_steps_1: predict: "),
        ("run: bands_plain,", "overrides: {model.feild.init_args.depth: 2},", "bands_sweep_steps_1: fit: "),
        ("run: bands_plain,", "transfer: zoos/wide, transfer_overrides: {data.task.init_args.hid: 5},", ": collect: "),
    ],
)
def test_what_cannot_be_parsed_is_told_of_before_anything_runs(before, after, message, bands, tmp_path, error_of):
    bands.write_text(bands.read_text().replace(before, after))
    error = error_of(["experiment", bands.name, "--seeds", "0"])
    assert error.startswith("wsflow: error: bands.yaml, bands_sweep_steps_1: ")
    assert message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ['{"a": ', "[]", '{"a": [1]}', '{"a": {"by_seed": []}}', '{"a": {"origin": 1}}'])
def test_damaged_results_are_told_of_before_anything_runs(text, bands, tmp_path, error_of):
    (tmp_path / "results.json").write_text(text)
    for command in ("experiment", "table"):
        assert "results.json is no file of results" in error_of([command, bands.name, "--results", "results.json"])
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "results.json").read_text() == text


def test_figures_of_other_settings_are_not_averaged(tmp_path):
    file = tmp_path / "results.json"
    for seed, accuracy, steps in ((0, 0.5, 4), (1, 0.7, 4), (1, 0.9, 8)):
        report = {"samples.accuracy": accuracy, "samples.dispersion.w": 1.0}
        merge(file, "a", seed, report, {"settings": {"steps": steps}})
        merge(file, "b", seed, {"samples.accuracy": accuracy}, {"settings": {"n": 1}})
    found = read_results(file)
    assert (found["a"]["samples.accuracy"], found["a"]["origin"]["seeds"]) == (0.9, [1])
    assert (found["b"]["samples.accuracy"], found["b"]["origin"]["seeds"]) == (0.7, [0, 1])
    assert "samples.dispersion.w" not in found["a"]


@pytest.mark.parametrize(
    "other",
    [
        "noise: 0.5",
        "power: 3.0",
        "weights_of: another",
        "transfer: zoos/wide",
        "transfer_configs: [fit.yaml]",
        "transfer_overrides: {data.batch_size: 4}",
        "content",
    ],
)
def test_seeds_are_averaged_where_no_known_setting_differs(bands, tmp_path, other, capsys):
    def add(seed: int, **unknown: None) -> list[int]:
        (case, *_) = cases(bands)
        origin = _origin(case, bands, [])
        kept = {name: value for name, value in origin["settings"].items() if name not in unknown}
        merge("results.json", case.key, seed, {"samples.accuracy": 0.5}, {**origin, "settings": kept})
        return read_results("results.json")[case.key]["origin"]["seeds"]

    names = ("noise", "power", "weights_of", "transfer", "transfer_configs", "transfer_overrides", "contents")
    assert add(0, **dict.fromkeys(names)) == [0]  # as figures of before are kept
    assert add(1) == [0, 1]
    (tmp_path / "fit.yaml").write_text("# a comment\n" + FIT)
    assert add(2) == [0, 1, 2]
    if other == "content":
        (tmp_path / "fit.yaml").write_text(FIT.replace("width: 8", "width: 16"))
    else:
        bands.write_text(bands.read_text() + other + "\n")
    assert not capsys.readouterr().out
    assert add(3) == [3]
    assert "dropped the figures of seeds 0, 1, 2, whose" in capsys.readouterr().out


def test_a_page_is_brought_up_to_date(bands, tmp_path):
    merge("results.json", "bands_plain", 0, {"samples.accuracy": 0.8765, "samples.z_u": 1.234}, {"settings": {}})
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n<!-- table: bands.yaml -->\nold\n<!-- end -->\n\nend\n")
    assert main(["table", "--page", str(page), "--results", "results.json"]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.endswith("<!-- end -->\n\nend\n")
    assert "| plain | 0.876 | - | 0.500 | - | - | - | - | 1.23 | - | 0 |" in text
    assert main(["table", "--page", "nowhere.md"]) == 1


@pytest.fixture(scope="module")
def parser():
    """What fit and collect parse, without running anything."""
    return training("wsflow fit")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_composes_and_parses(file, parser, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = cases(file)
    assert found
    assert len({case.key for case in found}) == len(found)
    # All points that begin with one config at once, each config and option where it comes first: a parse of every
    # point takes minutes.
    given: dict[tuple[str, str], list[str]] = {}
    for case in found:
        for name, *arguments in (stage.arguments for stage in stages(case, Path("place"), 0, "test")):
            if name in ("fit", "collect"):
                given.setdefault((name, arguments[1]), []).extend(arguments)
    for arguments in given.values():
        options = [arg for arg in arguments if arg.startswith("--") and "=" in arg]
        configs = [arg for arg in arguments if arg.endswith(".yaml")]
        parser.parse_args(
            [part for path in dict.fromkeys(configs) for part in ("-c", path)] + list(dict.fromkeys(options))
        )


def test_the_tables_of_the_page_are_those_of_the_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "results.md").read_text()
    assert filled(text, ROOT / "docs" / "results.json") == text
