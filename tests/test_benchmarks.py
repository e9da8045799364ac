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
from torch.utils.data import DataLoader, TensorDataset

from wsflow.fields import MLPField, RelationalTransformer
from wsflow.flow import GaussianPrior
from wsflow.module import FlowMatchingModule
from wsflow.tasks import BreastCancer
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


def test_every_case_is_known_to_the_script_that_measures_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import growth
    import one_case
    import train_step

    monkeypatch.setattr(one_case, "SIZES", {"width": 8, "edge_width": 4, "depth": 1, "heads": 2})
    known = {case.options for case in [*train_step.CASES, *growth.cases()]} | {("--work", "--peak-tflops", "1")}
    for options in known - {("--compile",)}:  # which starts compilers
        arguments = ["one_case.py", "--widths", "5", "4", "2", "--batch", "2", *options, "--repeats", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        one_case.main()
        numbers = json.loads(capsys.readouterr().out)
        assert numbers["seconds"] > 0
        assert 0.01 < numbers["imports_gigabytes"] <= numbers["peak_gigabytes"]
        if "--work" in options:
            assert numbers["utilisation"] == pytest.approx(numbers["flops"] / numbers["seconds"] / 1e12)


def test_operations_and_bytes_are_counted() -> None:
    from work import count

    x, y = torch.ones(3, 5), torch.ones(5, 7)
    assert count(lambda: (x @ y).T) == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (15 + 35 + 21)}


def test_ratios_and_exponents_of_measured_rows(tmp_path: Path) -> None:
    import growth
    import train_step

    memory = {"imports_gigabytes": 1.0, "network": "5-4-2"}
    plain = {"case": "training step", "batch": 4, "processor_seconds": 2.0, "peak_gigabytes": 1.2, **memory}
    dense = {"case": "training step, dense", "batch": 1, "processor_seconds": 3.0, "peak_gigabytes": 3.0, **memory}
    assert train_step.ratios([plain, dense]) == [
        "5-4-2: dense batch 1 / bipartite batch 4, per network: time 6.0, memory 40.0"
    ]
    path = tmp_path / "rows.json"
    train_step.store(path, [plain])
    again = plain | {"processor_seconds": 1.0}
    assert train_step.store(path, [dense, again]) == [again, dense] == json.loads(path.read_text())
    assert growth.exponent([10, 100, 1000], [3, 300, 30000]) == pytest.approx(2)
    assert [growth.weights(widths) for widths in growth.WIDTHS] == [802, 7960, 26506, 118282, 669706, 919050]
    big = [case for case in growth.cases() if growth.expected_gigabytes(case) > 6]
    assert not big, "the sizes of the table fit the memory that it asks for"


def test_densities_together_are_compared_with_a_loop() -> None:
    import likelihood

    for name in likelihood.FIELDS:
        rows = likelihood.measure(name, (3, 2, 2), networks=2, steps=2)
        assert [row["trace"] for row in rows] == ["Hutchinson, 25 probes", "exact"]
        assert all(row["together"] > 0 < row["loop"] for row in rows)


def test_geometry_together_is_compared_with_a_loop() -> None:
    import geometry

    rows = geometry.measure(geometry.Case((5, 4, 2), 3), repeats=1)
    assert [row["operation"] for row in rows] == ["encode", "exp", "log", "decode"]
    assert all(float(row["ratio"]) > 0 for row in rows)


def test_training_on_images_is_measured_in_four_ways() -> None:
    import collect_images

    task = BreastCancer([30, 3, 2])
    inputs, targets = task.data("train")
    settings = {"batch": 16, "steps": 2, "memory": "300KB", "per_order": 3}
    row = collect_images.measure(task, task.widths, TensorDataset(inputs, targets), **settings)
    assert row["runs_together"] > 1
    assert row["runs_per_order"] == 3
    assert set(row["networks_per_second"]) == {"together", "one_order", "one_by_one", "loader"}
    rates = row["networks_per_second"]
    assert row["times_loader"] == pytest.approx(rates["together"] / rates["loader"])
    assert row["one_order_times_one_by_one"] == pytest.approx(rates["one_order"] / rates["one_by_one"])


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


@pytest.mark.parametrize("endpoint", [False, True])
def test_guidance_is_measured_beside_descent_at_the_same_cost(endpoint: bool) -> None:
    import guidance

    from wsflow.api import Flow

    task = BreastCancer([30, 4, 2])
    module = FlowMatchingModule(dict(task.space.description or {}), field=partial(MLPField, width=4, depth=1))
    flow = Flow(module, {"data": {"init_args": {"task": task.description}}})
    args = guidance.argparse.Namespace(
        judge=task, batch_size=None, begin=0.0, fall=0.0, n=8, seeds=[0, 1], strengths=[0.5, 1e9], rates=[0.1, 1e9]
    )
    args.select_steps, args.endpoint = 2, endpoint
    row = guidance.measured(flow, args, steps=4)
    assert (row["strength"], row["rate_random"], row["rate_flow"]) == (0.5, 0.1, 0.1)
    for name in ("guided", "descent_random", "descent_flow"):
        assert all(after < before for after, before in zip(row[name]["loss"], row["flow"]["loss"], strict=True))


def test_requests_are_spread_over_the_logarithm() -> None:
    from conditioning import spread

    labels = torch.logspace(-2, 0, 201)[torch.randperm(201)]
    torch.testing.assert_close(spread(labels, 5), torch.logspace(-2, 0, 5))
