"""A flow that is told each network's loss: trained, asked, and asked for too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import wsflow
from wsflow.cli import main
from wsflow.fields import Range, Request
from wsflow.flow import RK4, Sampler, sample_prior
from wsflow.report import Case
from wsflow.report.networks import MOVED, PATHS, Networks, _projected, paths
from wsflow.zoo import Zoo

CONFIGS = Path(__file__).parents[2] / "configs"

SMALL = """
trainer: {accelerator: cpu, max_epochs: 10, limit_val_batches: 1, enable_progress_bar: false, logger: false}
model:
  field: {class_path: NeuronTransformer, init_args: {width: 16, depth: 1, heads: 2}}
data:
  batch_size: 16
  collector: {runs: 32, epochs: 20, snapshots: {class_path: wsflow.zoo.EverySnapshot, init_args: {interval: 20}}}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a flow that was told train losses."""
    run = tmp_path_factory.mktemp("told")
    (run / "small.yaml").write_text(SMALL)
    files = (CONFIGS / "demo.yaml", CONFIGS / "condition" / "loss.yaml", run / "small.yaml")
    configs = [part for path in files for part in ("-c", str(path))]
    place = ["--trainer.default_root_dir", str(run), "--data.path", str(run / "zoo")]
    assert main(["fit", *configs, *place]) == 0
    return run / "checkpoints" / "last.ckpt"


def predict(checkpoint: Path, out: Path, *extra: str) -> int:
    common = ["--n", "40", "--steps", "8", "--accelerator", "cpu", "--overwrite"]
    return main(["predict", "--ckpt_path", str(checkpoint), "--out", str(out), *common, *extra])


def test_requests_are_answered_and_recorded(told, tmp_path):
    flow, loss = wsflow.load(told), {}
    for asked in ("0.1", "0.5"):
        assert predict(told, tmp_path / "s", "--condition", f"loss={asked}") == 0
        zoo = Zoo.open(tmp_path / "s")
        loss[asked] = flow.task.evaluate(zoo.theta.clone(), "train")["loss"].median()
        assert zoo.manifest["sampling"]["condition"] == [f"loss={asked}"]
    assert loss["0.1"] < 0.8 * loss["0.5"]
    low, high = (float(getattr(flow.module.conditioning, name)) for name in ("low", "high"))
    assert 0 < low < high


def test_the_command_and_python_give_the_same_networks(told, tmp_path, capsys):
    assert predict(told, tmp_path / "s", "--condition", "loss=0.1:0.5", "--condition_weight", "1.5") == 0
    assert "(16 evaluations of the field)" in capsys.readouterr().out
    flow, sampler = wsflow.load(told), Sampler(steps=4)
    flow.sample(2, sampler=sampler, request=Request({"loss": 0.2}, weight=1.5))
    assert sampler.evaluations == 8
    request = Request({"loss": Range(0.1, 0.5)}, weight=1.5)
    theta = wsflow.load(told).sample(40, sampler=Sampler(steps=8), request=request, batch_size=7)
    torch.testing.assert_close(Zoo.open(tmp_path / "s").theta, theta, rtol=1e-3, atol=1e-4)


def test_a_report_draws_the_paths_of_what_was_asked_for(told):
    flow = wsflow.load(told)
    few = torch.randn(3, flow.weight_space.dim)
    known = Networks(flow.task, "val", few, few, few)
    drawn, last = [], []
    for words in ([], ["loss=0.1:0.5"]):
        sampling = {"steps": 4, "seed": 3, **({"condition": words, "condition_weight": 1.5} if words else {})}
        drawn.append(torch.from_numpy(paths(Case("", {}, None, {"sampling": sampling}), flow, known).states[-1]))
        request = Request({"loss": Range(0.1, 0.5)}, 1.5) if words else None
        last.append(flow.sample(PATHS + MOVED, 3, Sampler(steps=4), request=request).double())
    starts = sample_prior(flow.module.prior, flow.module.geometry, 3, range(PATHS + MOVED)).double()
    for states, end in zip(drawn, last, strict=True):
        expected = torch.from_numpy(_projected(torch.stack([starts, end]), starts, starts).states[-1])
        torch.testing.assert_close(states.abs(), expected.abs(), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(drawn[0].abs(), drawn[1].abs(), rtol=1e-2, atol=1e-2)


def test_without_a_request_the_flow_is_unconditional(told, tmp_path):
    assert predict(told, tmp_path / "s") == 0
    free = wsflow.load(told).sample(40, sampler=Sampler(steps=8), request=Request({"loss": [0.2]}, weight=0.0))
    torch.testing.assert_close(Zoo.open(tmp_path / "s").theta, free, rtol=1e-3, atol=1e-4)


def test_densities_are_those_of_what_is_asked_for(told, tmp_path, error_of):
    assert predict(told, tmp_path / "s", "--condition", "loss=0.2") == 0
    common = ["likelihood", "--ckpt_path", str(told), "--samples", str(tmp_path / "s"), "--n=3", "--steps=2"]
    found, theta = {}, Zoo.open(tmp_path / "s").theta[:3]
    for value in (None, 0.1, 0.5):
        out, asked = tmp_path / f"{value}.json", ["--condition", f"loss={value}"] if value else []
        assert main([*common, *asked, "--out", str(out)]) == 0
        found[value] = json.loads(out.read_text())
        request = Request({"loss": [value]}) if value else None
        expected = wsflow.load(told).log_prob(theta, sampler=Sampler(RK4(), 2), request=request)
        torch.testing.assert_close(torch.tensor(found[value]["log_density"]), expected.value, rtol=1e-4, atol=1e-2)
        assert found[value]["origin"].get("condition") == (asked[1:] or None)
    means = [result["mean"] for result in found.values()]
    assert len({round(mean, 1) for mean in means}) == 3
    assert "knows no label epoch" in error_of([*common, "--condition", "epoch=3"])


def test_samples_of_a_flow_with_labels_are_evaluated(told, tmp_path):
    assert predict(told, tmp_path / "s", "--condition", "loss=0.2") == 0
    arguments = ["evaluate", "--samples", str(tmp_path / "s"), "--n", "10", "--baselines", "false"]
    assert main([*arguments, "--out", str(tmp_path / "report.json")]) == 0
    assert "samples.loss" in json.loads((tmp_path / "report.json").read_text())


def test_mistakes_are_one_line_and_guesses_are_warned_of(told, trained, tmp_path, error_of):
    common = ["predict", "--ckpt_path", str(told), "--n", "2", "--out", str(tmp_path / "x"), "--condition"]
    assert "knows no label accuracy; its labels are loss" in error_of([*common, "accuracy=0.9"])
    assert "give name=value" in error_of([*common, "loss"])
    assert "give name=value" in error_of([*common, "loss=0.5:0.1"])
    assert "positive ones for a logarithm" in error_of([*common, "loss=-1"])
    assert "give finite numbers" in error_of([*common, "loss=0.2,nan"])
    assert "weighs nothing without --condition" in error_of([*common[:-1], "--condition_weight", "2"])
    other = ["predict", "--ckpt_path", str(trained), "--out", str(tmp_path / "x"), "--condition", "loss=0.1"]
    assert "trained without labels" in error_of(other)
    with pytest.warns(UserWarning, match=r"loss=50 is outside of what the flow was trained on"):
        assert predict(told, tmp_path / "y", "--condition", "loss=50") == 0
    with pytest.warns(UserWarning, match=r"loss=50 is outside of what the flow was trained on"):
        wsflow.load(told).sample(1, request=Request({"loss": 50.0}))
