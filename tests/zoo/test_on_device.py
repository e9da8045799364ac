"""Networks that stay on the training's device: the same batches, one ``index_select`` per tensor, no waiting."""

from __future__ import annotations

import sys
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from wsflow.alignment import WeightMatching
from wsflow.callbacks import EMA
from wsflow.fields import NeuronTransformer, PNAField, RelationalTransformer, SelfConditioned
from wsflow.flow import ConstantNoisePath, SnapshotPath, TrajectoryCoupling
from wsflow.losses import FunctionalTerm, PerTensor, RolloutTerm
from wsflow.module import FlowMatchingModule
from wsflow.optim import Muon
from wsflow.zoo import ZooDataModule
from wsflow.zoo import datamodule as datamodule_file
from wsflow.zoo.held import fits, hold

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:training starts where sampling does not",
)

CPU, META = torch.device("cpu"), torch.device("meta")


def make(task, path, **arguments):
    data = ZooDataModule(task, str(path), **{"batch_size": 3, **arguments})
    data.prepare_data()
    data.setup("fit")
    return data


class Operations(TorchDispatchMode):
    """Notes operations, with the file of wsflow that called for each, if it was one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func).removesuffix(".default"), caller(sys._getframe())))
        return func(*args, **(kwargs or {}))


def caller(frame: FrameType | None) -> str:
    """The innermost file outside of torch."""
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all snapshots": {"final_only": False},
    "permuted": {"permute": True},
    "aligned, with the way": {"aligner": WeightMatching(iterations=2), "snapshots": True, "passes": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_are_the_same_wherever_networks_are(task, zoo_path, variant):
    here, there = (make(task, zoo_path, on_device=held, **VARIANTS[variant]) for held in (False, True))
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loaders = [getattr(data, name)() for data in (here, there)]
        batches = [[batch for _ in range(2) for batch in loader] for loader in loaders]
        assert len(batches[0]) == len(batches[1]) > 0
        for one, other in zip(*batches, strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def test_a_batch_is_one_index_select_per_tensor(task, zoo_path):
    loader = make(task, zoo_path, on_device=True, snapshots=True).train_dataloader()
    epoch = iter(loader)
    next(epoch)
    with Operations() as operations:
        batch = next(epoch)
    tensors = [value for value in batch if value is not None]
    assert len(tensors) == 5
    assert [name for name, _ in operations.seen] == ["aten.index_select"] * 5


def test_networks_are_held_while_they_are_needed(task, zoo_path):
    data = make(task, zoo_path, on_device=True)
    first, second = data.train_dataloader(), data.train_dataloader()
    assert first.fetch.args[0].__self__ is second.fetch.args[0].__self__
    data.teardown("fit")
    assert not data._held


def test_only_what_fits_is_held_unasked(task, zoo_path, monkeypatch):
    assert not fits(1, 1, CPU)
    monkeypatch.setattr("wsflow.zoo.held.free_bytes", lambda device: 16_000)
    assert fits(10, 100, META)
    assert not fits(11, 100, META)
    data = make(task, zoo_path)
    assert data.train_dataloader().fetch.args[0] == data._plain
    seen = []
    monkeypatch.setattr(datamodule_file, "fits", lambda *arguments: seen.append(arguments[:2]) or True)
    assert data.train_dataloader().fetch.args[0] != data._plain
    assert seen == [(8, 2 * task.space.dim)]


def test_networks_are_held_in_parts(monkeypatch, task, zoo_path):
    data = make(task, zoo_path)
    rows = data.rows("train")
    monkeypatch.setattr("wsflow.zoo.held.ROWS", 3)
    for a, b in zip(hold(data._plain, rows, CPU), data._plain(rows), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class Watch(Callback):
    """Notes the operations of all training steps but the first, with what surrounds them."""

    def __init__(self) -> None:
        self.operations = Operations()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            self.operations.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.operations.__exit__(None, None, None)


SYNCHRONISING = (
    "aten._local_scalar_dense",
    "aten.item",
    "aten.equal",
    "aten.nonzero",
    "aten.unique",
    "aten._unique2",
    "aten.masked_select",
    "aten.is_nonzero",
)


def test_training_reads_nothing_from_the_device(task, zoo_path):
    data = make(task, zoo_path, on_device=True, batch_size=2, passes=2)
    small = partial(RelationalTransformer, width=8, edge_width=4, depth=1)
    flow, watch = FlowMatchingModule(data.space_description, field=small, coupling=TrajectoryCoupling()), Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, EMA()],
    )
    trainer.fit(flow, datamodule=data)
    assert trainer.global_step == 8
    assert len(watch.operations.seen) > 1000
    assert "aten.index_select" in {name for name, _ in watch.operations.seen}
    ours = [(name, file) for name, file in watch.operations.seen if "/wsflow/" in file]
    assert len(ours) > 500
    assert not [pair for pair in ours if pair[0].startswith(SYNCHRONISING)]


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "trajectory": {"coupling": TrajectoryCoupling()},
    "noise": {"path": ConstantNoisePath()},
    "snapshots": {"path": SnapshotPath(), "coupling": TrajectoryCoupling()},
    "weighted": {"weighting": PerTensor()},
    "functional": {"functional": FunctionalTerm(batch_size=8)},
    "rollouts": {"functional": RolloutTerm(batch_size=8, steps=3, every=2)},
    "neuron tokens": {"field": partial(NeuronTransformer, width=8, depth=1, heads=2)},
    "pna": {"field": partial(PNAField, width=8, depth=1)},
    "self-conditioned": {
        "field": partial(SelfConditioned, field=partial(RelationalTransformer, width=8, edge_width=4, depth=1))
    },
}


@pytest.mark.parametrize("variant", MODULES)
def test_training_steps_need_no_values(task, zoo_path, variant, monkeypatch):
    """Tensors without values refuse whatever would read one: what runs on them never waits for a device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # refuses to be asked of such tensors
    data = make(task, zoo_path, batch_size=4, snapshots=True)
    small = partial(RelationalTransformer, width=8, edge_width=4, depth=1)
    flow = FlowMatchingModule(data.space_description, **{"field": small, **MODULES[variant]})
    if flow.functional is not None:
        flow.functional.attach(task)
    flow.to(META)
    if flow.weighting is not None:
        flow.loss_weight = torch.ones(flow.geometry.dim, device=META)  # as calibrate leaves it
    held = hold(data._plain, data.rows("train"), META)
    optimizer = Muon(flow.field.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        batch = held.select(torch.tensor([3, 1, 0, 2], device=META))
        loss, _ = flow.training_loss(batch, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.device == META


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_never_waits(task, zoo_path):
    data = make(task, zoo_path, batch_size=4, on_device=True, permute=True)
    small = partial(RelationalTransformer, width=8, edge_width=4, depth=1)
    flow = FlowMatchingModule(data.space_description, field=small, coupling=TrajectoryCoupling()).cuda()
    held, optimizer = hold(data._plain, data.rows("train"), flow.device), Muon(flow.field.parameters())
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        if step == 1:  # libraries may wait when they start
            torch.cuda.set_sync_debug_mode("error")
        try:
            loss, _ = flow.training_loss(held.select(torch.arange(4, device=flow.device)), generator)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
