"""From the tensors of foreign files to points of a weight space.

A file fits when, after a common prefix of all names, it has every tensor of the space with its shape, and nothing else
but what the network is known to have besides: counters of batch norm, which are passed over, and constants (frozen
parameters, further buffers), which must be those of the space's own network, since a point holds no others.

Nothing is transposed: weights in another layout are refused with a hint.  A square weight in another layout has the
right shape; nobody can notice it here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from wsflow.weightspace import WeightSpace
from wsflow.zoo.shards import ZooError

COUNTER = "num_batches_tracked"
"""Batch norm's count of training steps; of no effect on a trained network."""

SHOWN = 5
"""Names listed in an error."""


class Fitter:
    """Brings the tensors of many files into a weight space.

    Args:
        space: The weight space.
        prefix: Of the names in the files; names without it are passed over.  Found, file by file, where not given.
        ignore: A regular expression; tensors whose name it matches somewhere are passed over.

    Attributes:
        dtypes: Names of the types that were found.
        rounded: A file whose weights had to be rounded to float32; None where there was none.
    """

    def __init__(self, space: WeightSpace, prefix: str | None = None, ignore: str | None = None) -> None:
        self.space, self.prefix = space, prefix
        try:
            self.ignore = re.compile(ignore) if ignore else None
        except re.error as error:
            raise ZooError(f"ignore={ignore!r} is no regular expression: {error}") from None
        self.dtypes: set[str] = set()
        self.rounded: str | None = None
        self.weights = {t.name: t.shape for t in space.tensors}
        self.shapes = self.weights | {t.name: t.shape for t in space.buffer_tensors}
        own = space.template.state_dict()
        self._constants = {n: v for n, v in own.items() if n not in self.shapes and not n.endswith(COUNTER)}
        self._names: dict[frozenset[str], dict[str, str]] = {}

    @property
    def known(self) -> dict[str, tuple[int, ...]]:
        """The shape of everything that the network's ``state_dict`` can hold, by name."""
        return {name: tuple(value.shape) for name, value in self.space.template.state_dict().items()} | self.shapes

    def fit(self, state: Mapping[str, Tensor], where: str, lead: tuple[int, ...] = ()) -> Tensor:
        """Tensors by name to extended vectors.

        Args:
            state: Tensors (*lead, *shape) under their names in the file.
            where: The file, for errors.
            lead: Axes before each tensor's own shape; those of stacked networks.

        Returns:
            (*lead, D + D_b) float32.

        Raises:
            ZooError: where something is missing, unexpected, of another shape or type, or another constant.
        """
        names = self.names(state, where)
        own = {name: state[key] for key, name in names.items()}
        for name, shape in self.shapes.items():
            self._check_shape(own[name], name, shape, lead, where)
        for name in self._constants.keys() & own.keys():
            self._check_constant(own[name], name, lead, where)
        parts = {name: self._float(own[name], name, where) for name in self.shapes}
        return self.space.flatten(parts, buffers=True)

    def is_stack(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> bool:
        """Whether arrays of these shapes are stacks of many networks' tensors, and not one network's own.

        Raises:
            ZooError: as :meth:`fit` does for names.
        """
        found = {name: len(shapes[key]) - len(self.shapes[name]) for key, name in self._own(shapes, where).items()}
        return all(more == 1 for more in found.values())

    def names(self, keys: Collection[str], where: str) -> dict[str, str]:
        """Names in the space by names in a file, but for what is passed over.

        Raises:
            ZooError: where tensors are missing or unexpected; the message names them.
        """
        key = frozenset(keys)
        if key not in self._names:
            self._names[key] = self._match(key, where)
        return self._names[key]

    def _own(self, keys: Collection[str], where: str) -> dict[str, str]:
        return {key: name for key, name in self.names(keys, where).items() if name in self.shapes}

    def _match(self, found: frozenset[str], where: str) -> dict[str, str]:
        keys = {key for key in found if not (self.ignore and self.ignore.search(key))}
        prefix = self._find_prefix(keys, where) if self.prefix is None else self.prefix
        inside = {key: key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        if self.prefix and not inside:
            raise ZooError(f"{where}: no tensor's name begins with {prefix!r}; there are {listed(keys)}")
        outside = keys - inside.keys()
        if outside and self.prefix is None:
            raise ZooError(f"{where}: unexpected {listed(outside)}; --prefix '{prefix}' passes over what lacks it")
        self._check_names(set(inside.values()), keys, where)
        return {key: name for key, name in sorted(inside.items()) if not name.endswith(COUNTER)}

    def _find_prefix(self, keys: Collection[str], where: str) -> str:
        """The prefix with which all tensors of the space are there, or else most of them."""
        ends = {key.removesuffix(name) for name in self.weights for key in keys if key.endswith(name)}
        scores = {end: sum(end + name in keys for name in self.weights) for end in ends if end == "" or end[-1] == "."}
        whole = sorted(end for end, score in scores.items() if score == len(self.weights))
        if len(whole) > 1:
            raise ZooError(f"{where} holds several networks, under the prefixes {whole}: choose one by --prefix")
        return whole[0] if whole else max(sorted(scores), key=lambda end: scores[end], default="")

    def _check_names(self, names: set[str], keys: Collection[str], where: str) -> None:
        missing = self.shapes.keys() - names
        constants = self._constants.keys() & names
        if constants:
            missing |= self._constants.keys() - names
        if missing:
            raise ZooError(f"{where}: missing {listed(missing)}; there are {listed(keys)}")
        unexpected = {n for n in names - self.shapes.keys() - self._constants.keys() if not n.endswith(COUNTER)}
        if unexpected:
            raise ZooError(
                f"{where}: the network has no {listed(unexpected)}; if its function does not need them, "
                "--ignore PATTERN passes over them"
            )

    def _check_shape(self, value: Tensor, name: str, shape: tuple[int, ...], lead: tuple[int, ...], where: str) -> None:
        found = tuple(value.shape)
        if found == (*lead, *shape):
            return
        own = found[len(lead) :]
        hint = ""
        if len(own) == len(shape) and own in (shape[::-1], (*shape[2:], *shape[1::-1])):
            hint = "; it looks transposed, as Keras and JAX keep kernels: transpose every such tensor and import again"
        elif len(found) == len(lead) + len(shape) + 1:
            hint = "; a file of stacked networks is given by its own path, not by its folder's"
        raise ZooError(f"{where}: tensor {name!r} has shape {found}, expected {(*lead, *shape)}{hint}")

    def _check_constant(self, value: Tensor, name: str, lead: tuple[int, ...], where: str) -> None:
        constant = self._constants[name]
        self._check_shape(value, name, tuple(constant.shape), lead, where)
        if not torch.equal(value.to(constant.dtype), constant.expand_as(value)):
            raise ZooError(
                f"{where}: tensor {name!r} is no coordinate of the weight space and differs from that of the network "
                "as its factory builds it; a zoo cannot keep it"
            )

    def _float(self, value: Tensor, name: str, where: str) -> Tensor:
        if not value.is_floating_point() or value.layout != torch.strided:
            kind = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise ZooError(f"{where}: tensor {name!r} is {kind}; weights are floating point numbers")
        self.dtypes.add(str(value.dtype).removeprefix("torch."))
        result = value.float()
        if self.rounded is None and value.dtype == torch.float64 and not _exact(value, result):
            self.rounded = where
        return result


def listed(names: Collection[str]) -> str:
    """Names for an error, the first few of them."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    noun = "tensor" if len(ordered) == 1 else "tensors"
    return f"{noun} {', '.join(map(repr, ordered[:SHOWN]))}{more}" if ordered else "no tensors"


def _exact(value: Tensor, rounded: Tensor) -> bool:
    return bool(((rounded.double() == value) | value.isnan()).all())
