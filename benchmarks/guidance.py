"""What guidance brings: the test loss of guided and unguided samples, and of gradient descent at the same cost.

For every number of steps K, networks are

- ``flow``: sampled with K Euler steps;
- ``guided``: the same under guidance by train data, which takes K gradients, at the present states or, with
  ``--endpoint``, at the endpoints that the flow predicts;
- ``descent_random``: K steps of gradient descent from starts that the prior draws;
- ``descent_flow``: K steps of gradient descent from the samples of ``flow``, as many gradients and evaluations of the
  field as ``guided``.

Guidance and descent see mini-batches of one size and follow one schedule: a strength, or learning rate, times
(1 - t)^fall, from the time ``begin`` on.  Both are chosen on validation data with samples of another seed, at most
``--select-steps`` steps for strengths; test data is looked at once, with what was chosen.

Usage::

    python benchmarks/guidance.py CHECKPOINT --steps 8 32 256 --strengths 0.3 1 3
    python benchmarks/guidance.py CHECKPOINT --task FashionMNIST --steps 256 --strengths 75 100 --fall 0.5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wsflow
from wsflow import tasks
from wsflow.api import Flow
from wsflow.flow import EndpointGuidance, IntervalStrength, PowerStrength, Sampler, StateGuidance, sample_prior
from wsflow.geometry import Euclidean
from wsflow.tasks import BaseTask, TaskLoss
from wsflow.weightspace.randomness import RowGenerator

HERE = Path(__file__).parent
SELECTION = 1000
"""Seed of the samples that strengths and learning rates are chosen with."""


def sampled(flow: Flow, args: argparse.Namespace, steps: int, strength: float, n: int, seed: int) -> Tensor:
    """Samples (n, D); guided where the strength is positive."""
    schedule = PowerStrength(strength, fall=args.fall) if args.fall else IntervalStrength(strength, args.begin)
    kind = EndpointGuidance if args.endpoint else StateGuidance
    guidance = kind(TaskLoss(args.judge, args.batch_size), schedule) if strength else None
    return flow.sample(n, seed, Sampler(steps=steps, guidance=guidance), batch_size=n)


def descended(args: argparse.Namespace, start: Tensor, steps: int, rate: float, seed: int) -> Tensor:
    """Networks (n, D) after gradient descent."""
    loss = TaskLoss(args.judge, args.batch_size)
    loss.attach(None)
    draws, theta = RowGenerator.make(seed, range(len(start)), [7], []), start
    for k in range(steps):
        slope = torch.func.grad(lambda x: loss(x, draws).sum())(theta)
        theta = theta - rate * (1 - k / steps) ** args.fall * slope
    return theta


def best(values: Sequence[float], task: BaseTask, make: Callable[[float], Tensor]) -> float:
    """The value whose networks have the least mean validation loss; one that diverges is no choice."""
    losses = {}
    for value in values:
        try:
            losses[value] = task.evaluate(make(value), "val")["loss"].mean().nan_to_num(nan=torch.inf).item()
        except ValueError:
            losses[value] = float("inf")
    return min(losses, key=lambda value: losses[value])


def cases(flow: Flow, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Settings chosen for one number of steps, and the makers of networks of a seed."""
    few, short = max(2, args.n // 4), min(steps, args.select_steps)
    strength = best(args.strengths, args.judge, lambda s: sampled(flow, args, short, s, few, SELECTION))

    def starts(n: int, seed: int) -> Tensor:
        return sample_prior(flow.module.prior, Euclidean(flow.weight_space), seed, range(n))

    @cache
    def plain(seed: int) -> Tensor:
        return sampled(flow, args, steps, 0, args.n, seed)

    raw, late = starts(few, SELECTION), sampled(flow, args, short, 0, few, SELECTION)
    first = best(args.rates, args.judge, lambda rate: descended(args, raw, steps, rate, SELECTION))
    second = best(args.rates, args.judge, lambda rate: descended(args, late, steps, rate, SELECTION))
    return {
        "strength": strength,
        "rate_random": first,
        "rate_flow": second,
        "make": {
            "flow": plain,
            "guided": lambda seed: sampled(flow, args, steps, strength, args.n, seed),
            "descent_random": lambda seed: descended(args, starts(args.n, seed), steps, first, seed),
            "descent_flow": lambda seed: descended(args, plain(seed), steps, second, seed),
        },
    }


def measured(flow: Flow, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Mean test loss and accuracy over networks, for every seed, of all cases at one number of steps."""
    case = cases(flow, args, steps)
    row: dict[str, Any] = {name: case[name] for name in ("strength", "rate_random", "rate_flow")}
    for name, make in case["make"].items():
        begin, scores = time.perf_counter(), []
        for seed in args.seeds:
            found = args.judge.evaluate(make(seed), "test")
            scores.append([found[key].double().mean().item() for key in ("loss", "accuracy")])
        table = torch.tensor(scores)
        row[name] = {
            "loss": table[:, 0].tolist(),
            "accuracy": table[:, 1].tolist(),
            "seconds": (time.perf_counter() - begin) / len(args.seeds),
        }
        spread = table.std(0) if len(table) > 1 else torch.zeros(2)
        print(
            f"  {steps:>4} {name:<15} loss {table[:, 0].mean():.4f} +- {spread[0]:.4f}"
            f"  accuracy {table[:, 1].mean():.4f} +- {spread[1]:.4f}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", help="another task, by the name of its class; the flow's own by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--select-steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, help="data points of a gradient; all by default")
    parser.add_argument("--begin", type=float, default=0.0, help="first time of guidance")
    parser.add_argument("--fall", type=float, default=0.0)
    parser.add_argument("--endpoint", action="store_true", help="gradients at the endpoint that the flow predicts")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "guidance.json")
    args = parser.parse_args()
    flow = wsflow.load(args.checkpoint)
    args.judge = getattr(tasks, args.task)() if args.task else flow.task
    name = args.name or f"{args.checkpoint.parents[2].name}_{args.judge.name}"
    print(name)
    names = ("strengths", "rates", "select_steps", "batch_size", "begin", "fall", "endpoint", "n", "seeds")
    setting = {key: getattr(args, key) for key in names}
    rows = {str(steps): setting | measured(flow, args, steps) for steps in args.steps}
    known = json.loads(args.output.read_text()) if args.output.exists() else {}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(known | {name: known.get(name, {}) | rows}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
