r"""Flows that are told something of the network they are to generate: labels, and guidance without a classifier.

*Labels.*  Each label v (a loss, an epoch) becomes :math:`z = (\log v - m) / s` or, where it is not positive or of one
order of magnitude, :math:`z = (v - m) / s`, with mean m and standard deviation s of the train networks, kept in the
checkpoint.  A field is told

.. math:: (z, \; \sin k z, \; \cos k z \ (k = 1, 2, 4), \; 0) \quad \text{or, of a label that is unknown,} \quad
          (0, \dots, 0, 1) ,

so that the column of the last entry is a learned embedding of what is not known.

*Classifier-free guidance* (Ho and Salimans 2022).  In training all labels of a network are dropped with probability p;
of several labels, each is also dropped by itself with probability p, so that requests may leave some open.  Sampling
with weight w follows

.. math:: v_\emptyset(x, t) + w \, (v_c(x, t) - v_\emptyset(x, t)) ,

the conditional flow at w = 1 and the unconditional one at w = 0; above 1 the request counts for more than it should, at
the price of diversity.  Weights other than 1 cost two evaluations of the field.

Requests are told apart by sample: of a list of values each sample takes the next; over a range they are spread by the
multiples of an irrational number, evenly however many samples there are (for a label that counts by its logarithm, on
that scale).  A sample's request depends on its index alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsflow.fields.base import VectorField
from wsflow.fields.parametrization import Parametrization
from wsflow.fields.self_conditioned import follow
from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.randomness import draw_rows
from wsflow.weightspace.transfer import send

TURNS = (1.0, 2.0, 4.0)
"""Frequencies of the sines of a normalised label."""

SLACK = 1e-3
"""Of a label's range, how far outside of it a request goes unnoticed."""

LEAST = 1e-6
"""Of a label's size, the spread below which it is rounding, and the label the same for all networks."""


@dataclass(frozen=True)
class Request:
    """What generated networks are to be like.

    Attributes:
        values: By the name of a label, its value; several, of which each sample takes the next; or a :class:`Range`.
            Labels that are not named are left open.
        weight: w; 1 for the conditional flow.
    """

    values: Mapping[str, float | Sequence[float] | Range]
    weight: float = 1.0

    @classmethod
    def parse(cls, words: Iterable[str], weight: float = 1.0) -> Request:
        """What words such as ``loss=0.2``, ``loss=0.2,0.3`` and ``epoch=5:10`` ask for.

        Raises:
            ValueError: for words that are no request.
        """
        values: dict[str, float | Sequence[float] | Range] = {}
        for word in words:
            name, _, text = word.partition("=")
            parts = text.split(":") if ":" in text else text.split(",")
            try:
                numbers = [float(part) for part in parts]
            except ValueError:
                numbers = []
            if not numbers or name in values or (":" in text and not (len(numbers) == 2 and numbers[0] < numbers[1])):
                raise ValueError(f"{word}: give name=value, name=value,value or name=low:high, each name once")
            values[name] = Range(*numbers) if ":" in text else numbers
        return cls(values, weight)

    @property
    def evaluations(self) -> int:
        """How often one velocity evaluates the field."""
        return 1 if self.weight == 1 else 2


@dataclass(frozen=True)
class Range:
    """Values from ``low`` to ``high``, spread over samples."""

    low: float
    high: float


class Conditioning(nn.Module):
    """Labels of networks as a field reads them; its statistics are saved with the flow.

    Args:
        labels: Names, and whether their logarithms count: ``{"name": ..., "log": ...}`` each.
        dropout: p, the probability that a network's labels are dropped in training.

    Raises:
        ValueError: for no labels, two of one name, or a probability out of [0, 1).
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    fitted: Tensor
    _log: Tensor

    def __init__(self, labels: Sequence[Mapping[str, Any]], dropout: float = 0.1) -> None:
        super().__init__()
        self.names = [str(label["name"]) for label in labels]
        if not labels or len(set(self.names)) < len(labels) or not 0 <= dropout < 1:
            raise ValueError(
                f"labels must have different names and dropout must lie in [0, 1); got {self.names}, {dropout}"
            )
        self.dropout = dropout
        self.register_buffer("_log", torch.tensor([bool(label.get("log")) for label in labels]), persistent=False)
        for name, value in {"mean": 0.0, "std": 1.0, "low": 0.0, "high": 0.0}.items():
            self.register_buffer(name, torch.full((len(labels),), value))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def size(self) -> int:
        """How many numbers a field is told."""
        return len(self.names) * (2 + 2 * len(TURNS))

    @torch.no_grad()
    def fit(self, values: Tensor | None, labels: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Set the statistics from the labels (N, K) of train networks; NaN is not counted.

        A field that has been trained goes on to read labels as it did: where the statistics are set, only the range of
        what was seen grows.

        Args:
            values: (N, K).
            labels: What the data says of them, as in the class's arguments; not compared where not given.

        Raises:
            ValueError: without values, for other labels than the flow's, for a label that is never known, and for one
                that is not positive where its logarithm counts.
        """
        given = [str(label["name"]) for label in labels] if labels is not None else self.names
        if values is None or values.shape[1] != len(self.names) or given != self.names:
            told = "no labels" if values is None else ", ".join(given) if labels else f"{values.shape[1]} labels"
            raise ValueError(f"the flow is told of {', '.join(self.names)}, and the data gives {told}")
        known_before = bool(self.fitted)
        for k, name in enumerate(self.names):
            known = values[:, k][~values[:, k].isnan()].double()
            if not len(known) or not known.isfinite().all():
                raise ValueError(f"label {name!r} is known of none of the train networks, or not finite")
            if self._log[k] and not known.min() > 0:
                raise ValueError(f"label {name!r} is not positive for all train networks, so it has no logarithm")
            low, high = known.min().to(self.low), known.max().to(self.high)
            self.low[k] = torch.minimum(self.low[k], low) if known_before else low
            self.high[k] = torch.maximum(self.high[k], high) if known_before else high
            if known_before:
                continue
            scaled = known.log() if self._log[k] else known
            spread = scaled.std(correction=0)
            self.mean[k], self.std[k] = scaled.mean(), torch.where(spread > LEAST * scaled.mean().abs(), spread, 1.0)
        self.fitted.fill_(True)

    def normalise(self, label: Tensor | None) -> Tensor:
        """z, (B, K), of labels (B, K).

        Raises:
            ValueError: without labels.
        """
        if label is None:
            raise ValueError(f"the data gives no labels for a flow that is told of {', '.join(self.names)}")
        scaled = torch.where(self._log, label.clamp_min(torch.finfo(label.dtype).tiny).log(), label)
        return (scaled - self.mean) / self.std

    def drop(self, label: Tensor, generator: torch.Generator | None) -> Tensor:
        """Labels (B, K) with those that training leaves out made NaN."""
        count = label.shape[1]
        u = send(draw_rows(lambda n, source: torch.rand(n, 1 + count, generator=source), len(label), generator), label)
        lost = u[:, :1] < self.dropout
        if count > 1:
            lost = lost | (u[:, 1:] < self.dropout)
        return label.masked_fill(lost.expand(-1, count), torch.nan)

    def forward(self, label: Tensor) -> Tensor:
        """What a field is told, (B, size), of labels (B, K); NaN for what is not known."""
        unknown = label.isnan()
        z = torch.where(unknown, 0.0, self.normalise(label))
        angles = z[..., None] * z.new_tensor(TURNS)
        told = torch.cat([z[..., None], angles.sin(), angles.cos()], dim=-1)
        told = torch.where(unknown[..., None], 0.0, told)
        return torch.cat([told, unknown[..., None].to(told)], dim=-1).flatten(1)

    def requested(self, request: Request | None, indices: Iterable[int]) -> Tensor:
        """Labels (n, K) that a request asks of samples; all NaN without one.

        Raises:
            ValueError: for labels that the flow does not know, and requests that leave some open where training never
                dropped them.
        """
        numbers = torch.as_tensor(list(indices), dtype=torch.float64)
        labels = torch.full((len(numbers), len(self.names)), torch.nan, dtype=torch.float64)
        values = {} if request is None else request.values
        self.check(Request({}) if request is None else request)
        ranges = [name for name in self.names if isinstance(values.get(name), Range)]
        for name, given in values.items():
            k = self.names.index(name)
            if isinstance(given, Range):
                part = numbers.mul(_irrational(len(ranges)) ** (1 + ranges.index(name))).add(0.5).frac()
                labels[:, k] = self._between(k, given, part)
            else:
                several = torch.tensor(_numbers(given), dtype=torch.float64)
                labels[:, k] = several[numbers.long() % len(several)]
        return labels.to(self.mean)

    def warn(self, request: Request) -> None:
        """Warn of values outside of what train networks have: there the flow has to guess."""
        self.check(request)
        for name, given in request.values.items():
            k = self.names.index(name)
            low, high = float(self.low[k]), float(self.high[k])
            ends = min(_numbers(given)), max(_numbers(given))
            slack = max(SLACK * (high - low), LEAST * abs(high))
            if ends[0] < low - slack or ends[1] > high + slack:
                asked = f"{ends[0]:.4g}" if ends[0] == ends[1] else f"{ends[0]:.4g} to {ends[1]:.4g}"
                warnings.warn(
                    f"{name}={asked} is outside of what the flow was trained on, {low:.4g} to {high:.4g}: "
                    "what comes out is a guess",
                    stacklevel=2,
                )

    def _between(self, k: int, given: Range, part: Tensor) -> Tensor:
        ends = torch.tensor([given.low, given.high], dtype=torch.float64)
        scaled = ends.log() if self._log[k] else ends
        values = scaled[0] + part * (scaled[1] - scaled[0])
        return values.exp() if self._log[k] else values

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that does not fit the flow, as :meth:`requested` does."""
        values, weight = request.values, request.weight
        unknown = sorted(set(values) - set(self.names))
        if unknown:
            raise ValueError(f"the flow knows no label {', '.join(unknown)}; its labels are {', '.join(self.names)}")
        for name, given in values.items():
            numbers = _numbers(given)
            finite = bool(numbers) and all(math.isfinite(number) for number in numbers)
            if not finite or (self._log[self.names.index(name)] and not min(numbers) > 0):
                raise ValueError(f"{name} is asked to be {numbers}; give finite numbers, positive ones for a logarithm")
        open_ = [name for name in self.names if name not in values]
        if not self.dropout and (open_ or weight != 1):
            what = f"{', '.join(open_)} cannot be left open" if open_ else f"the weight must be 1, not {weight}"
            raise ValueError(f"the flow was trained with all its labels (label_dropout 0): {what}")


def conditional(
    make: Callable[..., VectorField], space: WeightSpace, extra: int, conditioning: Conditioning | None
) -> VectorField:
    """A field that takes what ``conditioning`` tells, where there is one.

    Raises:
        ValueError: for a field that takes no condition.
    """
    if conditioning is None:
        return make(space, extra)
    try:
        return make(space, extra, condition=conditioning.size)
    except TypeError as error:
        raise ValueError(f"labels need a field with an argument 'condition': {error}") from error


def tell(
    conditioning: Conditioning | None, label: Tensor | None, generator: torch.Generator | None = None
) -> Tensor | None:
    """What a field is told of labels (B, K); with a generator some are left out, as in training."""
    if conditioning is None or label is None:
        return label
    told: Tensor = conditioning(label if generator is None else conditioning.drop(label, generator))
    return told


def follow_request(
    field: VectorField,
    parametrization: Parametrization,
    geometry: Geometry,
    conditioning: Conditioning | None,
    request: Request | None,
    indices: Sequence[int],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of one solution of the flow for these samples, as requested.

    Raises:
        ValueError: for a request of a flow without labels, and as :meth:`Conditioning.requested` does.
    """
    if conditioning is None:
        if request is not None:
            raise ValueError("the flow was trained without labels, so nothing can be asked of its networks")
        return follow(field, parametrization, geometry)
    label = send(conditioning.requested(request, indices), conditioning.mean.device)
    told = follow(field, parametrization, geometry, conditioning(label))
    if request is None or request.evaluations == 1:
        return told
    free, weight = follow(field, parametrization, geometry, conditioning(label * torch.nan)), request.weight

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = free(x, t)
        return v + weight * (told(x, t) - v)

    return velocity


def _numbers(given: float | Sequence[float] | Range) -> list[float]:
    ends = (given.low, given.high) if isinstance(given, Range) else given
    values: list[float] = torch.as_tensor(ends, dtype=torch.float64).flatten().tolist()
    return values


def _irrational(count: int) -> float:
    """1 / g with g^(count + 1) = g + 1: its powers spread points evenly in so many dimensions (one: golden ratio)."""
    g = 1.5
    for _ in range(60):
        g = (1 + g) ** (1 / (count + 1))
    return 1 / g
