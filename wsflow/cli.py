"""The command line: ``wsflow fit | validate | collect | predict | evaluate``, ``experiment`` for all of them, and more.

``fit``, ``validate`` and ``test`` are Lightning's, configured by YAML files that compose
(``-c configs/mnist.yaml -c configs/geometry/geometric.yaml``) and by options that override them.  Everything that a
run leaves behind lies in ``trainer.default_root_dir``: ``checkpoints/``, ``logs/``, one config per stage,
``timing.json``.

Classes that this module imports can be named without their package in a config; any other class, such as a task of
your own, by its full path.  A mistake ends in one line on standard error and exit status 1; ``WSFLOW_DEBUG=1`` shows
the whole trace.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from wsflow import (
    __version__,
    alignment,
    callbacks,
    commands,
    fields,
    flow,
    geometry,
    losses,
    optim,
    schedule,
    tasks,
    weightspace,
)
from wsflow.api import read_checkpoint
from wsflow.callbacks import FailTogether, Preemption
from wsflow.checkpoint import take_weights
from wsflow.commands import parsers
from wsflow.commands.errors import one_line
from wsflow.commands.run import read_timing, record_timing, run_folder, run_loggers, shown
from wsflow.commands.stage_config import StageConfig
from wsflow.files import claimed, remove_leftovers
from wsflow.memory import keep_freed_memory
from wsflow.module import FlowMatchingModule
from wsflow.zoo import ZooDataModule, parse_share, process_share, share_from_environment
from wsflow.zoo.write import MANIFEST

PLUGINS = (alignment, callbacks, fields, flow, geometry, losses, optim, schedule, tasks, weightspace)
"""What configs can name without a package: jsonargparse finds the classes that have been imported."""

STAGES = ("fit", "validate", "test")

TERMINATED, INTERRUPTED, UNREAD = 128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + 13
"""Exit status of a process that a signal ended, by the shell's convention."""


class WsflowCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` of a flow on a zoo; ``claims`` is closed when they have ended."""

    def __init__(self, args: Sequence[str], claims: ExitStack) -> None:
        self._begin, self._claims = 0.0, claims
        super().__init__(
            FlowMatchingModule,
            ZooDataModule,
            save_config_callback=StageConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "prog": "wsflow"} | {s: {"exit_on_error": False} for s in STAGES},
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, but for predict, which needs no config."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in STAGES}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What follows from what: the weight space from the data, every seed from one."""
        parser.add_argument("--weights", type=str, default=None, help=parsers.WEIGHTS)
        parsers.link(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given arguments; what Python itself was called with is no concern of this class."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; in validate and test, its own settings of the model are used.

        In fit they are not: a resumed training is configured by the config, and says where that differs.  A job that
        SLURM or torchrun has started again goes on by itself.
        """
        config = self.config[self.config.subcommand]
        root = Path(config.trainer.default_root_dir or "runs")
        if self.config.subcommand == "fit" and commands.restarted():
            config.ckpt_path = commands.resumed(root, config.ckpt_path)
        best = root / "checkpoints" / "best.ckpt"
        if config.ckpt_path == "best" and best.is_file():  # Lightning knows the best of its own process alone
            config.ckpt_path = str(best)
        if config.ckpt_path and not re.fullmatch("last|best|hpc|registry(:.*)?", str(config.ckpt_path)):
            read_checkpoint(config.ckpt_path)
            if self.config.subcommand != "fit":
                super()._parse_ckpt_path()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """TensorBoard and CSV logs in the run folder, unless the config has other loggers; checkpoints beside them.

        Where torchrun or SLURM started the processes, these are the devices, unless the config gives a number.
        """
        config = self._get(self.config_init, "trainer")
        root = config.get("default_root_dir") or "runs"
        if str(precision := config.get("precision")) in ("16-true", "bf16-true"):
            raise ValueError(f"precision {precision}: weights are kept in float32; give {str(precision)[:-4]}mixed")
        kwargs |= commands.process_settings(config)
        if config.get("logger") is None and not config.get("fast_dev_run"):
            kwargs["logger"] = run_loggers(root)
        trainer = super().instantiate_trainer(default_root_dir=root, **kwargs)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(root, "checkpoints").resolve())
        for stopping in trainer.early_stopping_callbacks:
            if isinstance(stopping, EarlyStopping) and (stopping.monitor or "").startswith("val/"):
                stopping._check_on_train_epoch_end = False  # an epoch may end by max_steps, with nothing validated yet
        if self._fast:  # Lightning 2.6 saves last.ckpt even then
            for callback in trainer.checkpoint_callbacks:
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        trainer.callbacks += [LambdaCallback(on_exception=self._stopped), FailTogether(), Preemption()]  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Refuse to mix two trainings in a folder; collect the zoo if it is absent, and take the time."""
        root = Path(self.trainer.default_root_dir)
        self._refuse_checkpoints(root)
        kept = sorted(path.name for path in root.glob("checkpoints/*.ckpt"))
        last = any("last" in name for name in kept)
        if self._ckpt_path == "last" and not self._fast:
            for path in root.glob("checkpoints/last*.ckpt"):
                read_checkpoint(path)
        if self._ckpt_path == "last" and kept and not last and not self._fast:
            raise ValueError(
                f"{root / 'checkpoints'} has {', '.join(kept)} and no last checkpoint to go on from: name one with "
                "--ckpt_path, or choose another --trainer.default_root_dir; a ModelCheckpoint with the filename last "
                "keeps one"
            )
        resumed = self._ckpt_path is not None and (self._ckpt_path != "last" or last)
        if (weights := self._get(self.config, "weights")) is not None and not resumed:
            take_weights(self.model, read_checkpoint(weights), self.datamodule)
            times = read_timing(run_folder(weights))
            if "fit" in times and self.trainer.is_global_zero and not self._fast:
                record_timing(root, fit_before=times["fit"] + times.get("fit_before", 0.0))
        self._collect(root)
        if self.trainer.is_global_zero and not self._fast and self.trainer.checkpoint_callbacks:
            self._claim(root)
        self._begin = time.perf_counter()

    def _claim(self, root: Path) -> None:
        """Keep other trainings out of the folder until this one has ended, also those that began at the same time."""
        try:
            self._claims.enter_context(claimed(root / "checkpoints"))
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {root}: wait for it, or choose another --trainer.default_root_dir"
            ) from None
        self._refuse_checkpoints(root)
        remove_leftovers(root / "checkpoints")

    def _refuse_checkpoints(self, root: Path) -> None:
        if self._ckpt_path is None and not self._fast and any(root.glob("checkpoints/*.ckpt")):
            raise ValueError(
                f"{root} holds checkpoints of another training: continue it with --ckpt_path last, "
                "or choose another --trainer.default_root_dir"
            )

    def after_fit(self) -> None:
        """Write down how long training took, with what it took before it was resumed, and say what comes next."""
        if self.trainer.is_global_zero and not self._fast:
            self._record()
            callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            paths = [path for c in callbacks for path in (c.last_model_path, c.best_model_path) if path]
            stopped = any(callback.stopped_epoch for callback in self.trainer.early_stopping_callbacks)
            for path in sorted(paths, key=lambda path: (Path(path).stem == "last") == stopped)[:1]:
                print(f"next: wsflow predict --ckpt_path {shown(path)}")

    def _stopped(self, trainer: Trainer, *_: Any) -> None:
        """Write down how long a training took that a signal or an error ends."""
        if self.config.subcommand == "fit" and trainer.global_step and trainer.is_global_zero and not self._fast:
            self._record()

    def _record(self) -> None:
        before = read_timing(self.trainer.default_root_dir).get("fit", 0.0) if self._ckpt_path else 0.0
        record_timing(self.trainer.default_root_dir, fit=before + time.perf_counter() - self._begin)

    @property
    def _fast(self) -> bool:
        """Whether this is Lightning's dry run, which leaves nothing behind."""
        return bool(self._get(self.config_init, "trainer").get("fast_dev_run"))

    @property
    def _ckpt_path(self) -> str | None:
        path: str | None = self._get(self.config, "ckpt_path")
        return path

    def _collect(self, root: Path) -> None:
        """Collect a zoo that is absent: by shares, where torchrun or SLURM started the processes, else in the first.

        The others would wait for the first one, and not for longer than a process group is waited for.
        """
        data, begin = self.datamodule, time.perf_counter()
        share = process_share() if commands.launched() else (0, 1)
        first = getattr(rank_zero_only, "rank", 0) == 0
        if data.collector is None or Path(data.path, MANIFEST).exists() or (share[1] == 1 and not first):
            return
        if share[1] > 1:
            data.collector.collect(data.task, data.path, share, progress=first)
        else:
            data.prepare_data()
        if first:
            record_timing(root, collect=time.perf_counter() - begin)


def collect(args: Sequence[str]) -> None:
    """Train the runs of a zoo."""
    parser = parsers.training("wsflow collect", collect.__doc__ or "")
    parser.add_argument("--shard", type=str, help="This process's share i/n; read from torchrun or SLURM by default.")
    parser.add_argument("--dry-run", action="store_true", help="Only print the estimated time, memory and disk space.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress bar.")
    config = parser.parse_args(list(args))
    share = parse_share(config.shard) if config.shard else share_from_environment()
    data_parser = ArgumentParser(exit_on_error=False)
    data_parser.add_class_arguments(ZooDataModule, "data")
    data = data_parser.instantiate_classes(data_parser.parse_object({"data": config.data.as_dict()})).data
    commands.collect(data, share, config.dry_run, progress=not config.quiet)


def experiment(args: Sequence[str]) -> None:
    """Fit, predict and evaluate as experiment files say, and keep the figures."""
    parser = ArgumentParser(prog="wsflow experiment", description=experiment.__doc__ or "", exit_on_error=False)
    parser.add_argument("files", nargs="+", type=str, help="Experiment files, such as configs/experiments/*.yaml.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Of trainings and samples; the file's own by default.")
    parser.add_argument("--points", nargs="+", type=str, help="Only these points, by name; all by default.")
    parser.add_function_arguments(
        commands.experiment, as_group=False, skip={"files", "run", "check", "seeds", "points"}
    )
    given = parsers.switched(args, "--fit_only")
    if (processes := process_share()[1]) > 1:
        raise ValueError(
            f"{processes} processes would each run the same experiment: start it once, without srun's others"
        )
    commands.experiment(run=_stage, check=parsers.check, **parser.parse_args(given).as_dict())


def _stage(args: list[str]) -> None:
    """A command of an experiment; trainings that start processes apart, since each of these runs the whole command."""
    apart = args[0] == "fit" and commands.several(parsers.training("wsflow fit").parse_args(args[1:]).trainer)
    (commands.run_apart if apart else _dispatch)(args)


def stage(args: Sequence[str]) -> None:
    """Lightning's part."""
    with ExitStack() as claims:
        WsflowCLI(args, claims)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "fit": (stage, "Train a flow; collects the zoo if it is absent."),
    "validate": (stage, "Flow loss, and samples if the config asks for them, on validation runs."),
    "test": (stage, "Flow loss on test runs."),
    "collect": (collect, collect.__doc__ or ""),
    "predict": (parsers.predict, parsers.predict.__doc__ or ""),
    "evaluate": (parsers.evaluate, parsers.evaluate.__doc__ or ""),
    "experiment": (experiment, experiment.__doc__ or ""),
    "table": (parsers.table, parsers.table.__doc__ or ""),
    "transfer": (parsers.transfer, parsers.transfer.__doc__ or ""),
    "baselines": (parsers.baselines, parsers.baselines.__doc__ or ""),
    "bayes": (parsers.bayes, parsers.bayes.__doc__ or ""),
    "likelihood": (parsers.likelihood, parsers.likelihood.__doc__ or ""),
    "initialise": (parsers.initialise, parsers.initialise.__doc__ or ""),
    "report": (parsers.report, parsers.report.__doc__ or ""),
    "barrier": (parsers.barrier, parsers.barrier.__doc__ or ""),
    "import": (parsers.import_, parsers.import_.__doc__ or ""),
    "export": (parsers.export, parsers.export.__doc__ or ""),
    "zoo": (parsers.zoo, parsers.zoo.__doc__ or ""),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: What follows ``wsflow`` on the command line; taken from there by default.

    Returns:
        The exit status: 0, 1 after an error, 143 where SIGTERM ended a training, 130 after Ctrl-C, and 141 where nobody
        reads what is printed, as with ``wsflow ... | head``.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        with warnings.catch_warnings():
            _quieten()
            _dispatch(given)
    except (ValueError, OSError, ArgumentError, MisconfigurationException) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return UNREAD
        if os.environ.get("WSFLOW_DEBUG"):
            raise
        print(f"wsflow: error: {one_line(error)}", file=sys.stderr)
        return 1
    except SIGTERMException as stop:  # an exit that Lightning gives no status, so that a script would go on
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"wsflow: {stop}", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print("wsflow: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way out of a training
            raise
        print("wsflow: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def entry() -> None:
    """The console script; as with ``python -m wsflow``, classes of modules in the working directory are found."""
    keep_freed_memory()
    sys.path.append(str(Path.cwd()))
    try:
        status = main()
    finally:
        unread = _unread()
    sys.exit(UNREAD if unread else status)


def _unread() -> bool:
    """Whether the reader of standard output has gone, so that what is still to be printed is dropped."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    except (OSError, AttributeError):  # no file, or no poll on this system
        gone = False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _dispatch(args: list[str]) -> None:
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(
            "usage: wsflow <command> [options]\n\n"
            + "\n".join(f"  {n:<10} {text}" for n, (_, text) in COMMANDS.items())
        )
        print("\n'wsflow <command> --help' lists the options of a command.")
    elif name == "--version":
        print(__version__)
    elif name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; commands are {', '.join(COMMANDS)}")
    else:
        COMMANDS[name][0](args if name in STAGES else args[1:])


def _quieten() -> None:
    """Ignore warnings that tell a user of wsflow nothing."""
    for message in (
        r".*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
        r".*does not have many workers.*",  # networks lie in memory, workers would only copy them
        r"Checkpoint directory .* exists and is not empty",  # before_fit refuses what this warns of
        r"The dirpath has changed",  # a run's folder is the config's business
        r".*there is no last checkpoint available",  # --ckpt_path last: go on if there is something to go on from
        r"The `srun` command is available",  # on a cluster's login node, or under torchrun, it need not be used
        r".*`torch.jit.script` is deprecated.*",  # torch-geometric scripts functions when imported
    ):
        warnings.filterwarnings("ignore", message)
