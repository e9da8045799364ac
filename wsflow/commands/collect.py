"""``wsflow collect``: train a zoo's runs, or this process's share of them."""

from __future__ import annotations

from wsflow.zoo import Collector, ZooDataModule


def collect(
    data: ZooDataModule,
    shard: tuple[int, int] = (0, 1),
    dry_run: bool = False,
    progress: bool = True,
) -> None:
    """Collect the zoo that a data module describes.

    Args:
        data: Task, collector and path.
        shard: (i, n), this process's share.
        dry_run: Only print the estimated time, memory and disk space.
        progress: Whether to show a progress bar.
    """
    collector = data.collector or Collector()
    if dry_run:
        found = collector.estimate(data.task)
        memory, disk = (found[name] / 2**20 for name in ("memory_bytes", "disk_bytes"))
        print(f"{collector.runs} runs of {data.task.name} to {data.path}, of {found['steps']:.0f} steps each")
        print(f"{found['shards']:.0f} shards; {found['chunk_runs']:.0f} runs train together")
        print(f"about {found['seconds']:.0f} s in one process, {memory:.0f} MiB of memory, {disk:.1f} MiB on disk")
        return
    complete = collector.collect(data.task, data.path, share=shard, progress=progress)
    state = "complete" if complete else "this process's share is done; other shards are missing"
    print(f"{data.path}: {state}")
