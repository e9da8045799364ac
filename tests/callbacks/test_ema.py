"""The moving average of weights."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from wsflow.callbacks import EMA

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:The dirpath has changed",
)


class Walk(LightningModule):
    """Adds 1 to its weight in every step and keeps what validation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen: list[float] = []
        self.trained: list[float] = []

    def training_step(self, batch, batch_idx):
        self.trained.append(float(self.weight.detach()))
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.seen.append(float(self.weight.detach()))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=1.0)


def run(folder, epochs, ema, ckpt_path=None):
    walk = Walk()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ema, ModelCheckpoint(folder, save_top_k=-1)],
    )
    loader = DataLoader(range(3))
    trainer.fit(walk, loader, loader, ckpt_path=ckpt_path)
    return walk, trainer


def expected(steps, decay):
    """The average after each step of a walk 1, 2, 3, ... that begins at 0."""
    average, values = 0.0, []
    for n in range(steps):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * (n + 1)
        values.append(average)
    return values


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.99])
def test_validation_and_the_result_see_the_average(decay, tmp_path):
    walk, _ = run(tmp_path, 2, EMA(decay))
    averages = expected(6, decay)
    assert walk.trained == [0, 1, 2, 3, 4, 5]
    assert walk.seen == pytest.approx([averages[2]] * 3 + [averages[5]] * 3)
    assert float(walk.weight.detach()) == pytest.approx(averages[5])


def test_a_second_fit_begins_anew(tmp_path):
    ema = EMA(0.99)
    run(tmp_path / "first", 2, ema)
    walk, _ = run(tmp_path / "second", 2, ema)
    assert float(walk.weight.detach()) == pytest.approx(expected(6, 0.99)[5])


def test_a_checkpoint_holds_both_and_resuming_is_exact(tmp_path):
    whole, _ = run(tmp_path / "whole", 3, EMA(0.9))
    (first,) = (tmp_path / "whole").glob("epoch=0*.ckpt")
    checkpoint = torch.load(first, weights_only=True)
    assert float(checkpoint["ema_weights"]["weight"]) == 3
    assert float(checkpoint["state_dict"]["weight"]) == pytest.approx(expected(3, 0.9)[-1])
    assert set(checkpoint["ema_weights"]) == {"weight"}
    resumed, _ = run(tmp_path / "resumed", 3, EMA(0.9), ckpt_path=first)
    assert resumed.trained == [3, 4, 5, 6, 7, 8]
    assert torch.equal(resumed.weight, whole.weight)
    assert resumed.seen == whole.seen[3:]


def test_other_stages_load_the_average(tmp_path):
    walk, trainer = run(tmp_path, 1, EMA(0.5))
    walk.seen.clear()
    (path,) = tmp_path.glob("*.ckpt")
    trainer.validate(walk, DataLoader(range(2)), ckpt_path=path, verbose=False)
    assert walk.seen == pytest.approx([expected(3, 0.5)[-1]] * 2)


def test_a_checkpoint_from_within_validation_holds_the_same(tmp_path):
    class Saver(EMA):
        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    run(tmp_path, 1, Saver(0.9))
    checkpoint = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert float(checkpoint["ema_weights"]["weight"]) == 3
    assert float(checkpoint["state_dict"]["weight"]) == pytest.approx(expected(3, 0.9)[-1])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="decay must lie in"):
        EMA(decay)
