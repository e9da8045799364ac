"""What a checkpoint says of the model it holds: plain data, and refusals of one line."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wsflow.description import DescriptionError, plain
from wsflow.weightspace import WeightSpace

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def described(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters that rebuild a model made in Python.

    Args:
        arguments: Those that were given, ``space`` among them; without what has its default value.

    Returns:
        Plain data; where an argument has no description, the space and the reason alone.  Such a model trains and
        samples, but its checkpoint has to be told the arguments again.
    """
    try:
        return {name: plain(value) for name, value in arguments.items()} | {"_instantiator": INSTANTIATOR}
    except DescriptionError as error:
        return {"space": arguments["space"], "undescribed": str(error)}


class HasHyperparameters(Protocol):
    """A LightningModule, as far as its hyperparameters go."""

    @property
    def hparams(self) -> Any:
        """A mapping that can be changed."""


class HasWeights(Protocol):
    """A module of a weight space, as far as its weights go."""

    space: WeightSpace

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take weights that fit, or raise ValueError."""


def describe_hyperparameters(module: HasHyperparameters, init: Callable[..., Any]) -> None:
    """Where the command line has not given plain hyperparameters, describe the objects they hold.

    Args:
        module: The module that saved them.
        init: Its constructor, whose defaults are left out.
    """
    if "_instantiator" in module.hparams:
        return
    parameters = inspect.signature(init).parameters
    given = {name: value for name, value in module.hparams.items() if value is not parameters[name].default}
    module.hparams.clear()
    module.hparams.update(described(given))


def refuse_undescribed(stored: Mapping[str, Any]) -> None:
    """Raise ValueError for hyperparameters that rebuild no model."""
    if set(stored) == {"space", "undescribed"}:
        raise ValueError(
            f"the checkpoint cannot rebuild its model, which was made in Python with an argument that has no "
            f"description ({stored['undescribed']}): give load_from_checkpoint the arguments again"
        )


def refuse_other_space(stored: Mapping[str, Any], space: WeightSpace) -> None:
    """Raise ValueError for hyperparameters of a model of other networks than those of ``space``."""
    if stored.get("space") and WeightSpace.from_description(stored["space"]) != space:
        raise ValueError(
            f"the checkpoint was trained on networks {_name(stored['space'])}, "
            f"but this model is for {_name(space.description)}: another weight space"
        )


def compare_resumed(checkpoint: Mapping[str, Any], hparams: Mapping[str, Any], datamodule: object) -> None:
    """Hold a training that goes on against its checkpoint; warns of settings that are others now.

    Args:
        checkpoint: What it goes on from.
        hparams: The model's settings now.
        datamodule: The data module now.

    Raises:
        ValueError: where runs are split in another way, so that held-out ones would be trained on.
    """
    stored = checkpoint.get("hyper_parameters", {})
    if names := ", ".join(sorted(k for k in {*stored, *hparams} if stored.get(k) != hparams.get(k))):
        rank_zero_warn(f"the training goes on with other settings than the checkpoint's: {names}")
    before, now = _data(checkpoint, datamodule)
    _refuse_other_runs(before, now, ("fractions", "split_seed", "train_runs"))
    if before.get("path") != now.get("path") and {"path"} <= before.keys() & now.keys():
        rank_zero_warn(
            f"the training began with the zoo {before['path']} and goes on with {now['path']}: unless these are the "
            "same, runs that it has seen may count as held out"
        )


def _data(checkpoint: Mapping[str, Any], datamodule: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data module's arguments of a checkpoint, and those of one; empty where it cannot be described."""
    try:
        now = (plain(datamodule) or {}).get("init_args", {})
    except DescriptionError:
        return {}, {}
    return (checkpoint.get("data") or {}).get("init_args", {}), now


def _refuse_other_runs(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        was, given = (_listed(each.get(name)) for each in (before, now))
        if name in before.keys() & now.keys() and was != given:
            shown = "null" if was is None else was
            raise ValueError(
                f"the training that is to go on had data.{name} {was}, and this one has {given}: runs that were held "
                f"out would be trained on, or such that were trained on would count as new; pass --data.{name} {shown}"
            )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def fitting() -> Iterator[None]:
    """Raise ValueError where weights that are loaded within do not fit the model."""
    try:
        yield
    except RuntimeError as error:
        first = " ".join(str(error).split()[:40])
        raise ValueError(f"the checkpoint's weights do not fit this model's field: {first} ...") from error


def take_weights(module: HasWeights, checkpoint: Mapping[str, Any], datamodule: object = None) -> None:
    """Give a model the weights of a trained flow, to train them on in another way: by another loss, on other runs.

    Args:
        module: The model.
        checkpoint: What :func:`wsflow.api.read_checkpoint` gives.
        datamodule: The data module of the training to come.

    Raises:
        ValueError: where the flow was trained on another base network, its field is another one, or it was trained on
            the same zoo split in another way.
    """
    refuse_other_space(checkpoint["hyper_parameters"], module.space)
    before, now = _data(checkpoint, datamodule)
    if before.get("path") == now.get("path"):
        _refuse_other_runs(before, now, ("fractions", "split_seed"))
    module.load_state_dict(checkpoint["state_dict"])


def fingerprints(theta: Tensor) -> list[str]:
    """A hash of each network's weights (n, D)."""
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).hexdigest() for row in theta.float().cpu()]


def _name(description: Any) -> str:
    """A short form of a network's description."""
    args = ", ".join(f"{key}={value}" for key, value in (description or {}).get("init_args", {}).items())
    return f"{(description or {}).get('class_path', 'unknown').rpartition('.')[2]}({args})"
