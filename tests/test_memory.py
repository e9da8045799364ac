"""Memory limits: what a batch takes is measured, estimated and kept."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import describe

from wsflow.fields import RelationalTransformer, SelfConditioned
from wsflow.flow import RK4, Sampler
from wsflow.geometry import Euclidean, Geometric
from wsflow.memory import (
    LiveTensors,
    _control_group,
    free_bytes,
    gib,
    limit_bytes,
    parse_bytes,
    peak_bytes,
    plan_batch,
)
from wsflow.module import FlowMatchingModule

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("text", "expected"), [("2GiB", 2 * 1024**3), ("1.5MB", 1_500_000), ("10 kB", 10_000), ("512", 512), ("1K", 1000)]
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected == limit_bytes(text, CPU)


def test_tensors_count_as_long_as_they_are_alive():
    old = torch.zeros(1000)
    with LiveTensors() as live:
        a = torch.zeros(1000)
        view = a.view(10, 100)[2]
        del a
        assert live.now == 4000  # the view keeps it
        parts = torch.split(old.add_(1), 100)  # what was there before counts nothing
        assert live.now == 4000
        del view, parts
        assert live.now == 0
        both = torch.cat([old, old])
        assert live.now == live.peak == 8000
    assert len(both) == 2000


def test_wrappers_of_derivatives_hold_nothing_themselves():
    module, x = torch.nn.BatchNorm1d(3).eval(), torch.ones(4, 3)
    with LiveTensors() as live:
        torch.func.grad(lambda y: copy.deepcopy(module)(y + y.clone()).sum())(x)
    assert live.peak >= 48


def work(n: int) -> torch.Tensor:
    """Holds three tensors of n x 100 numbers, and one of 500."""
    fixed, x = torch.ones(500), torch.ones(n, 100)
    y = x + 1
    return (x + y).sum() + fixed.sum()


def test_the_largest_batch_within_a_limit_is_found():
    assert peak_bytes(lambda: work(7), CPU) == 4 * (500 + 3 * 700 + 1)
    plan = plan_batch(work, 1000, 2004 + 60_000, CPU)
    assert plan.networks == 50
    assert plan.needed == plan.limit
    assert plan_batch(work, 20, 10**6, CPU).networks == 20
    assert plan_batch(work, 20, 3300, CPU).networks == 1
    assert str(plan._replace(needed=3 * 2**28, limit=2**30)) == (
        "50 networks at once (estimated 0.75 GiB of the limit 1 GiB)"
    )


def test_a_batch_that_grows_late_is_measured_until_it_is_a_line():
    sizes = []

    def late(n: int) -> None:
        sizes.append(n)
        torch.ones(max(1000, 100 * n))

    assert plan_batch(late, 10_000, 40_000, CPU).networks == 100
    assert max(sizes) == 64


def test_a_limit_below_one_network_is_an_error():
    with pytest.raises(ValueError, match=r"one network takes about .* more than the limit of .*: raise"):
        plan_batch(work, 10, 1000, CPU)


def test_half_of_the_free_memory_is_the_limit_unless_given():
    free = free_bytes(CPU)
    assert 2**20 < free < 2**50
    assert limit_bytes(None, CPU, processes=4) == pytest.approx(free / 8, rel=0.2)


def group(folder, limit, usage=0, cache=0, version=2):
    """A control group with these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    most, used, kept = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / used).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"active_file 7\n{kept} {cache}\nanon 9\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_a_job_and_the_groups_above_it_counts(tmp_path, version):
    """As SLURM makes them: the job has the limit, its step and task none, and the root no files."""
    root, own = (tmp_path / "memory" if version == 1 else tmp_path), tmp_path / "own"
    own.write_text(
        {1: "5:cpuset:/a\n4:memory,x:/slurm/job_7/step_0/task_0\n0::/\n", 2: "0::/slurm/job_7/step_0\n"}[version]
    )
    assert _control_group(tmp_path, own) == sys.maxsize
    nothing = "max" if version == 2 else 2**63 - 4096
    group(root / "slurm/job_7/step_0", nothing, version=version)
    assert _control_group(tmp_path, own) >= 2**62
    group(root / "slurm/job_7", 10 * MIB, 4 * MIB, MIB, version)
    group(root / "slurm/job_8", MIB, version=version)
    assert _control_group(tmp_path, own) == 7 * MIB
    group(root / "slurm", 6 * MIB, 5 * MIB, version=version)
    assert _control_group(tmp_path, own) == MIB
    group(root, 6 * MIB, 7 * MIB, version=version)
    assert _control_group(tmp_path, own) == 0


def test_a_container_sees_its_group_as_the_root(tmp_path):
    own = tmp_path / "own"
    group(tmp_path, 3 * MIB)
    assert _control_group(tmp_path, own) == 3 * MIB
    (tmp_path / "memory.stat").unlink()
    own.write_text("0::/docker/of-the-host\n")
    assert _control_group(tmp_path, own) == 3 * MIB


def module(geometry, field=None) -> FlowMatchingModule:
    field = field or partial(RelationalTransformer, width=16, edge_width=8, depth=2)
    return FlowMatchingModule(describe([20, 10, 10, 3]), geometry, field)


CASES = {
    "euler": (Euclidean, None, Sampler(steps=4)),
    "noise on spheres": (Geometric, None, Sampler(steps=4, noise=0.1)),
    "rk4": (Euclidean, None, Sampler(RK4(), steps=3)),
    "self-conditioned": (
        Euclidean,
        partial(SelfConditioned, field=partial(RelationalTransformer, width=16, edge_width=8, depth=1)),
        Sampler(steps=4),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_samples_stays_within_its_limit(case):
    geometry, field, sampler = CASES[case]
    flow, limit = module(geometry, field), 4 * MIB
    generation = flow.generation(0, sampler)
    plan = generation.plan(list(range(1000)), limit)
    assert plan.limit == limit
    assert 8 < plan.networks < 1000
    measured = peak_bytes(lambda: generation(range(plan.networks), plan.networks), CPU)
    assert measured <= limit
    assert plan.needed == pytest.approx(measured, rel=0.2)
    assert measured > 0.8 * limit  # as many as fit


def test_sampling_keeps_to_a_limit(monkeypatch):
    flow, sizes = module(Euclidean), []
    solve = Sampler.__call__

    def spy(self, velocity, geometry, x0, *args):
        sizes.append((self.steps, len(x0)))
        return solve(self, velocity, geometry, x0, *args)

    monkeypatch.setattr(Sampler, "__call__", spy)
    sampler = Sampler(steps=3)
    theta = flow.sample(range(40), 1, sampler, memory="2MiB")
    whole = [size for steps, size in sizes if steps == 3]
    assert sum(whole) == 40
    assert len(whole) > 1
    assert whole[0] == flow.generation(1, sampler).plan(list(range(40)), 2 * MIB).networks
    torch.testing.assert_close(theta, flow.sample(range(40), 1, sampler, batch_size=40), rtol=1e-5, atol=1e-5)
    assert flow.training
    assert all(part.training for part in flow.field.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "1kB"}, "one network takes about"),
        ({"memory": "1MiB", "batch_size": 2}, "exclude each other"),
        ({"memory": "some"}, "memory must be a size"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        module(Euclidean).sample([0], **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_cuda_stays_within_its_limit():
    flow, limit = module(Euclidean).cuda(), 64 * MIB
    generation = flow.generation(0, Sampler(steps=4))
    plan = generation.plan(list(range(10_000)), limit)
    measured = peak_bytes(lambda: generation(range(plan.networks), plan.networks), flow.device)
    assert measured <= 1.02 * limit
    assert plan.needed == pytest.approx(measured, rel=0.2)
    assert gib(plan.limit) == "0.0625 GiB"


STEPS = """
import ctypes, resource, torch
from wsflow.memory import keep_freed_memory
ctypes.CDLL(None).mallopt(-1, 131072)  # as at first: the library raises its thresholds by itself, but not always
print(int({keep}))
faults = 0
for size in (100_000, 300_000, 600_000):
    for step in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.ones(size) for _ in range(40)]
        del held
        if step > 2:
            faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def page_faults(keep: str, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults of steps that take up to 96 MB, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(keep=keep)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return bool(int(kept)), int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_step():
    kept, faults = page_faults("keep_freed_memory()")
    assert kept
    assert page_faults("keep_freed_memory()", GLIBC_TUNABLES="glibc.malloc.hugetlb=1")[0]
    assert page_faults("False")[1] > 3 * faults + 20_000


def test_the_users_own_settings_of_the_allocator_stay():
    assert not page_faults("keep_freed_memory()", MALLOC_ARENA_MAX="2")[0]
    assert not page_faults("keep_freed_memory()", GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0]
