"""Samples are evaluated in training, and written to disk."""

from __future__ import annotations

import os
from functools import partial
from itertools import cycle

import pytest
import torch
from lightning.pytorch import Trainer

from wsflow.callbacks import GenerationCallback, SampleWriter
from wsflow.fields import MLPField
from wsflow.flow import Sampler, StartsPrior, StateGuidance, TrajectoryCoupling
from wsflow.module import FlowMatchingModule
from wsflow.tasks import BreastCancer, TaskLoss
from wsflow.zoo import Collector, Zoo, ZooDataModule, ZooError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Forty runs of a small network."""
    path = tmp_path_factory.mktemp("zoo") / "zoo"
    Collector(runs=40, epochs=1).collect(BreastCancer([30, 4, 2]), path, progress=False)
    return path


@pytest.fixture
def data(zoo):
    return ZooDataModule(BreastCancer([30, 4, 2]), str(zoo), batch_size=8)


def module(data, **arguments):
    field = partial(MLPField, width=8, depth=1)
    return FlowMatchingModule(data.space_description, field=field, coupling=TrajectoryCoupling(), **arguments)


def trainer(*callbacks, epochs=2):
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def test_samples_are_scored_every_few_epochs(data, monkeypatch):
    drawn = []
    sample = FlowMatchingModule.sample
    monkeypatch.setattr(
        FlowMatchingModule, "sample", lambda self, *args: drawn.append(self.current_epoch) or sample(self, *args)
    )
    run = trainer(GenerationCallback(n=5, every_n_epochs=2, sampler=Sampler(steps=2)), epochs=4)
    run.fit(module(data), datamodule=data)
    assert drawn == [1, 3]
    metrics = run.callback_metrics
    assert 0 <= metrics["samples/accuracy"] <= 1
    assert metrics["samples/nn_ratio.function"] > 0
    assert {"samples/loss", "samples/z_u", "samples/dispersion", "heldout/accuracy"} <= set(metrics)
    heldout = {name for name in metrics if name.startswith("heldout/")}
    assert not {name for name in heldout if any(word in name for word in ("nn_ratio", "z_u", "dispersion", "size"))}


def test_a_second_fit_is_judged_against_its_own_runs(data, zoo):
    callback = GenerationCallback(n=4, sampler=Sampler(steps=1))
    trainer(callback, epochs=1).fit(module(data), datamodule=data)
    other = ZooDataModule(BreastCancer([30, 4, 2]), str(zoo), batch_size=8, split_seed=1)
    second = trainer(callback, epochs=1)
    second.fit(module(other), datamodule=other)
    expected = other.task.evaluate(other.networks("val").x1, "val")["loss"].mean()
    assert float(second.callback_metrics["heldout/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_validate_scores_samples_too(data):
    run = trainer(GenerationCallback(n=4))
    (logged,) = run.validate(module(data), datamodule=data, verbose=False)
    assert {"samples/accuracy", "val/flow_loss"} <= set(logged)


def test_training_is_the_same_with_and_without(data):
    weights = []
    for callbacks in ([], [GenerationCallback(n=4)]):
        torch.manual_seed(0)
        flow = module(data)
        trainer(*callbacks).fit(flow, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
    assert torch.equal(*weights)


def test_a_prior_of_starts_is_sampled_from_validation_runs(data, monkeypatch):
    seen = []
    sample = FlowMatchingModule.sample
    monkeypatch.setattr(FlowMatchingModule, "sample", lambda self, *args: seen.append(args[4]) or sample(self, *args))
    flow = module(data, prior=StartsPrior())
    trainer(GenerationCallback(n=2)).validate(flow, datamodule=data, verbose=False)
    assert torch.equal(flow.prior.starts, data.networks("train").start)
    assert torch.equal(seen[0].starts, data.networks("val").start)


@pytest.mark.parametrize("arguments", [{"n": 1}, {"every_n_epochs": 0}], ids=str)
def test_wrong_settings(arguments):
    with pytest.raises(ValueError, match="n must be at least 2"):
        GenerationCallback(**arguments)


def predict(flow, n, writer):
    loader = torch.utils.data.DataLoader(range(n), batch_size=4)
    trainer(writer).predict(flow, loader, return_predictions=False)


def test_what_predict_gives_is_written_in_order(data, tmp_path):
    flow, path = module(data), tmp_path / "samples"
    flow.sampler, flow.sample_seed = Sampler(steps=3), 7
    predict(flow, 10, SampleWriter(path, {"sampling": {"seed": 7}}))
    zoo = Zoo.open(path)
    zoo.verify()
    assert zoo.run.tolist() == list(range(10))
    torch.testing.assert_close(zoo.theta, flow.sample(range(10), 7, Sampler(steps=3)), rtol=1e-5, atol=1e-5)
    assert zoo.manifest["sampling"] == {"seed": 7}
    assert zoo.manifest["seconds_per_network"] > 0
    assert zoo.manifest["device"] == "cpu, 1 thread"
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples"]


def test_the_batch_that_needed_most_is_counted(data, tmp_path, monkeypatch):
    flow, counts = module(data), cycle([3, 9, 5])
    flow.sampler, flow.sample_seed = Sampler(steps=1), 0
    monkeypatch.setattr(Sampler, "evaluations", property(lambda self: next(counts), lambda self, count: None))
    writer = SampleWriter(tmp_path / "samples")
    predict(flow, 10, writer)
    assert writer.evaluations == 9


class Joined(SampleWriter):
    """Another prediction into the same folder begins and ends while this one is on its way."""

    def __init__(self, path, other, **arguments):
        super().__init__(path, **arguments)
        self.other = other

    def write_on_batch_end(self, *args):
        super().write_on_batch_end(*args)
        if args[5] == 1:
            predict(self.other, 6, SampleWriter(self.path, overwrite=True))


@pytest.mark.parametrize("overwrite", [False, True])
def test_predictions_into_one_folder_do_not_mix(overwrite, data, tmp_path):
    path, flows = tmp_path / "samples", (module(data), module(data))
    for seed, flow in enumerate(flows):
        flow.sampler, flow.sample_seed = Sampler(steps=2), seed
    kept, n = (flows[0], 10) if overwrite else (flows[1], 6)
    writer = Joined(path, flows[1], overwrite=overwrite)
    if overwrite:
        predict(flows[0], 10, writer)
    else:
        with pytest.raises(ZooError, match="exists already"):
            predict(flows[0], 10, writer)
    zoo = Zoo.open(path)
    zoo.verify()
    expected = kept.sample(range(n), kept.sample_seed, Sampler(steps=2))
    torch.testing.assert_close(zoo.theta, expected, rtol=1e-5, atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples"]


def test_networks_that_are_missing_are_no_samples(data, tmp_path):
    class Forgetful(SampleWriter):
        def write_on_batch_end(self, *args):
            if args[5] != 2:
                super().write_on_batch_end(*args)

    with pytest.raises(ZooError, match="holds 8 networks, and not the 10 that were asked for"):
        predict(module(data), 10, Forgetful(tmp_path / "samples"))
    assert not list(tmp_path.iterdir())


def test_what_killed_predictions_left_is_removed_after_an_hour(data, tmp_path):
    old, new = tmp_path / ".samples.parts-old", tmp_path / ".samples.parts-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    predict(module(data), 3, SampleWriter(tmp_path / "samples"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".samples.parts-new", "samples"]


def test_nothing_is_left_behind_under_the_name_of_the_samples_when_predict_fails(data, tmp_path):
    flow, path = module(data), tmp_path / "samples"
    predict(flow, 3, SampleWriter(path))
    before = Zoo.open(path).theta.clone()
    torch.nn.init.constant_(flow.field.write.bias, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        predict(flow, 3, SampleWriter(path, overwrite=True))
    assert torch.equal(Zoo.open(path).theta, before)


def test_existing_folders(data, zoo, tmp_path):
    flow, path = module(data), tmp_path / "samples"
    predict(flow, 3, SampleWriter(path))
    with pytest.raises(ZooError, match="exists already"):
        SampleWriter(path)
    with pytest.raises(ZooError, match="trained networks"):
        SampleWriter(zoo, overwrite=True)
    predict(flow, 5, SampleWriter(path, overwrite=True))
    assert len(Zoo.open(path)) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples"]


def test_guidance_gets_the_base_task(data):
    guided = Sampler(steps=4, guidance=StateGuidance(TaskLoss(), 2.0))
    losses = []
    for sampler in (Sampler(steps=4), guided):
        run = trainer(GenerationCallback(n=8, sampler=sampler))
        (logged,) = run.validate(module(data), datamodule=data, verbose=False)
        losses.append(logged["samples/loss"])
    assert losses[1] < 0.9 * losses[0]
