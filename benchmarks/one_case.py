"""Measures one case of train_step.py in a process of its own and prints the numbers as JSON.

Usage: ``python benchmarks/one_case.py --widths 30 16 16 2 --batch 16 [--dense | --sample]``
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from dense import DenseRelationalTransformer
from torch import nn

from wsflow.fields import Endpoint, RelationalTransformer
from wsflow.flow import ConstantNoisePath, GaussianPrior, Sampler
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import ZooBatch

SIZES: dict[str, Any] = {"width": 32, "edge_width": 32, "depth": 5, "heads": 4}
PATIENCE = 20.0
"""Seconds after which no further repetition is begun."""


def make(widths: list[int], dense: bool) -> FlowMatchingModule:
    """A flow of the Gaussian task (configs/gaussians.yaml) with random values in all parameters."""
    network = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": widths}}
    field = DenseRelationalTransformer if dense else RelationalTransformer
    module = FlowMatchingModule(
        network,
        field=partial(field, **SIZES),
        prior=GaussianPrior(1.0),
        path=ConstantNoisePath(),
        parametrization=Endpoint(),
    )
    torch.manual_seed(0)
    for p in module.field.parameters():
        nn.init.normal_(p, std=0.05)
    return module


def check_same_function(module: FlowMatchingModule, widths: list[int]) -> None:
    """Raise unless the dense field gives what the field gives."""
    other = make(widths, dense=False).field
    other.load_state_dict(module.field.state_dict())
    x, t = torch.randn(1, module.space.dim), torch.rand(1)
    with torch.no_grad():
        torch.testing.assert_close(module.field(x, t), other(x, t), rtol=1e-3, atol=1e-4)


def training(module: FlowMatchingModule, batch: int) -> Callable[[], Any]:
    """One step: draw, forward, backward and Adam."""
    optimizer = torch.optim.Adam(module.field.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    networks = ZooBatch(1 + torch.randn(batch, module.space.dim, generator=generator), None, torch.arange(batch))

    def step() -> None:
        optimizer.zero_grad()
        module.loss(networks, generator).mean().backward()
        optimizer.step()

    return step


def sampling(module: FlowMatchingModule, batch: int) -> Callable[[], Any]:
    """Generate networks in 100 Euler steps."""
    return lambda: module.sample(range(batch), sampler=Sampler(steps=100))


def measure(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median wall and processor time of a call, after one that is not counted."""
    function()
    walls: list[float] = []
    processors: list[float] = []
    began = time.perf_counter()
    while len(walls) < repeats and (not walls or time.perf_counter() - began < PATIENCE):
        wall, processor = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    seconds, processor_seconds = statistics.median(walls), statistics.median(processors)
    return {"seconds": seconds, "processor_seconds": processor_seconds, "repeats": len(walls)}


def peak_gigabytes() -> float:
    """Peak resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=11)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--dense", action="store_true")
    kind.add_argument("--sample", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = make(args.widths, args.dense)
    imports = peak_gigabytes()
    run = sampling(module, args.batch) if args.sample else training(module, args.batch)
    result = measure(run, args.repeats)
    result |= {"peak_gigabytes": peak_gigabytes(), "imports_gigabytes": imports}
    if args.dense:
        check_same_function(module, args.widths)
    setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), "field": SIZES}
    count = sum(p.numel() for p in module.field.parameters())
    print(json.dumps({**result, "dim": module.space.dim, "parameters": count, "setting": setting}))


if __name__ == "__main__":
    main()
