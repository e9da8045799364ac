"""Each training option from a config: it trains, resumes exactly, and its checkpoint needs no data."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import wsflow
from wsflow.cli import main
from wsflow.commands.run import read_timing
from wsflow.fields import SelfConditioned
from wsflow.flow import Sampler, SnapshotPath
from wsflow.losses import Fisher, FunctionalTerm, PerTensor

FIELD = "{class_path: RelationalTransformer, init_args: {width: 8, edge_width: 4, depth: 1, heads: 2}}"
OPTIONS = {
    "functional": ("functional: {class_path: FunctionalTerm, init_args: {weight: 0.1, batch_size: 16}}", ""),
    "rollouts": (
        "functional: {class_path: RolloutTerm, init_args: {batch_size: 16, steps: 3, grid: {class_path: PowerGrid}}}",
        "",
    ),
    "per-tensor": ("weighting: PerTensor", ""),
    "fisher": ("weighting: {class_path: Fisher, init_args: {networks: 4, points: 4}}", ""),
    "self-conditioned": (f"field: {{class_path: SelfConditioned, init_args: {{field: {FIELD}}}}}", ""),
    "snapshots": ("path: SnapshotPath", "data: {snapshots: true}"),
}
KINDS = {
    "functional": lambda module: isinstance(module.functional, FunctionalTerm) and module.functional.batch_size == 16,
    "rollouts": lambda module: module.functional.late == pytest.approx([8 / 27]),
    "per-tensor": lambda module: isinstance(module.weighting, PerTensor),
    "fisher": lambda module: isinstance(module.weighting, Fisher),
    "self-conditioned": lambda module: (
        isinstance(module.field, SelfConditioned) and len(module.field.field.layers) == 1
    ),
    "snapshots": lambda module: isinstance(module.path, SnapshotPath),
}
LOGGED = {"functional": "train/functional_loss", "rollouts": "train/functional_loss"}
LOGGED |= {"per-tensor": "train/weighted_loss", "fisher": "train/weighted_loss"}
ZOO = """
data:
  collector:
    init_args:
      epochs: 1
      snapshots: {class_path: EverySnapshot, init_args: {interval: 3}}
trainer:
  callbacks:
    - class_path: EMA
      init_args: {decay: 0.9}
    - class_path: ModelCheckpoint
      init_args: {filename: "{epoch}", save_top_k: -1, auto_insert_metric_name: false, enable_version_counter: false}
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a zoo with snapshots on the way is collected, once."""
    return tmp_path_factory.mktemp("snapshots") / "zoo"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_trains_and_resumes_exactly(option, command, zoo, tmp_path):
    overlay, (model, data) = tmp_path / "option.yaml", OPTIONS[option]
    overlay.write_text(f"model:\n  {model}\n{data}\n")
    (tmp_path / "zoo.yaml").write_text(ZOO)
    extra = ("-c", str(tmp_path / "zoo.yaml"), "-c", str(overlay), "--data.path", str(zoo))
    run = command("fit", *extra)
    assert main(run) == 0
    first, whole = (tmp_path / "run" / "checkpoints" / f"{epoch}.ckpt" for epoch in (0, 1))

    place = ["--trainer.default_root_dir", str(tmp_path / "resumed")]
    assert main([*run, *place, "--ckpt_path", str(first)]) == 0
    resumed = tmp_path / "resumed" / "checkpoints" / "1.ckpt"
    states = [torch.load(path, weights_only=True) for path in (whole, resumed)]
    assert states[0]["global_step"] == states[1]["global_step"] == 8
    for part in ("state_dict", "ema_weights"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name

    module = wsflow.load(whole).module
    assert KINDS[option](module)
    assert module.sample(range(2), sampler=Sampler(steps=2)).isfinite().all()
    (metrics,) = (tmp_path / "run" / "logs").glob("csv/*/metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row.get(LOGGED.get(option, "train/flow_loss"))]) == 8


def test_a_functional_term_without_data_is_one_line(command, error_of, tmp_path):
    overlay = tmp_path / "option.yaml"
    overlay.write_text(f"model:\n  {OPTIONS['functional'][0]}\n")
    assert "FunctionalTerm needs the train data of the base task" in error_of(
        command("fit", "-c", str(overlay), config="gaussians")
    )


def test_snapshots_that_a_zoo_lacks_are_one_line(command, error_of):
    missing = error_of(command("fit", "--data.snapshots", "true"))
    assert "such as those collected with EverySnapshot" in missing
    assert "set snapshots: true" in error_of(command("fit", "--model.path", "SnapshotPath"))


@pytest.mark.parametrize("resumed", [[], ["--ckpt_path", "last"]], ids=["anew", "nothing to go on with"])
def test_a_training_begins_with_the_weights_of_a_checkpoint(command, trained, tmp_path, error_of, resumed):
    still = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0"]
    run = command("fit", "--weights", str(trained), *still, *resumed)
    assert main(run) == 0
    before, after = (torch.load(path, weights_only=True) for path in (trained, tmp_path / "run/checkpoints/last.ckpt"))
    for name, value in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], value), name
    assert after["global_step"] == 8  # it counts its own steps
    again = tmp_path / "again"
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    assert main([*run, "--weights", last, "--trainer.default_root_dir", str(again)]) == 0
    first, second, third = (read_timing(folder) for folder in (trained.parents[1], tmp_path / "run", again))
    assert third["fit_before"] == pytest.approx(first["fit"] + second["fit"])

    other = command("fit", "--weights", str(trained), "--trainer.default_root_dir", str(tmp_path / "other"))
    assert "do not fit this model's field" in error_of([*other, "--model.field.init_args.width", "16"])
    assert "there is no checkpoint at gone.ckpt" in error_of([*other, "--weights", "gone.ckpt"])
    seen = error_of([*other, "--data.split_seed=5"])
    assert "had data.split_seed 0, and this one has 5" in seen
    digits = command("fit", "--weights", str(trained), config="digits")
    assert "another weight space" in error_of([*digits, "--trainer.default_root_dir", str(tmp_path / "other")])
    assert not list(tmp_path.glob("other/checkpoints/*"))


def test_weights_trained_by_another_loss_are_taken_without_those_of_the_loss(command, trained, tmp_path):
    fisher = "{class_path: Fisher, init_args: {networks: 4, points: 4}}"

    def fit(name: str, weights: Path, *extra: str) -> Path:
        place = ["--trainer.default_root_dir", str(tmp_path / name), "--weights", str(weights)]
        assert main([*command("fit", *place), "--trainer.max_epochs", "1", *extra]) == 0
        return tmp_path / name / "checkpoints" / "last.ckpt"

    still = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0"]
    same = fit("same", trained, "--model.weighting", "PerTensor", *still)
    for name, loss in {"plain": [], "fisher": ["--model.weighting", fisher]}.items():
        one, other = (torch.load(fit(f"{name}_{w.parts[-3]}", w, *loss), weights_only=True) for w in (trained, same))
        for key, value in one["state_dict"].items():
            assert torch.equal(other["state_dict"][key], value), key


def test_a_resumed_training_goes_on_with_its_own_weights(command, trained, tmp_path):
    first = command("fit", "--trainer.max_epochs", "1")
    assert main(first) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    assert main([*first, "--weights", str(trained), "--ckpt_path", "last"]) == 0  # no epoch is left
    after = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_training_that_kept_no_last_checkpoint_is_not_begun_anew(command, trained, tmp_path, error_of):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(trained.read_bytes())
    assert "has best.ckpt and no last checkpoint" in error_of(command("fit", "--ckpt_path", "last"))
    assert (folder / "best.ckpt").read_bytes() == trained.read_bytes()
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]


@pytest.mark.filterwarnings("ignore:the training goes on with other settings")
@pytest.mark.parametrize("how", ["--weights", "--ckpt_path"])
def test_an_informed_field_is_shown_what_its_own_settings_say(command, tmp_path, how):
    """Data and filters are those of the training, not of the checkpoint that it begins or goes on with."""

    def informed(epochs, points, damping, *extra):
        field = "{class_path: NeuronTransformer, init_args: {width: 8, depth: 1, heads: 2}}"
        settings = f"{{points: {points}, damping: [{damping}], field: {field}}}"
        overlay = tmp_path / "informed.yaml"
        overlay.write_text(f"model:\n  field: {{class_path: GradientInformed, init_args: {settings}}}\n")
        place = ["--trainer.default_root_dir", str(tmp_path / str(points))]
        assert main(command("fit", "-c", str(overlay), "--trainer.max_epochs", epochs, *place, *extra)) == 0
        last = tmp_path / str(points) / "checkpoints" / "last.ckpt"
        return last, torch.load(last, weights_only=True)["state_dict"]

    path, before = informed("1", 16, 0.1)
    _, after = informed("2", 24, 0.5, how, str(path))
    _, alone = informed("1", 25, 0.5)
    assert torch.equal(after["field.inputs"], alone["field.inputs"][:24])
    assert torch.equal(after["field.targets"], alone["field.targets"][:24])
    assert torch.equal(after["field.filters"], alone["field.filters"])
    assert not torch.equal(after["field.filters"], before["field.filters"])
    assert torch.equal(after["field.vector_scale"], before["field.vector_scale"])
