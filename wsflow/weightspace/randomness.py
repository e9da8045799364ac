r"""Random numbers that depend on a seed and an index alone.

Every generated network and every run of a zoo has its own generator, so that the same networks come out however they
are batched or spread over processes.

Torch's CPU generator reads the lowest 32 bits of its seed, and a plain hash of (seed, index) to 32 bits gives two of
100,000 indices the same stream with probability 0.7: the same network twice.  Here the index passes through a
*bijection* of 32-bit numbers that the seed chooses, so that two indices of one seed never meet.

Training batches are drawn in the same way: a :class:`RowGenerator` holds a stream for each network of the batch, which
its place in the epoch chooses, so that n processes with a part of the batch each draw what one process with all of it
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsflow.weightspace.transfer import send

_MASK = 2**32 - 1


def sample_generator(seed: int, index: int, purpose: Sequence[int] = ()) -> torch.Generator:
    """A CPU generator that depends on the arguments alone; different indices give different streams.

    Args:
        seed: Not negative.
        index: The index of a sample or run, in [0, 2^32).
        purpose: Tells apart what one seed is used for; each purpose has a bijection of its own.

    Raises:
        ValueError: for numbers out of range.
    """
    if seed < 0 or not 0 <= index <= _MASK:
        raise ValueError(f"seed must not be negative and index must lie in [0, 2^32); got {seed} and {index}")
    return torch.Generator().manual_seed(_seed(index, *_keys(seed, purpose)))


def sample_generators(seed: int, indices: Iterable[int], purpose: Sequence[int] = ()) -> list[torch.Generator]:
    """One :func:`sample_generator` per index."""
    numbers = [int(index) for index in indices]
    if seed < 0 or (numbers and not 0 <= min(numbers) <= max(numbers) <= _MASK):
        raise ValueError(f"seed must not be negative and indices must lie in [0, 2^32); got seed {seed}")
    before, after = _keys(seed, purpose)
    return [torch.Generator().manual_seed(_seed(number, before, after)) for number in numbers]


class RowGenerator(torch.Generator):
    """A generator for the part of a batch that a process has, with one stream for each row.

    Used as any generator it draws what belongs to this process alone; :func:`draw_rows` and :func:`common` give draws
    that are the same however the batch is split.

    Attributes:
        rows: One generator per row.
        common: A generator in the same state on every process.
    """

    rows: list[torch.Generator]
    common: torch.Generator

    @classmethod
    def make(cls, seed: int, places: Sequence[int], purpose: Sequence[int], batch: Sequence[int]) -> RowGenerator:
        """The streams of a part of a batch.

        Args:
            seed: Not negative.
            places: Where its rows stand in the epoch, among those of all processes; at least one.
            purpose: What is drawn, and in which epoch.
            batch: Tells the batch from others of the epoch.
        """
        generator = cls()
        generator.manual_seed(_seed(places[0], *_keys(seed, (*purpose, *batch, 1))))
        generator.rows = sample_generators(seed, places, purpose)
        generator.common = torch.Generator().manual_seed(_seed(0, *_keys(seed, (*purpose, *batch, 0))))
        return generator

    def states(self) -> list[Tensor]:
        """States of all streams; a stream whose state is another has been drawn from."""
        return [stream.get_state() for stream in (self, self.common, *self.rows)]


def draw_rows(
    draw: Callable[[int, torch.Generator | None], Tensor], n: int, generator: torch.Generator | None
) -> Tensor:
    """``draw(n, generator)``, n rows; one by one where every row has its own stream."""
    if isinstance(generator, RowGenerator):
        return torch.cat([draw(1, row) for row in generator.rows])
    return draw(n, generator)


def common(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator for what all rows of a batch share, on whatever process they are."""
    return generator.common if isinstance(generator, RowGenerator) else generator


def fork(generator: torch.Generator) -> torch.Generator:
    """A new CPU generator seeded by the next draw of ``generator``.

    Its stream has nothing to do with what ``generator`` has drawn or will draw, even where two copies of one generator
    are used for different things.
    """
    seed = torch.randint(_MASK, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(_mix(int(seed)))


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of ``x``, drawn on the generator's device."""
    device = x.device if generator is None else generator.device

    def draw(n: int, source: torch.Generator | None) -> Tensor:
        return torch.randn(n, *x.shape[1:], generator=source, device=device, dtype=x.dtype)

    return send(draw_rows(draw, len(x), generator), x.device)


def _keys(seed: int, purpose: Sequence[int]) -> tuple[int, int]:
    """What chooses the bijection of a seed and a purpose."""
    before, after = np.random.SeedSequence(seed, spawn_key=purpose).generate_state(2)
    return int(before), int(after)


def _seed(index: int, before: int, after: int) -> int:
    return _mix(index ^ before) ^ after


def _mix(value: int) -> int:
    """A bijection of 32-bit numbers: alternating xor-shifts and products with odd numbers."""
    for factor in (0x7FEB352D, 0x846CA68B):
        value ^= value >> 16
        value = value * factor & _MASK
    return value ^ value >> 16
