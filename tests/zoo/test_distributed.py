from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from wsflow.zoo import Zoo, split_runs
from wsflow.zoo import datamodule as module

SCRIPT = """
import json, os, sys
import lightning.pytorch as pl
import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from clusters_plugin import Clusters
from wsflow.alignment import WeightMatching
from wsflow.zoo import Collector, ZooDataModule


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), {"train": [], "val": []}

    def training_step(self, batch, index):
        self.seen["train"].append([self.current_epoch, batch.run.tolist()])
        return (self.weight - batch.x1.mean()).square().sum()

    def validation_step(self, batch, index):
        self.seen["val"] += batch.run.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


module = Recorder()
data = ZooDataModule(Clusters(), sys.argv[2], Collector(runs=30, epochs=1), batch_size=4, aligner=WeightMatching())
pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=2,
).fit(module, data)
with open(os.path.join(sys.argv[2], f"seen-{module.global_rank}.json"), "w") as file:
    json.dump(module.seen, file)
"""


def test_two_processes_share_each_epoch(plugin, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    path, script = tmp_path / "zoo", tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(plugin), str(path)], env=env, check=True, timeout=200)
    runs = split_runs(Zoo.open(path).run_ids)
    seen = [json.loads((path / f"seen-{rank}.json").read_text()) for rank in range(2)]
    assert sorted(seen[0]["val"] + seen[1]["val"]) == runs["val"].tolist()
    orders = []
    for epoch in range(2):
        batches = [run for part in seen for e, runs_ in part["train"] if e == epoch for run in runs_]
        assert len(batches) == len(set(batches)) == 24
        assert set(batches) == set(runs["train"].tolist())
        orders.append(batches)
    assert orders[0] != orders[1]
