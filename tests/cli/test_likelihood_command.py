"""``wsflow likelihood``, and noise and grids of ``wsflow predict``, on a flow trained for the test."""

from __future__ import annotations

import json

import pytest
import torch

import wsflow
from wsflow.cli import main
from wsflow.flow import AddedNoise, CosineGrid, Heun, Sampler
from wsflow.zoo import Zoo


def test_runs_of_a_split(trained, zoos, tmp_path, capsys):
    out = tmp_path / "likelihood.json"
    options = ["--split=test", "--n=3", "--steps=2", "--solver=Heun", "--trace=Hutchinson", "--trace.count=5"]
    assert main(["likelihood", "--ckpt_path", str(trained), *options, "--out", str(out)]) == 0
    told, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "3 networks of test runs" in told
    assert "measure: volume of flat weight space of 802 dimensions" in told
    assert "4 evaluations of the field" in told
    assert result["evaluations"] == 4
    assert len(result["log_density"]) == len(result["standard_error"]) == 3
    assert min(result["standard_error"]) > 0
    assert result["mean"] == pytest.approx(sum(result["log_density"]) / 3)
    assert result["origin"]["trace"]["init_args"]["count"] == 5


def test_generated_networks_as_in_python(trained, tmp_path):
    samples, out = tmp_path / "samples", tmp_path / "likelihood.json"
    predict = ["predict", "--ckpt_path", str(trained), "--n=2", "--steps=2", "--accelerator=cpu"]
    assert main([*predict, "--out", str(samples)]) == 0
    options = ["--samples", str(samples), "--steps=1", "--solver=Heun", "--grid=CosineGrid"]
    assert main(["likelihood", "--ckpt_path", str(trained), *options, "--out", str(out)]) == 0
    sampler = Sampler(Heun(), 1, grid=CosineGrid())
    expected = wsflow.load(trained).log_prob(Zoo.open(samples).theta, sampler=sampler)
    torch.testing.assert_close(torch.tensor(json.loads(out.read_text())["log_density"]), expected.value)


def test_on_spheres(command, tmp_path, capsys):
    overlays = ("geometry/geometric", "coupling/independent")
    options = ["--model.prior=ProjectedNormal", "--model.prior.std=0.5", "--model.prior.scale=2", "--data.aligner=null"]
    assert main(command("fit", *options, "--trainer.max_epochs=1", overlays=overlays)) == 0
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert main(["likelihood", "--ckpt_path", checkpoint, "--n=2", "--steps=2", "--solver=Heun"]) == 0
    assert "33 spheres and 35 lines, 770 dimensions" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "likelihood.json").read_text())["measure"].startswith("volume of the canon")


def test_mistakes_end_in_one_line(trained, error_of):
    likelihood = ["likelihood", "--ckpt_path", str(trained)]
    assert "n must be at least 1" in error_of([*likelihood, "--n=0"])
    message = error_of([*likelihood, "--samples=somewhere", "--split=test", "--split_seed=1"])
    assert "--split, --split_seed chooses networks of a zoo, and --samples gives them" in message
    assert "DormandPrince chooses its own steps: leave CosineGrid out" in error_of(
        [*likelihood, "--solver=DormandPrince", "--grid=CosineGrid"]
    )
    assert "a delta of 0.05 changes nothing for Velocity fields" in error_of([*likelihood, "--n=2", "--delta=0.05"])


def test_predict_takes_noise_and_grids_as_classes(trained, tmp_path, error_of):
    predict = ["predict", "--ckpt_path", str(trained), "--n=3", "--steps=4", "--accelerator=cpu"]
    options = ["--noise=AddedNoise", "--noise.std=0.1", "--noise.end=0.5", "--grid=CosineGrid"]
    assert main([*predict, *options, "--out", str(tmp_path / "a")]) == 0
    zoo = Zoo.open(tmp_path / "a")
    sampler = Sampler(steps=4, noise=AddedNoise(0.1, 0.0, 0.5), grid=CosineGrid())
    torch.testing.assert_close(zoo.theta, wsflow.load(trained).sample(3, sampler=sampler), rtol=1e-5, atol=1e-5)
    assert zoo.manifest["sampling"]["noise"]["init_args"] == {"std": 0.1, "start": 0.0, "end": 0.5}
    assert "churn needs the score" in error_of([*predict, "--noise=Churn", "--out", str(tmp_path / "b")])
    assert main([*predict, "--solver=DormandPrince", "--solver.rtol=0.1", "--out", str(tmp_path / "c")]) == 0
