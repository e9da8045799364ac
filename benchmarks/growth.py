"""How time and memory of a training step and of sampling grow with the number of weights, from D = 8e2 to nearly 1e6.

The Relational Transformer (5 layers, d = 32, d_e = 32) and the neuron transformer (5 layers, d = 32) take a step as in
``train_step.py``, and generate networks in 16 Euler steps, on perceptrons from 30-16-16-2 to 784-640-640-10, each in a
process of its own.  From D = 1e5 on the
Relational Transformer computes its layers again in the backward pass; there one call is measured, the first.  A case
that needs more memory than ``--max-gigabytes`` by :func:`expected_gigabytes` is skipped with that reason.

The exponents printed are those of the straight lines through log D and log processor time (and memory beyond the
imports) per network, over all sizes and over those from 784-10-10 on; 1 is linear growth.

Usage: ``python benchmarks/growth.py [--output benchmarks/results/growth.json] [--cases 0 1 2] [--max-gigabytes 6]
[--device cuda --work --peak-tflops 67]``; rows that are not measured again stay in the file
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from train_step import HERE, Case, device_options, passed_on, print_table, row_of, run, store

RELATIONAL, NEURONS = "relational", "neurons"
SAMPLING = ", 16 Euler steps"
WIDTHS = (
    [30, 16, 16, 2],
    [784, 10, 10],
    [784, 32, 32, 10],
    [784, 128, 128, 10],
    [784, 512, 512, 10],
    [784, 640, 640, 10],
)
BIG = 100_000
EDGE_WIDTH, DEPTH, HELD = 32, 5, 24
"""HELD: tensors of the size of the edge states that a layer and its backward pass hold at most."""


def weights(widths: Sequence[int]) -> int:
    """D of a perceptron."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def cases() -> list[Case]:
    """Every size with either field, trained and sampled."""
    found = []
    for sampled in (False, True):
        for name, options in ((RELATIONAL, ()), (NEURONS, ("--neuron",))):
            for widths in WIDTHS:
                big = weights(widths) > BIG and name == RELATIONAL
                more = ("--once",) if big else ("--repeats", "3")
                more += ("--sample", "--steps", "16") if sampled else ("--recompute",) if big else ()
                case = name + SAMPLING if sampled else name
                found.append(Case(case, widths, 1 if weights(widths) > BIG else 2, (*options, *more)))
    return found


def expected_gigabytes(case: Case) -> float:
    """Memory of a step: states between layers, and one layer, or all if none is computed again; of sampling: one."""
    if case.name.startswith(NEURONS):
        return 0.0
    layers = HELD + DEPTH if "--recompute" in case.options else HELD if "--sample" in case.options else HELD * DEPTH
    return 4e-9 * case.batch * layers * EDGE_WIDTH * weights(case.widths)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the line through log size and log cost, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def report(rows: list[dict[str, Any]], smallest: int) -> list[str]:
    """Exponents of both fields, trained and sampled, over sizes from ``smallest`` weights on."""
    lines = []
    for name in (RELATIONAL, NEURONS, RELATIONAL + SAMPLING, NEURONS + SAMPLING):
        kept = [row for row in rows if row["case"] == name and row.get("dim", 0) >= smallest]
        if len(kept) < 2:
            continue
        sizes = [row["dim"] for row in kept]
        times = [row["processor_seconds"] / row["batch"] for row in kept]
        held = [max(row["peak_gigabytes"] - row["imports_gigabytes"], 1e-3) / row["batch"] for row in kept]
        slopes = f"time {exponent(sizes, times):.2f}, memory {exponent(sizes, held):.2f}"
        lines.append(f"{name}, D = {min(sizes):,} to {max(sizes):,}: exponents: {slopes}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "growth.json")
    parser.add_argument("--cases", type=int, nargs="+", help="which rows to measure")
    parser.add_argument("--max-gigabytes", type=float, default=6.0)
    device_options(parser)
    args = parser.parse_args()
    known, rows = cases(), []
    for case in known if args.cases is None else [known[i] for i in args.cases]:
        needed = expected_gigabytes(case)
        if needed > args.max_gigabytes:
            numbers: dict[str, Any] = {"failed": f"skipped: needs about {needed:.1f} GB, --max-gigabytes is less"}
        else:
            numbers = run(case, passed_on(args))
        if "failed" not in numbers:
            numbers["networks_per_second"] = case.batch / numbers["processor_seconds"]
        rows = store(args.output, [row_of(case, numbers)])
    print_table(rows, f"growth, {args.device}, one thread")
    print("\n".join([*report(rows, 0), *report(rows, 7_960)]))


if __name__ == "__main__":
    main()
