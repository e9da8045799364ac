"""The commands do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml

import wsflow
from wsflow.cli import COMMANDS, entry, main
from wsflow.flow import Heun, Sampler, StartsPrior
from wsflow.zoo import Zoo

PLUGIN = '''
"""A task in a user's own package: three Gaussian clusters in four dimensions."""

import torch

from wsflow.tasks import ClassificationTask


class Clusters(ClassificationTask):
    def __init__(self, hidden: int = 5) -> None:
        self.hidden = hidden

    @property
    def network(self):
        args = {"widths": [4, self.hidden, 3]}
        return {"class_path": "clustering_plugin.net", "init_args": args, "output_activation": "softmax"}

    def load(self):
        labels = torch.arange(60) % 3
        noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        inputs = noise + 2 * torch.nn.functional.one_hot(labels, 4)
        parts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
        return {name: (inputs[part], labels[part]) for name, part in parts.items()}


def net(widths) -> torch.nn.Sequential:
    first, second, third = widths
    return torch.nn.Sequential(torch.nn.Linear(first, second), torch.nn.Tanh(), torch.nn.Linear(second, third))
'''


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage: wsflow" in capsys.readouterr().out


def test_the_version(capsys, monkeypatch):
    """And what every command begins with: freed memory is kept."""
    kept = []
    monkeypatch.setattr("wsflow.cli.keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(sys, "argv", ["wsflow", "--version"])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == wsflow.__version__
    assert kept == [True]


def test_an_interrupt_while_imports_run_is_one_line(tmp_path):
    (tmp_path / "lightning.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    words, places = [sys.executable, "-m", "wsflow", "--version"], {**os.environ, "PYTHONPATH": str(tmp_path)}

    def heed() -> None:
        """Shells start background jobs deaf to the signal."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.run(words, env=places, capture_output=True, text=True, check=False, preexec_fn=heed)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "wsflow: interrupted\n")


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_nobody_has_to_read_all_that_is_printed(arguments):
    """Whether a command prints it or the parser, which later versions of Python keep silent."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "wsflow", *arguments]
    process = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert process.stderr == ""
    assert process.returncode in ({141} if len(arguments) == 1 else {0, 141})


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "nearby_plugin.py").write_text(PLUGIN.replace("clustering_plugin", "nearby_plugin"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(
        sys, "argv", ["wsflow", "collect", "--data.task=nearby_plugin.Clusters", "--data.path=zoo", "--dry-run"]
    )
    with pytest.raises(SystemExit) as stop:
        entry()
    sys.modules.pop("nearby_plugin", None)
    assert stop.value.code == 0
    assert "runs of clusters" in capsys.readouterr().out


def test_class_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.geometry.help", "Geometric"])
    assert "--model.geometry.keep_scale" in capsys.readouterr().out


def test_print_config_shows_what_overlays_make(command, capsys):
    with pytest.raises(SystemExit):
        main(command("fit", "--model.prior.std=0.2", "--print_config", overlays=("geometry/geometric", "coupling/ot")))
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["geometry"]["class_path"] == "wsflow.geometry.Geometric"
    assert config["model"]["coupling"]["class_path"] == "wsflow.flow.OptimalTransportCoupling"
    assert config["model"]["prior"]["init_args"] == {"std": 0.2}
    assert config["data"]["aligner"]["class_path"] == "wsflow.alignment.WeightMatching"


def test_a_run_leaves_its_config_logs_and_times(trained):
    run = trained.parent.parent
    config = yaml.safe_load((run / "fit.yaml").read_text())
    assert config["model"]["field"]["init_args"]["width"] == 8
    assert {path.name for path in trained.parent.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert list(run.glob("logs/csv/version_0/metrics.csv"))
    assert list(run.glob("logs/tensorboard/version_0/events*"))
    assert json.loads((run / "timing.json").read_text())["fit"] > 0


def test_a_saved_config_gives_the_same_training(trained, tmp_path):
    run = trained.parent.parent
    assert main(["fit", "-c", str(run / "fit.yaml"), "--trainer.default_root_dir", str(tmp_path)]) == 0
    first, second = (torch.load(p, weights_only=True) for p in (trained, tmp_path / "checkpoints" / "last.ckpt"))
    assert first["hyper_parameters"] == second["hyper_parameters"]
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_the_seed_decides(command, trained, tmp_path):
    assert main(command("fit", "--seed_everything=1")) == 0
    first, second = (
        torch.load(p, weights_only=True) for p in (trained, tmp_path / "run" / "checkpoints" / "last.ckpt")
    )
    assert (first["hyper_parameters"]["seed"], second["hyper_parameters"]["seed"]) == (0, 1)
    assert any(not torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages_take_the_model_from_the_checkpoint(stage, command, trained, tmp_path, capsys):
    # The config asks for another field; the checkpoint's own counts.
    assert main(command(stage, "--ckpt_path", str(trained), "--model.field.width=16", "--model.prior.std=0.5")) == 0
    assert ("val" if stage == "validate" else "test") + "/flow_loss" in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "run" / f"{stage}.yaml").read_text())
    assert saved["model"]["field"]["init_args"]["width"] == 8
    assert not (tmp_path / "run" / "fit.yaml").exists()


def test_fit_goes_on_from_last(command, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(command("fit", "--trainer.max_epochs=1")) == 0
    before = torch.load(last, weights_only=True)["global_step"]
    assert main(command("fit", "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert (before, torch.load(last, weights_only=True)["global_step"]) == (4, 8)


def test_a_dry_run_leaves_no_checkpoint(command, tmp_path):
    assert main(command("fit", "--trainer.fast_dev_run=true")) == 0
    assert not list(tmp_path.rglob("*.ckpt"))


def test_predict_follows_its_options(trained, tmp_path):
    out = str(tmp_path / "samples")
    options = ["--n=5", "--seed=3", "--steps=4", "--solver=Heun", "--noise=0.2", "--batch_size=2", "--accelerator=cpu"]
    assert main(["predict", "--ckpt_path", str(trained), *options, "--out", out]) == 0
    zoo, flow = Zoo.open(out), wsflow.load(trained)
    expected = flow.sample(5, seed=3, sampler=Sampler(Heun(), steps=4, noise=0.2))
    torch.testing.assert_close(zoo.theta, expected, rtol=1e-5, atol=1e-5)
    assert zoo.manifest["sampling"]["steps"] == 4
    assert zoo.manifest["sampling"]["solver"]["class_path"] == "wsflow.flow.solver.Heun"


def test_predict_keeps_to_a_memory_limit(trained, tmp_path, capsys, error_of):
    predict = ["predict", "--ckpt_path", str(trained), "--n=40", "--steps=2", "--accelerator=cpu"]
    assert main([*predict, "--memory=8MiB", "--out", str(tmp_path / "samples")]) == 0
    told = re.search(
        r"^(\d+) networks at once \(estimated (\S+) GiB of the limit 0.00781 GiB\)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert told
    assert 1 <= int(told[1]) <= 40
    assert 0 < float(told[2]) <= 0.00781
    refused = [*predict, "--out", str(tmp_path / "none")]
    assert "one network takes about" in error_of([*refused, "--memory=1kB"])
    assert "exclude each other" in error_of([*refused, "--memory=1GiB", "--batch_size=4"])


def test_a_flow_of_given_starts_takes_only_unseen_ones(command, zoos, trained, tmp_path, error_of):
    assert main(command("fit", "--model.prior=StartsPrior", "--trainer.max_epochs=1")) == 0
    checkpoint, out = str(tmp_path / "run" / "checkpoints" / "last.ckpt"), str(tmp_path / "samples")
    predict = ["predict", "--ckpt_path", checkpoint, "--n=4", "--steps=2", "--accelerator=cpu", "--out", out]
    assert "give a zoo of other runs by --starts" in error_of(predict)
    assert "32 of 40 runs" in error_of([*predict, "--starts", str(zoos / "breast_cancer")])
    other = str(tmp_path / "other")
    collect = ["--data.path", other, "--data.collector.seed=1", "--data.collector.runs=5", "--quiet"]
    assert main(command("collect", *collect)) == 0
    assert main([*predict, "--starts", other]) == 0
    prior, flow = StartsPrior(Zoo.open(other).start), wsflow.load(checkpoint)
    expected = flow.sample(4, sampler=Sampler(steps=2), prior=prior)
    torch.testing.assert_close(Zoo.open(out).theta, expected, rtol=1e-5, atol=1e-5)
    evaluate = ["evaluate", "--ckpt_path", checkpoint, "--n=4", "--steps=2", "--baselines=false"]
    assert "by --starts" in error_of(evaluate)
    assert main([*evaluate, "--starts", other]) == 0
    assert "do not fit a flow whose prior is" in error_of(
        ["predict", "--ckpt_path", str(trained), "--starts", other, "--out", str(tmp_path / "none")]
    )


@pytest.mark.parametrize("source", ["samples", "ckpt_path", "zoo"])
def test_evaluate(source, trained, zoos, tmp_path, capsys):
    report = tmp_path / "report.json"
    if source == "samples":
        out = str(tmp_path / "run" / "samples")
        assert main(["predict", "--ckpt_path", str(trained), "--n=6", "--steps=2", "--out", out]) == 0
        arguments = ["--samples", out, "--split=test"]
    elif source == "ckpt_path":
        arguments = ["--ckpt_path", str(trained), "--steps=2", "--baselines=false"]
    else:
        arguments = [
            "--samples",
            str(zoos / "breast_cancer"),
            "--zoo",
            str(zoos / "breast_cancer"),
            "--baselines=false",
        ]
    assert main(["evaluate", *arguments, "--n=6", "--out", str(report), "--figures", str(tmp_path / "figures")]) == 0
    values = json.loads(report.read_text())
    scores = {"accuracy", "loss", "ensemble_nll", "nn_ratio.function", "nn_ratio.weight", "z_u", "dispersion"}
    assert {f"samples.{score}" for score in scores} <= set(values)
    assert {"heldout.accuracy", "heldout.loss", "heldout.ensemble_nll", "timing.evaluate"} <= set(values)
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"accuracy.png", "principal_components.png"}
    assert "held-out" in capsys.readouterr().out
    names = {key.split(".")[1] for key in values if key.startswith("baselines.")}
    rivals = {"gaussian", "noise", "average", "displacement", "equal_cost", "retrieval"}
    assert names == (rivals if source == "samples" else set())
    if source == "zoo":
        assert values["samples.nn_ratio.function"] < 0.5  # copies of training networks
    if source == "ckpt_path":
        assert values["timing.fit"] > 0


def test_collect_shares_and_estimates(command, tmp_path, capsys):
    arguments = command("collect", "--data.path", str(tmp_path / "zoo"), "--data.collector.shard_runs=20", "--quiet")
    assert main([*arguments, "--dry-run"]) == 0
    assert "40 runs of breast_cancer" in capsys.readouterr().out
    assert not (tmp_path / "zoo").exists()
    assert main([*arguments, "--shard=1/2"]) == 0
    assert "other shards are missing" in capsys.readouterr().out
    assert main([*arguments, "--shard=0/2"]) == 0
    assert "complete" in capsys.readouterr().out
    assert len(Zoo.open(tmp_path / "zoo").run_ids) == 40


def test_zoo_commands(trained, zoos, tmp_path, capsys):
    zoo = str(zoos / "breast_cancer")
    assert main(["zoo", "info", zoo]) == 0
    assert "D = 802" in capsys.readouterr().out
    assert main(["zoo", "verify", zoo]) == 0
    halves = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["zoo", "subset", zoo, "--output", halves[0], "--runs=10"]) == 0
    assert main(["zoo", "subset", zoo, "--output", halves[1], "--runs=5", "--skip=10"]) == 0
    assert main(["zoo", "merge", *halves, "--output", str(tmp_path / "c")]) == 0
    assert len(Zoo.open(tmp_path / "c").run_ids) == 15


def test_a_task_of_a_users_own(command, package, tmp_path):
    (package / "clustering_plugin.py").write_text(PLUGIN)
    options = ["--data.task=clustering_plugin.Clusters", "--data.task.hidden=6", "--data.path", str(tmp_path / "zoo")]
    assert main(command("fit", *options, "--trainer.max_epochs=1")) == 0
    checkpoint, samples = str(tmp_path / "run" / "checkpoints" / "last.ckpt"), str(tmp_path / "run" / "samples")
    assert main(["predict", "--ckpt_path", checkpoint, "--n=4", "--steps=2"]) == 0
    assert main(["evaluate", "--samples", samples, "--baselines=false"]) == 0
    assert main(["zoo", "verify", samples]) == 0
    sys.modules.pop("clustering_plugin")
    network = wsflow.load(checkpoint).weight_space.to_module(Zoo.open(samples).theta[0])
    assert network(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(("words", "value"), [([], True), (["true"], True), (["false"], False)])
def test_switches_take_the_values_that_their_help_names(words, value, monkeypatch):
    given = {}

    def predict(condition: list[str] | None = None, ckpt_path: str = "", overwrite: bool = False) -> None:
        given.update(ckpt_path=ckpt_path, overwrite=overwrite)

    monkeypatch.setattr("wsflow.commands.predict", predict)
    assert main(["predict", "--overwrite", *words, "--ckpt_path", "some.ckpt"]) == 0
    assert given == {"ckpt_path": "some.ckpt", "overwrite": value}


def test_a_split_needs_three_fractions(command, error_of):
    assert "fractions must be three, of train, validation and test runs; got [0.6, 0.4]" in error_of(
        command("fit", "--data.fractions=[0.6,0.4]")
    )
