r"""Random numbers that depend on a seed and an index alone.

Every generated network and every run of a zoo has its own generator, so that the same networks come out however they
are batched or spread over processes.

Torch's CPU generator reads the lowest 32 bits of its seed, and a plain hash of (seed, index) to 32 bits gives two of
100,000 indices the same stream with probability 0.7: the same network twice.  Here the index passes through a
*bijection* of 32-bit numbers that the seed chooses, so that two indices of one seed never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

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
    before, after = (int(key) for key in np.random.SeedSequence(seed, spawn_key=purpose).generate_state(2))
    return torch.Generator().manual_seed(_mix(index ^ before) ^ after)


def sample_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One :func:`sample_generator` per index."""
    return [sample_generator(seed, int(index)) for index in indices]


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
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _mix(value: int) -> int:
    """A bijection of 32-bit numbers: alternating xor-shifts and products with odd numbers."""
    for factor in (0x7FEB352D, 0x846CA68B):
        value ^= value >> 16
        value = value * factor & _MASK
    return value ^ value >> 16
