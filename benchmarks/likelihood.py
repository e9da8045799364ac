"""Log-densities of generated networks 30-16-16-2 in 20 steps, against a loop of one backward pass per product.

The exact trace needs 802 products with the Jacobian at each of 20 Euler steps, Hutchinson's estimator 25.  Here all
products of a step share one forward pass and are computed many at once; the loop, in plain autograd, computes one after
another.  Of the exact loop only the first of the 20 steps is run, and its time multiplied.  Both are checked to give
the same divergence.  Fields have the sizes of ``configs/breast_cancer.yaml`` and ``configs/field/neurons.yaml``, with
random parameters; one thread; processor seconds for each network.

Usage: ``python benchmarks/likelihood.py [--output benchmarks/results/likelihood.json] [--networks 4] [--steps 20]``
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wsflow.fields import NeuronTransformer, RelationalTransformer, VectorField, Velocity, follow
from wsflow.flow import Euler, ExactTrace, GaussianPrior, Hutchinson, Likelihood, Sampler, Trace, sample_generators
from wsflow.flow.divergence import diverging
from wsflow.geometry import Euclidean
from wsflow.weightspace import WeightSpace, mlp

HERE = Path(__file__).parent
PROBES = 25
FIELDS: dict[str, Callable[[WeightSpace], VectorField]] = {
    "relational transformer": partial(RelationalTransformer, width=64, edge_width=16, depth=4, heads=4),
    "neuron transformer": partial(NeuronTransformer, width=64, depth=3, heads=4),
}


def moved(field: VectorField) -> VectorField:
    """Parameters away from where they start, since last layers start at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in field.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return field.eval()


def loop(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, vectors: Tensor, steps: int, of: int) -> Tensor:
    """The change of the log-density of one network (1, D) over the first steps of so many: a pass for each vector."""
    change = torch.zeros(())
    for step in range(steps):
        x = x.detach().requires_grad_()
        v = velocity(x, torch.full((1,), step / of))
        for vector in vectors:
            (pulled,) = torch.autograd.grad(v, x, vector[None], retain_graph=True)
            change = change - (pulled * vector).sum() / of
        x = x + v / of
    return change


def processor(function: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def measure(name: str, widths: tuple[int, ...], networks: int, steps: int) -> list[dict[str, float | str]]:
    """Rows for the exact trace and for the estimator."""
    space = WeightSpace.from_module(mlp(list(widths)))
    geometry, prior = Euclidean(space), GaussianPrior()
    torch.manual_seed(0)
    field = moved(FIELDS[name](space)).requires_grad_(False)
    velocity = follow(field, Velocity(), geometry)
    x = prior.sample(networks, geometry, torch.Generator().manual_seed(0))
    rows: list[dict[str, float | str]] = []
    for trace, vectors, run in (
        (Hutchinson(PROBES), torch.randn(PROBES, space.dim).sign(), steps),
        (ExactTrace(), torch.eye(space.dim), 1),
    ):
        count = networks if isinstance(trace, Hutchinson) else 1
        check(velocity, geometry, x[:1], vectors, steps)
        likelihood = Likelihood(trace, Sampler(Euler(), steps))
        generators = sample_generators(0, range(count))
        together = processor(partial(likelihood.sample, velocity, geometry, prior, x[:count], generators)) / count
        alone = processor(partial(loop, velocity, x[:1], vectors, run, steps)) * steps / run
        rows.append({"field": name, "trace": describe(trace), "networks": count, "together": together, "loop": alone})
        print(rows[-1], flush=True)
    return rows


def check(
    velocity: Callable[[Tensor, Tensor], Tensor], geometry: Euclidean, x: Tensor, vectors: Tensor, steps: int
) -> None:
    """Both ways give the same on the first step; it warms up, too."""
    few = vectors[: 2 * PROBES]
    rates = diverging(velocity, geometry, Hutchinson(len(few)), lambda: iter([few[:, None]]))
    expected = loop(velocity, x, few, 1, steps) * steps
    torch.testing.assert_close(rates(x, torch.zeros(1))[1].sum(), expected, rtol=1e-3, atol=1e-3)


def describe(trace: Trace) -> str:
    """A trace in words."""
    return f"Hutchinson, {trace.count} probes" if isinstance(trace, Hutchinson) else "exact"


def show(rows: list[dict[str, float | str]]) -> None:
    """Print the table."""
    table = Table("field", "trace", "networks at once", "together, s", "loop, s", "ratio")
    for row in rows:
        ratio = float(row["loop"]) / float(row["together"])
        numbers = [f"{row['networks']}", f"{row['together']:.2f}", f"{row['loop']:.1f}", f"{ratio:.1f}"]
        table.add_row(str(row["field"]), str(row["trace"]), *numbers)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "likelihood.json")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[30, 16, 16, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in FIELDS for row in measure(name, tuple(args.widths), args.networks, args.steps)]
    show(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"torch": torch.__version__, "steps": args.steps, "widths": args.widths, "rows": rows}
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
