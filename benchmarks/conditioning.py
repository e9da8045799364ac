"""Requested against achieved loss of a flow that is told each network's loss.

Requests are the labels of snapshots of held-out runs, spread evenly over their range; the weight of classifier-free
guidance is chosen on validation runs.  Beside it stands copying: the training network whose label is nearest to the
request, which hits train losses by construction and brings nothing new.  Reported are Spearman's rank correlation, the
mean absolute error of the loss's logarithm, and the median distance to the nearest training network in function
(rms difference of softmax outputs on validation inputs), which copying has at 0.

Usage::

    wsflow fit -c configs/demo.yaml -c configs/field/neurons.yaml -c configs/condition/loss.yaml
    python benchmarks/conditioning.py runs/condition/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import wsflow
from wsflow.api import Flow
from wsflow.description import build
from wsflow.fields import Request
from wsflow.flow import Sampler
from wsflow.metrics import nearest, predict
from wsflow.tasks import BaseTask
from wsflow.zoo import ZooDataModule

HERE = Path(__file__).parent


def spread(labels: Tensor, n: int) -> Tensor:
    """Of labels (N,), the n nearest to points that divide the range of their logarithms evenly."""
    goals = torch.linspace(labels.log().min(), labels.log().max(), n)
    return labels[(labels.log()[None] - goals[:, None]).abs().argmin(1)]


def answered(flow: Flow, asked: Tensor, weight: float, seed: int, steps: int) -> Tensor:
    """One network (n, D) for each request."""
    name = flow.module.conditioning.names[0]
    return flow.sample(len(asked), seed, Sampler(steps=steps), request=Request({name: asked.tolist()}, weight))


def scores(task: BaseTask, theta: Tensor, asked: Tensor, known: Tensor) -> dict[str, float]:
    """How networks (n, D) answer requests (n,), in train and test loss."""
    found: dict[str, float] = {}
    for split in ("train", "test"):
        loss = task.evaluate(theta, split)["loss"]
        found[f"{split}.spearman"] = float(spearmanr(asked, loss).statistic)
        found[f"{split}.log_error"] = (loss / asked).log().abs().mean().item()
    found["novelty"] = nearest(predict(task, theta), predict(task, known)).distance.median().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="breast_cancer")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "conditioning.json")
    args = parser.parse_args()
    flow = wsflow.load(args.checkpoint)
    data = build(flow.data)
    assert isinstance(data, ZooDataModule)
    labels = {split: data.told(split)[:, 0] for split in ("train", "val", "test")}
    known, task = data.zoo.rows(data.rows("train")), data.task
    choice = {}
    for weight in args.weights:
        asked = spread(labels["val"], args.n)
        theta = answered(flow, asked, weight, 1000, args.steps)
        choice[weight] = scores(task, theta, asked, known)["train.log_error"]
    weight = min(choice, key=lambda w: choice[w])
    asked = spread(labels["test"], args.n)
    copies = known[(labels["train"].log()[None] - asked.log()[:, None]).abs().argmin(1)]
    result: dict[str, Any] = {
        "setting": {"n": args.n, "steps": args.steps, "seeds": args.seeds},
        "range": [labels["train"].min().item(), labels["train"].max().item()],
        "requests": [asked.min().item(), asked.max().item()],
        "validation.log_error": {f"{w:g}": value for w, value in choice.items()},
        "weight": weight,
        "flow": [scores(task, answered(flow, asked, weight, s, args.steps), asked, known) for s in args.seeds],
        "copies": scores(task, copies, asked, known),
        "held-out runs": scores(task, _rows(data, labels["test"], asked), asked, known),
    }
    print(json.dumps(result, indent=2))
    stored = json.loads(args.output.read_text()) if args.output.exists() else {}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(stored | {args.name: result}, indent=2) + "\n")


def _rows(data: ZooDataModule, labels: Tensor, asked: Tensor) -> Tensor:
    """The held-out networks that the requests come from."""
    rows = data.rows("test")
    return data.zoo.rows(rows[(labels[None] - asked[:, None]).abs().argmin(1)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
