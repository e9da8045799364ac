"""The scripts in ``benchmarks/`` still run, and compare like with like."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import describe
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from wsflow.fields import MLPField, RelationalTransformer
from wsflow.flow import GaussianPrior
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import WeightSpace, ZooBatch, mlp

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
)


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_the_dense_layout_is_the_same_field() -> None:
    from dense import DenseRelationalTransformer

    space = WeightSpace.from_module(mlp([6, 5, 4, 2]))
    sizes = {"width": 12, "edge_width": 6, "depth": 2, "heads": 3}
    dense, field = DenseRelationalTransformer(space, **sizes), RelationalTransformer(space, **sizes)
    for p in dense.parameters():
        torch.nn.init.normal_(p, std=0.3)
    field.load_state_dict(dense.state_dict())
    x, t = torch.randn(3, space.dim), torch.rand(3)
    out = field(x, t)
    assert out.std() > 0.1
    torch.testing.assert_close(dense(x, t), out, rtol=1e-4, atol=1e-4)


def test_every_case_of_the_training_step_is_known_to_the_script_that_measures_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import one_case
    import train_step

    monkeypatch.setattr(one_case, "SIZES", {"width": 8, "edge_width": 4, "depth": 1, "heads": 2})
    for options in {case.options for case in train_step.CASES}:
        arguments = ["one_case.py", "--widths", "5", "4", "2", "--batch", "2", *options, "--repeats", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        one_case.main()
        numbers = json.loads(capsys.readouterr().out)
        assert numbers["seconds"] > 0
        assert 0.01 < numbers["imports_gigabytes"] <= numbers["peak_gigabytes"]


def test_the_gaussian_task_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gaussians

    field, adam = partial(MLPField, width=8, depth=1), partial(torch.optim.Adam, lr=1e-9)
    module = FlowMatchingModule(describe([5, 4, 2]), field=field, prior=GaussianPrior(1.0), optimizer=adam)
    networks = ZooBatch(torch.ones(2, module.space.dim), None, torch.arange(2))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path, filename="flow", enable_version_counter=False)],
    )
    loader = DataLoader([0], collate_fn=lambda _: networks)
    trainer.fit(module, loader, loader)
    arguments = [str(tmp_path / "flow.ckpt"), "--n", "50", "--steps", "4", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["gaussians.py", *arguments])
    gaussians.main()
    results = json.loads((tmp_path / "out" / "gaussians.json").read_text())
    untrained, noisy, exact = (results[name] for name in ("noise 0", "noise 0.05", "exact"))
    assert untrained["grand_mean"] == pytest.approx(0, abs=0.15)  # a field that is zero leaves the prior N(0, I)
    assert untrained["mean_std"] == pytest.approx(1, abs=0.1)
    assert noisy["mean_std"] > untrained["mean_std"]
    assert exact["grand_mean"] == pytest.approx(1, abs=0.15)
    assert exact["rms_error_of_means"] == pytest.approx(50**-0.5, rel=0.3)
    assert (tmp_path / "out" / "gaussians.png").stat().st_size > 10_000


def test_every_aligner_is_measured_to_every_target(tmp_path: Path) -> None:
    import barrier

    from wsflow.alignment import ActivationMatching, WeightMatching
    from wsflow.tasks import BreastCancer
    from wsflow.zoo import Collector, EverySnapshot

    collector = Collector(runs=3, epochs=2, snapshots=EverySnapshot(8))
    case = barrier.Case(lambda: BreastCancer([30, 3, 2]), collector, 5, True, 64)
    results, origin = barrier.measure(case, tmp_path / "zoo", [WeightMatching(), ActivationMatching()])
    targets = dict.fromkeys(result.target for result in results)
    assert len(results) == 1 + 2 * (len(targets) - 1) == 7
    assert len({result.label for result in results}) == len(results)
    assert (origin["networks"], origin["runs"]) == (5, 3)
    few = barrier.shown(results)
    assert few[:3] == results[:3]
    assert min((r for r in results if r.target == "one network"), key=lambda r: r.barriers.mean) in few
