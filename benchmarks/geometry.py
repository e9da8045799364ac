"""Geometry for many networks at once, against a Python loop over networks.

Encoding to canonical forms, exponential and logarithmic map and decoding of ``Geometric``, from 256 perceptrons
30-16-16-2 to four of 784-640-640-10 with weights N(0, 0.1^2), in one call against one call for each network. Both are
the same code and checked to give the same; one thread. Times are the least processor time of several repetitions.

Usage: ``python benchmarks/geometry.py [--output benchmarks/results/geometry.json] [--repeats 5] [--device cuda]``
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from work import synchronise

from wsflow.geometry import Geometric
from wsflow.weightspace import WeightSpace, mlp

HERE = Path(__file__).parent


class Case(NamedTuple):
    """How many networks of which widths."""

    widths: tuple[int, ...]
    networks: int


CASES = (
    Case((30, 16, 16, 2), 256),
    Case((784, 10, 10), 64),
    Case((784, 128, 128, 10), 16),
    Case((784, 640, 640, 10), 4),
)


def operations(geometry: Geometric, theta: Tensor, others: Tensor) -> dict[str, tuple[Callable[..., Tensor], Tensor]]:
    """What is measured, with the two operands' rows stacked, (n, k, ...)."""
    x, y = geometry.encode(theta), geometry.encode(others)
    v = 0.5 * geometry.log(x, y)
    return {
        "encode": (geometry.encode, theta[:, None]),
        "exp": (geometry.exp, torch.stack([x, v], dim=1)),
        "log": (geometry.log, torch.stack([x, y], dim=1)),
        "decode": (geometry.decode, x[:, None]),
    }


def together(function: Callable[..., Tensor], operands: Tensor) -> Tensor:
    """One call."""
    return function(*operands.unbind(1))


def one_by_one(function: Callable[..., Tensor], operands: Tensor) -> Tensor:
    """A call for each network."""
    return torch.cat([function(*row[:, None]) for row in operands])


def processor(function: Callable[[], object], repeats: int, device: str) -> float:
    """Least processor time of a call; the wait for the device is in it."""
    times = []
    for _ in range(repeats):
        synchronise(device)
        began = time.process_time()
        function()
        synchronise(device)
        times.append(time.process_time() - began)
    return min(times)


@torch.no_grad()
def measure(case: Case, repeats: int, device: str = "cpu") -> list[dict[str, float | str]]:
    """A row for each operation."""
    space = WeightSpace.from_module(mlp(list(case.widths)))
    generator = torch.Generator().manual_seed(0)
    theta, others = (0.1 * torch.randn(case.networks, space.dim, generator=generator).to(device) for _ in range(2))
    rows: list[dict[str, float | str]] = []
    geometry = Geometric(space).to(device)
    for name, (function, operands) in operations(geometry, theta, others).items():
        torch.testing.assert_close(together(function, operands), one_by_one(function, operands), rtol=1e-4, atol=1e-5)
        batched = processor(lambda f=function, x=operands: together(f, x), repeats, device)
        looped = processor(lambda f=function, x=operands: one_by_one(f, x), 2, device)
        network = "-".join(map(str, case.widths))
        times = {"batched_seconds": batched, "loop_seconds": looped, "ratio": looped / batched}
        rows.append({"network": network, "networks": case.networks, "operation": name, "device": device, **times})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "geometry.json")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "networks", "operation", "loop ms", "together ms", "ratio", title="Geometric, one thread")
    rows = [row for case in CASES for row in measure(case, args.repeats, args.device)]
    for row in rows:
        numbers = (1e3 * float(row["loop_seconds"]), 1e3 * float(row["batched_seconds"]), float(row["ratio"]))
        names = (str(row[key]) for key in ("network", "networks", "operation"))
        table.add_row(*names, *(f"{number:.2f}" for number in numbers))
    Console().print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
