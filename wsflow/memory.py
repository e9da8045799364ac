r"""How much memory there is, how much a computation takes, and how many networks fit.

The peak of what a batch of n networks takes is nearly linear in n: :math:`a + b n`.  It is measured on 1, 2, 4, ...
networks until twice as many take what the line through the last two says, and most of it grows with n; the largest n
within a limit follows.  Nothing above the limit is tried, as far as the line can tell.

On CUDA the allocator knows the peak.  Elsewhere the bytes of all tensors that are alive are counted at every operation;
what one operation takes inside and gives back before it ends, and freed memory that is kept, is not seen, so that the
process grows by more (a third, where it was measured).  Both count what a computation adds to what is there before it:
not the field's own weights.

*Freed memory.*  The GNU C library gives freed memory back to the system, which hands it out again page by page and
cleared.  A training step allocates and frees the same hundreds of megabytes each time: :func:`keep_freed_memory`.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SHARE = 0.5
"""Of the free memory, what is taken where nothing is said."""

CLOSE = 0.02
"""Relative difference of a measured peak from the expected one that ends the measuring."""

FIXED = 0.2
"""Share of a peak that may be the same for all sizes when measuring ends: it can hide what grows with the size."""

KEPT = 2**30
"""Bytes of freed memory that a process keeps for its next allocations."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt`` (malloc.h)."""


class BatchPlan(NamedTuple):
    """How many networks are generated at once.

    Attributes:
        networks: Their number.
        needed: Bytes that they are estimated to take.
        limit: Bytes that they may take.
    """

    networks: int
    needed: int
    limit: int

    def __str__(self) -> str:
        return f"{self.networks} networks at once (estimated {gib(self.needed)} of the limit {gib(self.limit)})"


def plan_batch(run: Callable[[int], object], most: int, limit: int, device: torch.device) -> BatchPlan:
    """The largest batch within a limit.

    Args:
        run: The computation, on a number of networks.
        most: No more networks than this; at least one.
        limit: In bytes.
        device: Where it runs.

    Raises:
        ValueError: where one network takes more than the limit.
    """
    if device.type == "cuda":
        run(1)  # libraries take their workspaces at the first call, and keep them
    n, peak = 1, peak_bytes(lambda: run(1), device)
    if peak > limit:
        raise ValueError(
            f"one network takes about {gib(peak)}, more than the limit of {gib(limit)}: raise the memory limit, or "
            "give a batch size of 1 to try all the same"
        )
    constant, slope = 0.0, float(peak)
    while 2 * n <= most and (expected := constant + slope * 2 * n) <= limit:
        before, n = peak, 2 * n
        peak = peak_bytes(lambda count=n: run(count), device)  # type: ignore[misc]
        slope = max(1.0, 2 * (peak - before) / n)
        constant = peak - slope * n
        if n >= 4 and abs(peak - expected) <= CLOSE * peak and constant <= FIXED * peak:
            break
    networks = max(1, min(most, int((limit - constant) / slope)))
    return BatchPlan(networks, int(constant + slope * networks), limit)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a computation holds at a time, without derivatives and uncompiled."""
    # A compiler must neither be started by sizes that never come again nor see the counter of tensors.
    compiler = sys.modules.get("torch._dynamo")
    with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiler else nullcontext():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            return int(torch.cuda.max_memory_allocated(device) - before)
        with LiveTensors() as live:
            run()
        return int(live.peak)


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make, as long as they are alive.

    Attributes:
        now: Bytes at present.
        peak: The most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, and note its results that share no memory with what was there before."""
        kwargs = kwargs or {}
        for tensor in _tensors((args, tuple(kwargs.values()))):
            self._note(tensor, 0)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._note(tensor, None)
        return result

    def _note(self, tensor: Tensor, size: int | None) -> None:
        """Count a tensor by its size, its storage's where None; wrappers of ``torch.func`` hold nothing themselves."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes() if size is None else size
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def limit_bytes(memory: str | None, device: torch.device, processes: int | None = None) -> int:
    """A memory limit in bytes: as given, or the :data:`SHARE` of a device's free memory.

    Args:
        memory: Such as ``2GiB``, or None.
        device: Where the memory is.
        processes: How many share a machine's memory where the device is the CPU; those of torch.distributed by default.

    Raises:
        ValueError: where the text is no size.
    """
    if memory is not None:
        return parse_bytes(memory)
    if processes is None:
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return int(SHARE * free_bytes(device) / (processes if device.type == "cpu" else 1))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free; of a CPU, what its machine and its control group let a process have."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(_machine(), _control_group())


def keep_freed_memory() -> bool:
    """Let this process keep up to :data:`KEPT` bytes that it frees, instead of giving them back and asking anew.

    Tensors of 32 MiB and more are given back at once all the same.  Nothing is changed where the user's environment
    says how memory is allocated (``MALLOC_...``, or ``GLIBC_TUNABLES`` with more than ``glibc.malloc.hugetlb``), and
    under other C libraries than GNU's.

    Returns:
        Whether it was changed.
    """
    tunables = [text for text in os.environ.get("GLIBC_TUNABLES", "").split(":") if text]
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if not all(text.startswith("glibc.malloc.hugetlb=") for text in tunables):
        return False
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # no library by that way, as on Windows
        return False
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(*setting) for setting in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, KEPT)))


def parse_bytes(text: str) -> int:
    """``"2GiB"`` or ``"500MB"`` as a number of bytes.

    Raises:
        ValueError: where it is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory must be a size such as 2GiB or 500MB, got {text!r}")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** "KMGT".index(prefix.upper()) * base) if prefix else int(float(number))


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.3g} GiB"


def _machine() -> int:
    """Free memory of this machine, with what it would give up if asked, where it says so."""
    file = Path("/proc/meminfo")
    if file.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(), re.MULTILINE)
        if found is not None:
            return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _control_group(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """What containers and jobs are still allowed by Linux's control groups: the process's own and those above it.

    Args:
        mount: Where version 2 is mounted; version 1 has its memory controller in the folder ``memory``.
        own: The file that says which groups the process is in.
    """
    free = [sys.maxsize]
    for line in own.read_text().splitlines() if own.is_file() else ["0::/"]:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = PurePosixPath(group).parts[1:]
        free += [_left(root.joinpath(*parts[:depth]), *names) for depth in range(len(parts) + 1)]
    return min(free)


def _left(group: Path, limit: str, usage: str, cache: str) -> int:
    """Bytes to the limit of a control group, with the files that it would drop from its cache."""
    try:
        most, used = ((group / name).read_text().strip() for name in (limit, usage))
    except OSError:
        return sys.maxsize
    if not most.isdecimal():
        return sys.maxsize
    counts = group / "memory.stat"
    kept = re.search(rf"^{cache} (\d+)$", counts.read_text(), re.MULTILINE) if counts.is_file() else None
    return max(0, int(most) - int(used) + (int(kept[1]) if kept else 0))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples and lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
