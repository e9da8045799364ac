"""Measures one case of train_step.py or growth.py in a process of its own and prints the numbers as JSON.

Usage: ``python benchmarks/one_case.py --widths 30 16 16 2 --batch 16 [--dense | --neuron] [--sample]
[--geometric | --euclidean] [--recompute] [--compile] [--once] [--device cuda --work --peak-tflops 67]``
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
from work import count, floors, synchronise

from wsflow.fields import Endpoint, NeuronTransformer, RelationalTransformer, Velocity
from wsflow.flow import ConstantNoisePath, GaussianPrior, GeodesicPath, Sampler
from wsflow.geometry import Euclidean, Geometric
from wsflow.memory import keep_freed_memory
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import ZooBatch

SIZES: dict[str, Any] = {"width": 32, "edge_width": 32, "depth": 5, "heads": 4}
PATIENCE = 20.0
"""Seconds after which no further repetition is begun."""

Arguments = argparse.Namespace


def field_of(args: Arguments) -> Callable[..., Any]:
    """The field at :data:`SIZES`."""
    if args.dense:
        return partial(DenseRelationalTransformer, **SIZES)
    if args.neuron:
        sizes = {name: value for name, value in SIZES.items() if name != "edge_width"}
        return partial(NeuronTransformer, recompute=args.recompute, **sizes)
    return partial(RelationalTransformer, recompute=args.recompute, **SIZES)


def make(args: Arguments, field: Callable[..., Any]) -> FlowMatchingModule:
    """A flow with random values in all parameters: of the Gaussian task (configs/gaussians.yaml), or of a geometry."""
    network = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": args.widths}}
    geometry = Geometric if args.geometric else Euclidean
    plain = args.geometric or args.euclidean
    module = FlowMatchingModule(
        network,
        geometry=geometry,
        field=field,
        prior=GaussianPrior(1.0),
        path=GeodesicPath() if plain else ConstantNoisePath(),
        parametrization=Velocity() if plain else Endpoint(),
    )
    torch.manual_seed(0)
    for p in module.field.parameters():
        nn.init.normal_(p, std=0.05)
    if args.compile:
        module.field.compile()  # as CompileField does
    return module.to(args.device)


def check_same_function(module: FlowMatchingModule, args: Arguments) -> None:
    """Raise unless the dense field gives what the field gives."""
    other = make(args, partial(RelationalTransformer, **SIZES)).field
    other.load_state_dict(module.field.state_dict())
    x, t = torch.randn(1, module.space.dim, device=args.device), torch.rand(1, device=args.device)
    with torch.no_grad():
        torch.testing.assert_close(module.field(x, t), other(x, t), rtol=1e-3, atol=1e-4)


def training(module: FlowMatchingModule, batch: int, device: str = "cpu") -> Callable[[], Any]:
    """One step: draw, forward, backward and Adam."""
    optimizer = torch.optim.Adam(module.field.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    networks = ZooBatch(1 + torch.randn(batch, module.space.dim, generator=generator), None, torch.arange(batch))
    networks = networks.to(torch.device(device))

    def step() -> None:
        optimizer.zero_grad()
        module.training_loss(networks, generator)[0].backward()
        optimizer.step()

    return step


def sampling(module: FlowMatchingModule, batch: int, steps: int = 100) -> Callable[[], Any]:
    """Generate networks in Euler steps."""
    return lambda: module.sample(range(batch), sampler=Sampler(steps=steps), batch_size=batch)


def measure(function: Callable[[], Any], repeats: int, once: bool = False, device: str = "cpu") -> dict[str, float]:
    """Median wall time and least processor time of a call, after one that is not counted unless ``once``."""
    if not once:
        function()
    walls: list[float] = []
    processors: list[float] = []
    began = time.perf_counter()
    while len(walls) < (1 if once else repeats) and (not walls or time.perf_counter() - began < PATIENCE):
        synchronise(device)
        wall, processor = time.perf_counter(), time.process_time()
        function()
        synchronise(device)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return {"seconds": statistics.median(walls), "processor_seconds": min(processors), "repeats": len(walls)}


def peak_gigabytes(device: str = "cpu") -> float:
    """Peak resident memory of this process so far, or what it held at most on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def parse() -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--sample", action="store_true", help="generate, do not train")
    parser.add_argument("--steps", type=int, default=100, help="Euler steps, with --sample")
    parser.add_argument("--recompute", action="store_true", help="compute layers again in the backward pass")
    parser.add_argument("--compile", action="store_true", help="let torch.compile compile the field, for minutes")
    parser.add_argument("--once", action="store_true", help="measure the first call, for cases that take minutes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", action="store_true", help="count operations and bytes of a call")
    parser.add_argument("--peak-tflops", type=float, help="of the device, to print utilisation; with --work")
    field = parser.add_mutually_exclusive_group()
    field.add_argument("--dense", action="store_true")
    field.add_argument("--neuron", action="store_true")
    geometry = parser.add_mutually_exclusive_group()
    geometry.add_argument("--geometric", action="store_true", help="along geodesics, velocities predicted")
    geometry.add_argument("--euclidean", action="store_true", help="along lines, velocities predicted")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    module = make(args, field_of(args))
    imports = peak_gigabytes(args.device)
    run = sampling(module, args.batch, args.steps) if args.sample else training(module, args.batch, args.device)
    result = measure(run, args.repeats, args.once, args.device)
    result |= {"peak_gigabytes": peak_gigabytes(args.device), "imports_gigabytes": imports}
    if args.work:
        work = count(run)
        result |= work | floors(work, result["seconds"], args.peak_tflops)
    if args.dense:
        check_same_function(module, args)
    setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), "field": SIZES, "device": args.device}
    parameters = sum(p.numel() for p in module.field.parameters())
    print(json.dumps({**result, "dim": module.space.dim, "parameters": parameters, "setting": setting}))


if __name__ == "__main__":
    main()
