"""``wsflow predict``: generated networks on disk, by any number of processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from wsflow.api import Flow, load
from wsflow.callbacks import FailTogether, Preemption, SampleWriter
from wsflow.checkpoint import fingerprints
from wsflow.commands.launch import check_devices, launched
from wsflow.commands.run import record_timing, run_folder, shown
from wsflow.description import plain
from wsflow.fields import Request
from wsflow.flow import Guidance, Noise, Prior, Sampler, Solver, StartsPrior, TimeGrid
from wsflow.memory import limit_bytes
from wsflow.module import FlowMatchingModule
from wsflow.sampling import check_batch
from wsflow.zoo import SamplesPart, Zoo, array_share, file_hash, parse_share


def predict(
    ckpt_path: str,
    n: int = 1000,
    out: str | None = None,
    seed: int = 0,
    steps: int = 16,
    solver: Solver | None = None,
    noise: float | Noise = 0.0,
    power: float = 1.0,
    grid: TimeGrid | None = None,
    guidance: Guidance | None = None,
    condition: Sequence[str] | None = None,
    condition_weight: float = 1.0,
    starts: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
    devices: int | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    memory: str | None = None,
) -> None:
    """Generate networks from a checkpoint.

    Args:
        ckpt_path: Checkpoint of a trained flow.
        n: How many networks.
        out: Folder to make; ``samples`` in the run's folder by default.
        seed: Network i depends on (seed, i) alone, not on batches or processes.
        steps: Solver steps.
        solver: Euler by default; Heun and RK4 evaluate the field 2 and 4 times a step, DormandPrince as often as its
            tolerances need.
        noise: Standard deviation of noise added before every step; or a class, AddedNoise or Churn.
        power: Step k of K ends at the time (k / K)^power; above 1 for smaller steps at early times.
        grid: The times of the steps as a class, such as CosineGrid; instead of power.
        guidance: What is added to the velocity to lower an objective of the weights; a class, or a file such as
            configs/guidance/task_loss.yaml.  An objective without a task of its own gets the flow's.
        condition: What a flow with labels is asked for: ``loss=0.2``, several values ``loss=0.1,0.2`` of which each
            network takes the next, or a range ``loss=0.1:0.5`` that networks are spread over; of several labels one
            after another.
        condition_weight: How much the request counts; 1 for the conditional flow, 0 for the unconditional one.
        starts: A zoo whose runs' initial weights the flow starts from, for flows whose prior is StartsPrior; runs that
            the flow was trained on are refused.
        batch_size: Networks solved at once; as many as the memory limit allows by default.
        accelerator: Such as cpu, gpu or auto.
        devices: Number of processes, one per device; as torchrun or SLURM started them, or 1, by default.
        overwrite: Whether an existing folder of generated networks may be replaced; where only a part of them is
            generated, whether that part may be.
        shard: The part ``i/n`` of the networks to generate, from 0/n on; that of this task of a SLURM array by default,
            and 0/1 for all.  The folder is complete when all parts are there.
        memory: What one process may take to generate networks, such as 2GiB; half of the device's free memory by
            default.  It is kept by estimate (wsflow.memory), which is printed.

    Raises:
        ValueError: where a setting, the checkpoint or the folder does not fit.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_batch(batch_size, memory)
    check_devices(devices, name="--devices")
    share = parse_share(shard) if shard else array_share()
    flow, begin = load(ckpt_path), time.perf_counter()
    module = flow.module
    module.sampler, module.sample_seed = Sampler(solver, steps, noise, power, guidance, grid), seed
    module.prior = sampling_prior(flow, starts)
    module.request = asked(module, condition, condition_weight)
    if guidance is not None:
        guidance.attach(flow.task)
    run = run_folder(ckpt_path)
    folder = Path(out) if out is not None else run / "samples"
    extra = {
        "checkpoint": str(ckpt_path),
        "sampling": {
            "seed": seed,
            "steps": module.sampler.steps,
            "solver": plain(module.sampler.solver),
            "noise": plain(noise),
            "power": power,
            **({"guidance": plain(guidance)} if guidance is not None else {}),
            **({"grid": plain(grid)} if grid is not None else {}),
            **({"condition": list(condition), "condition_weight": condition_weight} if condition else {}),
        },
        "geometry": module.hparams.get("geometry"),
        "data": flow.data,
    }
    part = None
    if share[1] > 1:
        identity = {"checkpoint_sha256": file_hash(Path(ckpt_path)), "starts": starts}
        part = SamplesPart(folder, share, n, extra, identity)
        if part.finished and not overwrite:
            part.complete(flow.weight_space)
            print(f"part {shown_share(share)} of the networks in {folder} is there already")
            return
    processes = launched() if devices is None else {}
    writer = SampleWriter(folder, extra, overwrite, part)
    trainer = Trainer(
        accelerator=accelerator,
        devices=processes.get("devices", devices or 1),
        num_nodes=processes.get("num_nodes", 1),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[writer, FailTogether()],
    )
    trainer.callbacks.append(Preemption())  # type: ignore[attr-defined]
    indices = range(n) if part is None else part.indices
    if len(indices) < trainer.world_size:
        raise ValueError(
            f"{len(indices)} networks cannot be shared by {trainer.world_size} processes: use fewer processes or "
            "generate more networks"
        )
    if batch_size is None:
        batch_size = planned(module, trainer, indices, memory)
    loader = DataLoader[int](indices, batch_size=batch_size)  # type: ignore[arg-type]
    trainer.predict(module, dataloaders=loader, return_predictions=False)
    if not trainer.is_global_zero:
        return
    if part is not None and not part.complete(flow.weight_space):
        print(f"part {shown_share(share)} of {n} generated networks in {folder}; other parts are missing")
        return
    record_timing(run, predict=time.perf_counter() - begin)
    most = "" if part is None else " in this part"
    print(
        f"{n} generated networks in {folder} ({writer.evaluations} evaluations of the field{most}); "
        f"next: wsflow evaluate --samples {shown(folder)}"
    )


def planned(module: FlowMatchingModule, trainer: Trainer, indices: Sequence[int], memory: str | None) -> int:
    """How many networks a process generates at once within a memory limit; the first process prints it."""
    mine = list(indices[: -(-len(indices) // trainer.world_size)])
    if not mine:
        return 1
    module.to(trainer.strategy.root_device)
    generation = module.generation(module.sample_seed, module.sampler, request=module.request)
    plan = generation.plan(mine, limit_bytes(memory, module.device, trainer.world_size))
    if trainer.is_global_zero:
        print(plan)
    return plan.networks


def asked(module: FlowMatchingModule, condition: Sequence[str] | None, weight: float) -> Request | None:
    """The request that words such as ``loss=0.2`` or ``epoch=5:10`` make.

    Raises:
        ValueError: for words that are no request, labels that the flow does not know, a flow without labels, and a
            weight without a request.
    """
    if not condition:
        if weight != 1:
            raise ValueError(f"a condition_weight of {weight} weighs nothing without --condition: give both or none")
        return None
    if module.conditioning is None:
        raise ValueError("the flow was trained without labels: leave --condition out, or train with data.labels")
    request = Request.parse(condition, weight)
    module.conditioning.check(request)
    return request


def shown_share(share: tuple[int, int]) -> str:
    """A share as it is given on the command line."""
    return f"{share[0]}/{share[1]}"


def sampling_prior(flow: Flow, path: str | None) -> Prior:
    """Where sampling starts: the flow's own prior or, for StartsPrior, the starts of runs that the flow has not seen.

    Args:
        flow: The flow.
        path: A zoo of such runs.

    Raises:
        ValueError: without a zoo where one is needed or with one where none is, and where a start was seen in training.
    """
    if not isinstance(flow.module.prior, StartsPrior):
        if path is None:
            return flow.module.prior
        raise ValueError(f"starts do not fit a flow whose prior is {type(flow.module.prior).__name__}")
    if path is None:
        raise ValueError(
            "this flow starts from given initial weights; those of training runs would give back training networks: "
            "give a zoo of other runs by --starts"
        )
    start = Zoo.open(path).start
    if start is None:
        raise ValueError(f"{path} keeps no initial weights")
    seen = set(fingerprints(start)) & set(flow.seen_starts or [])
    if seen:
        raise ValueError(f"{len(seen)} of {len(start)} runs in {path} were trained on; give a zoo of other runs")
    return StartsPrior(start)
