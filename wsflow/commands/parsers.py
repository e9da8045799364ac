"""The command lines of simple commands: the options of each are the arguments of a function of its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ActionConfigFile, ActionParser, ArgumentParser, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from wsflow import commands
from wsflow.module import FlowMatchingModule
from wsflow.zoo import ZooDataModule
from wsflow.zoo import commands as zoo_commands

APPENDED = re.compile(r"^--aligner(=(?!\[).*)?$")
"""An aligner of several; a list in brackets replaces what came before."""

CONDITION = """What a flow with labels is asked for: loss=0.2, loss=0.1,0.2 (each network takes the next) or a range
loss=0.1:0.5; of several labels one after another."""

SEVERAL: Mapping[str, Mapping[str, str]] = {"predict": {"condition": CONDITION}, "likelihood": {"condition": CONDITION}}
"""By command, arguments that take words, as many as are given, with their help."""

WEIGHTS = "A checkpoint whose weights fit begins with, to train them on in another way; of no effect elsewhere."


def switched(args: Sequence[str], *names: str) -> list[str]:
    """Arguments in which a switch that stands alone is on; ``--switch true`` and ``--switch=false`` stay."""
    following = [*args[1:], ""]
    alone = [arg in names and after not in ("true", "false") for arg, after in zip(args, following, strict=False)]
    return [f"{arg}=true" if on else arg for arg, on in zip(args, alone, strict=True)]


def predict(args: Sequence[str]) -> None:
    """Generate networks from a checkpoint."""
    call(commands.predict, "predict", args)


def evaluate(args: Sequence[str]) -> None:
    """Compare generated networks with held-out runs and baselines."""
    call(commands.evaluate, "evaluate", args)


def likelihood(args: Sequence[str]) -> None:
    """Log-densities of networks under a trained flow."""
    call(commands.likelihood, "likelihood", args)


def transfer(args: Sequence[str]) -> None:
    """Carry a flow over to networks of other widths."""
    call(commands.transfer, "transfer", args)


def bayes(args: Sequence[str]) -> None:
    """Average the predictions of generated networks, and score ensembles of several sizes."""
    parser = ArgumentParser(prog="wsflow bayes", description=bayes.__doc__ or "", exit_on_error=False)
    parser.add_argument("--samples", nargs="+", type=str, required=True, help="Folders of generated networks, or zoos.")
    parser.add_function_arguments(commands.bayes, as_group=False, skip={"samples"})
    given = switched(args, "--heldout", "--calibrate")
    commands.bayes(**parser.instantiate_classes(parser.parse_args(given)).as_dict())


def baselines(args: Sequence[str]) -> None:
    """Compare ensembles by several methods, as a comparison file lists them."""
    parser = ArgumentParser(prog="wsflow baselines", description=baselines.__doc__ or "", exit_on_error=False)
    parser.add_argument("file", type=str, help="A comparison file, such as configs/baselines/*.yaml.")
    parser.add_argument("--methods", nargs="+", type=str, help="Only these, by key; all by default.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Of fits; the file's own by default.")
    parser.add_function_arguments(commands.baselines, as_group=False, skip={"file", "methods", "seeds"})
    commands.baselines(**parser.parse_args(list(args)).as_dict())


def initialise(args: Sequence[str]) -> None:
    """Train generated networks, random starts and trained networks on a task, and compare how fast they learn."""
    call(commands.initialise, "initialise", args)


def report(args: Sequence[str]) -> None:
    """Write a page about runs, with their tables, figures and model cards, that opens without a network."""
    parser = ArgumentParser(prog="wsflow report", description=report.__doc__ or "", exit_on_error=False)
    parser.add_argument("runs", nargs="+", type=str, help="Run folders, or folders of runs.")
    parser.add_function_arguments(commands.report, as_group=False, skip={"runs"})
    commands.report(**parser.parse_args(list(args)).as_dict())


def table(args: Sequence[str]) -> None:
    """Print the tables of experiments from the figures kept, or bring a page up to date."""
    parser = ArgumentParser(prog="wsflow table", description=table.__doc__ or "", exit_on_error=False)
    parser.add_argument("files", nargs="*", type=str, help="Experiment files; with a page, those it names by default.")
    parser.add_function_arguments(commands.table, as_group=False, skip={"files"})
    commands.table(**parser.parse_args(list(args)).as_dict())


def barrier(args: Sequence[str]) -> None:
    """Measure the loss on the lines between the networks of a zoo, before and after alignment."""
    call(commands.barrier, "barrier", [APPENDED.sub(r"--aligner+\1", arg) for arg in args])


def import_(args: Sequence[str]) -> None:
    """Make a zoo of networks that were trained elsewhere."""
    parser = ArgumentParser(prog="wsflow import", description=import_.__doc__ or "", exit_on_error=False)
    parser.add_argument("path", type=str, help="A folder of files of one network each, or a file of many networks.")
    parser.add_argument("--network", action=ActionParser(network_parser()))
    parser.add_function_arguments(commands.import_, as_group=False, skip={"path", "network"})
    given = switched(["--drop_invalid" if arg == "--drop-invalid" else arg for arg in args], "--drop_invalid")
    config = parser.instantiate_classes(parser.parse_args(given)).as_dict()
    network = {name: value for name, value in config.pop("network").items() if value is not None}
    commands.import_(network=network if "class_path" in network else None, **config)


def network_parser() -> ArgumentParser:
    """Options, or a file, that describe a network."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--class_path", type=str | None, help="A function or class that returns the network.")
    parser.add_argument("--init_args", type=dict[str, Any], default={}, help="Its arguments.")
    parser.add_argument("--input_shape", type=list[int] | None, help="Shape of one input; where the network needs it.")
    parser.add_argument("--output_activation", type=str, default="softmax", help="identity for all but classifiers.")
    parser.add_argument("--select", type=str | None, help="Pattern of parameters to model; the others are frozen.")
    return parser


def export(args: Sequence[str]) -> None:
    """Write networks of a zoo, or generated ones, to one file each."""
    parser = ArgumentParser(prog="wsflow export", description=export.__doc__ or "", exit_on_error=False)
    parser.add_argument("--index", nargs="+", type=str, default=["all"], help="Places in the zoo, or all.")
    parser.add_function_arguments(commands.export, as_group=False, skip={"index"})
    commands.export(**parser.parse_args(list(args)).as_dict())


def zoo(args: Sequence[str]) -> None:
    """Look at zoos, check, merge or cut them."""
    parser = ArgumentParser(prog="wsflow zoo", description=zoo.__doc__ or "", exit_on_error=False)
    choices = parser.add_subcommands(dest="command")
    for function in (zoo_commands.info, zoo_commands.verify, zoo_commands.merge, zoo_commands.subset):
        name, short = function.__name__, summary(function)
        inner = ArgumentParser(description=short, exit_on_error=False)
        inner.add_argument("paths" if name == "merge" else "path", nargs="+" if name == "merge" else None)
        inner.add_function_arguments(function, as_group=False, skip={"paths", "path"})
        choices.add_subcommand(name, inner, help=short)
    config = parser.parse_args(switched(args, "--final_only"))
    getattr(zoo_commands, config.command)(**config[config.command].as_dict())


def call(function: Callable[..., None], name: str, args: Sequence[str]) -> None:
    """Call a function with arguments parsed by its signature; what is False by default can be given as a switch.

    Args:
        function: The function.
        name: Of the command.
        args: What follows it.
    """
    parser, config = parsed(function, name, args)
    function(**parser.instantiate_classes(config).as_dict())


def parsed(function: Callable[..., None], name: str, args: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """The parser of a function's signature, and what it makes of arguments; as for :func:`call`."""
    parser = ArgumentParser(prog=f"wsflow {name}", description=summary(function), exit_on_error=False)
    several = SEVERAL.get(name, {})
    for word, text in several.items():
        parser.add_argument(f"--{word}", nargs="+", type=str, help=text)
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip=set(several))
    switches = {f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.default is False}
    return parser, parser.parse_args(switched(args, *switches))


def training(prog: str, description: str = "") -> LightningArgumentParser:
    """A parser that takes what ``fit`` takes, for what runs no training."""
    parser = LightningArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A config as for fit; its data part is used.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="As for fit; of no effect on a zoo.")
    parser.add_argument("--weights", type=str, default=None, help=WEIGHTS)
    parser.add_lightning_class_args(ZooDataModule, "data")
    parser.add_lightning_class_args(FlowMatchingModule, "model")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    link(parser)
    return parser


def link(parser: LightningArgumentParser) -> None:
    """Link a training's arguments that follow from others: the weight space from the data, every seed from one."""
    parser.link_arguments("data.space_description", "model.space", apply_on="instantiate")
    parser.link_arguments("data.label_description", "model.labels", apply_on="instantiate")
    parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)


def check(args: Sequence[str]) -> None:
    """Parse a command of an experiment, without running it.

    Args:
        args: What follows ``wsflow``: one of fit, collect, transfer, predict and evaluate, and its arguments.

    Raises:
        ValueError: for arguments that the command does not take; ``argparse.ArgumentError`` for some of them.
    """
    name, *rest = args
    if name in ("fit", "collect"):
        training(f"wsflow {name}").parse_args(rest)
    else:
        parsed(getattr(commands, name), name, rest)


def summary(function: Callable[..., Any]) -> str:
    """The first line of a function's docstring."""
    return (function.__doc__ or "").partition("\n")[0]
