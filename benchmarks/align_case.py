"""One row of ``align.py``, measured in this process: prints a line of JSON.

The plain loop is what one would write for one network at a time: NumPy in float64, indices of every neuron's profile
worked out beforehand, one matrix product and one ``scipy.optimize.linear_sum_assignment`` per visit of a group.  It
visits groups in random order from the order given, sweep after sweep, until a sweep changes nothing (Ainsworth et al.
2023, algorithm 1).  With ``forward`` it does what wsflow does: it starts from a forward pass and visits a group again
only after one next to it has changed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models import resnet18

from wsflow.alignment import WeightMatching, similarity
from wsflow.tasks import BreastCancer
from wsflow.weightspace import NetworkInitializer, WeightSpace
from wsflow.weightspace.networks import cnn
from wsflow.weightspace.symmetry import invert, random_permutations
from wsflow.zoo import Collector, EverySnapshot, Zoo

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (cnn, (1, 28, 28)),
    "resnet18": (resnet18, (3, 64, 64)),
}


class PlainLoop:
    """Weight matching of one perceptron after another."""

    def __init__(self, space: WeightSpace, reference: Tensor, forward: bool) -> None:
        self.reference, self.forward = reference.double().numpy(), forward
        groups = [group.name for group in space.hidden]
        near = [torch.cat([space.incoming(name), space.attached(name)], dim=1) for name in groups]
        self.first = [index.numpy() for index in near]
        self.whole = [torch.cat([n, space.outgoing(g)], dim=1).numpy() for n, g in zip(near, groups, strict=True)]
        self.generator = np.random.default_rng(0)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """The aligned network (D,)."""
        theta, count = theta.copy(), len(self.whole)
        if self.forward:
            for first, whole in zip(self.first, self.whole, strict=True):
                self.visit(theta, first, whole)
        due = np.ones(count, dtype=bool)
        while due.any():
            for g in self.generator.permutation(count):
                if due[g] or not self.forward:
                    due[g] = False
                    if self.visit(theta, self.whole[g], self.whole[g]):
                        due[max(g - 1, 0) : g + 2] = True
                        due[g] = not self.forward
        return theta

    def visit(self, theta: np.ndarray, known: np.ndarray, whole: np.ndarray) -> bool:
        """Permute one group by what is known of it; whether that changed anything."""
        gain = self.reference[known] @ theta[known].T
        _, order = linear_sum_assignment(gain, maximize=True)
        now = np.arange(len(order))
        if (order == now).all() or gain[now, order].sum() - gain.trace() <= 1e-9:
            return False
        theta[whole] = theta[whole[order]]
        return True


def clock(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function returns, with its wall and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    seconds, processor_seconds = time.perf_counter() - wall, time.process_time() - processor
    return result, {"seconds": seconds, "processor_seconds": processor_seconds}


def snapshots(count: int) -> dict[str, Any]:
    """Snapshots of 30-16-16-2 on breast cancer by the thesis's recipe, together and one after another."""
    task, schedule = BreastCancer(), EverySnapshot(4, 10)
    runs = -(-count // 80)
    with tempfile.TemporaryDirectory() as folder:
        Collector(runs=runs, epochs=50, snapshots=schedule).collect(task, Path(folder) / "zoo", progress=False)
        zoo = Zoo.open(Path(folder) / "zoo")
        theta = zoo.rows(torch.arange(len(zoo)))[:count]
    space, reference, result = task.space, theta[-1], {}
    some = theta[:: max(1, count // 1000)].double().numpy()
    for name, forward in (("plain loop", False), ("plain loop, same search", True)):
        loop = PlainLoop(space, reference, forward)
        aligned, times = clock(lambda loop=loop: np.stack([loop(one) for one in some]))
        near = float(similarity(space, torch.from_numpy(aligned), reference).mean())
        result[name] = {key: value / len(some) * count for key, value in times.items()} | {"similarity": near}
    WeightMatching().align(space, theta[:100], reference)
    found, times = clock(lambda: WeightMatching().match(space, theta, reference))
    return {**result, **times, "similarity": float(found.similarity.mean()), "timed": len(some)}


def unrelated(name: str, count: int) -> dict[str, Any]:
    """Networks as they initialise themselves, to another one; then permuted copies of that one."""
    network, shape = NETWORKS[name]
    space = WeightSpace.from_module(network(), torch.randn(2, *shape), check=False)
    generator = torch.Generator().manual_seed(0)
    theta, reference = torch.empty(count, space.dim), NetworkInitializer().sample(space, 1, generator)[0]
    for i in range(count):
        theta[i] = NetworkInitializer().sample(space, 1, generator)[0]
    before = peak_gigabytes()
    found, times = clock(lambda: WeightMatching().match(space, theta, reference))
    result = {**times, "similarity": float(found.similarity.mean()), "before_gigabytes": before}
    result["peak_gigabytes"] = peak_gigabytes()
    planted = random_permutations(space, count, generator)
    for i in range(count):
        theta[i] = space.permute(reference[None], [p[i] for p in planted])[0]
    found, times = clock(lambda: WeightMatching().match(space, theta, reference))
    same = [(a == b).all(1) for a, b in zip(found.perms, invert(planted), strict=True)]
    copies = {**times, "recovered": int(torch.stack(same).all(0).sum()), "descents": int(found.descents.max())}
    return {**result, "dim": space.dim, "permuted copies": copies}


def peak_gigabytes() -> float:
    """Peak resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["snapshots", *NETWORKS])
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    imports = peak_gigabytes()
    result = snapshots(args.count) if args.case == "snapshots" else unrelated(args.case, args.count)
    setting = {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"peak_gigabytes": peak_gigabytes(), **result, "imports_gigabytes": imports, "setting": setting}))


if __name__ == "__main__":
    main()
