"""Every shipped config trains and samples."""

from __future__ import annotations

import json
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest

import wsflow
from wsflow.cli import main
from wsflow.commands.experiment_file import Case, cases
from wsflow.fields import PNAField
from wsflow.zoo import Zoo

CONFIGS = Path(__file__).parents[2] / "configs"

CASES = {
    "breast_cancer": ("breast_cancer", ()),
    "demo": ("demo", ()),
    "gaussians": ("gaussians", ()),
    "digits": ("digits", ()),
    "mnist": ("mnist", ()),
    "fashion_cnn": ("fashion_cnn", ()),
    "resnet18_head": ("resnet18_head", ()),
    "euclidean-trajectory": ("breast_cancer", ("geometry/euclidean", "coupling/trajectory")),
    "normalized-independent": ("breast_cancer", ("geometry/normalized", "coupling/independent")),
    "geometric-ot": ("breast_cancer", ("geometry/geometric", "coupling/ot")),
    "geometric-aligned_ot": ("digits", ("geometry/geometric", "coupling/aligned_ot")),
    "euclidean-pna": ("breast_cancer", ("geometry/euclidean", "field/pna")),
    "geometric-informed": ("breast_cancer", ("geometry/geometric", "field/informed_small", "loss/functional")),
}

SLOW = {"resnet18_head": pytest.mark.slow}  # it builds a ResNet-18 in each of its commands

LATENT = "geometry/latent"
"""An overlay that names the one field that takes its geometry: it comes last, in a test of its own."""


def test_no_config_is_left_out() -> None:
    """Each is trained with here or, as those that experiments name, parsed in test_experiment.py.

    Guidance, conditions and comparisons have tests of their own.
    """
    experiments = sorted((CONFIGS / "experiments").glob("*.yaml"))
    named = {path.resolve() for file in experiments for case in cases(file) for path in all_configs(case)}
    shipped = {path.resolve() for path in CONFIGS.rglob("*.yaml")} - {file.resolve() for file in experiments}
    for folder in ("guidance", "condition", "baselines"):
        shipped -= {path.resolve() for path in (CONFIGS / folder).glob("*.yaml")}
    tested = {name for name, _ in CASES.values()} | set(chain(*(overlays for _, overlays in CASES.values()))) | {LATENT}
    assert shipped == named | {(CONFIGS / f"{name}.yaml").resolve() for name in tested}


def all_configs(case: Case) -> list[Path]:
    return [*case.configs, *case.transfer_configs]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A few random images in MNIST's own format."""
    rng = np.random.default_rng(0)
    for name, (part, count) in product(("MNIST", "FashionMNIST"), {"train": 60, "t10k": 20}.items()):
        raw = tmp_path / "data" / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in {"images-idx3": pixels, "labels-idx1": labels}.items():
            header = np.array([2048 + array.ndim, *array.shape], dtype=">i4")
            (raw / f"{part}-{kind}-ubyte").write_bytes(header.tobytes() + array.tobytes())
    monkeypatch.setattr("wsflow.tasks.mnist.VALIDATION", 20)
    monkeypatch.setenv("WSFLOW_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW.get(case, ())) for case in CASES])
def test_a_config_trains_and_samples(case, command, tmp_path, images):
    config, overlays = CASES[case]
    fit = command("fit", "--trainer.max_epochs", "1", "--data.batch_size", "4", config=config, overlays=overlays)
    assert main([*fit, "--trainer.limit_train_batches", "2"]) == 0
    checkpoint, samples = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "samples"
    assert main(["predict", "--ckpt_path", str(checkpoint), "--n", "3", "--steps", "2", "--out", str(samples)]) == 0
    zoo, flow = Zoo.open(samples), wsflow.load(checkpoint)
    assert zoo.kind == "samples"
    assert zoo.theta.shape == (3, flow.weight_space.dim)
    assert flow.module.calibrated
    if overlays:
        assert type(flow.module.geometry).__name__.lower() == overlays[0].rpartition("/")[2]


def test_the_field_of_an_overlay_takes_the_place_of_the_configs_own(command, tmp_path):
    """The overlay comes last here: what makes configs small names a field, too."""
    fit = command("fit", "-c", str(CONFIGS / "field" / "pna.yaml"), "--trainer.max_epochs", "1")
    small = ["--model.field.init_args.width", "8", "--model.field.init_args.depth", "1"]
    assert main([*fit, *small, "--data.batch_size", "4", "--trainer.limit_train_batches", "2"]) == 0
    field = wsflow.load(tmp_path / "run" / "checkpoints" / "last.ckpt").module.field
    assert isinstance(field, PNAField)
    assert field.norm.normalized_shape == (8,)


def test_a_flow_in_a_latent_space_is_evaluated_beside_its_gaussian_null(command, tmp_path):
    fit = command("fit", "-c", str(CONFIGS / f"{LATENT}.yaml"), "--trainer.max_epochs", "1", "--data.batch_size", "4")
    assert main([*fit, "--model.field.init_args.width", "8", "--trainer.limit_train_batches", "2"]) == 0
    checkpoint, samples = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "samples"
    flow = wsflow.load(checkpoint)
    assert flow.module.geometry.dim == 62
    assert main(["predict", "--ckpt_path", str(checkpoint), "--n", "4", "--steps", "2", "--out", str(samples)]) == 0
    reports = [tmp_path / "stored.json", tmp_path / "drawn.json"]
    sources = [["--samples", str(samples)], ["--ckpt_path", str(checkpoint), "--steps", "2"]]
    for source, out in zip(sources, reports, strict=True):
        assert main(["evaluate", *source, "--n", "4", "--out", str(out), "--baselines", "false"]) == 0
    stored, drawn = (json.loads(report.read_text()) for report in reports)
    assert "baselines.latent_gaussian.accuracy" in stored
    assert stored["baselines.latent_gaussian.loss"] == pytest.approx(drawn["baselines.latent_gaussian.loss"], rel=1e-4)


NETWORK = """
model:
  field:
    class_path: MessagePassingField
    init_args:
      width: 8
      edge_width: 4
      network:
        class_path: torch_geometric.nn.GAT
        init_args: {hidden_channels: 8, num_layers: 2}
        dict_kwargs: {edge_dim: 4}
"""


def test_a_network_of_torch_geometric_is_a_field_by_its_name(command, tmp_path):
    overlay = tmp_path / "gat.yaml"
    overlay.write_text(NETWORK)
    fit = command("fit", "-c", str(overlay), "--trainer.max_epochs", "1", "--data.batch_size", "4")
    assert main([*fit, "--trainer.limit_train_batches", "2"]) == 0
    flow = wsflow.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert type(flow.module.field.network.network).__name__ == "GAT"
    assert flow.sample(2).shape == (2, flow.weight_space.dim)
