"""Seeds: the one way from numbers and words to a stream of random draws.

    generator(seed, epoch, "batches")             # a torch.Generator
    with seeded(seed, "weights"): resnet20(...)   # for what draws from PyTorch's global state

Every bit of every 64-bit number counts, and so do order and length: two tuples that differ in
anything give streams that have nothing to do with one another. Whoever draws for another purpose
names it by a word, instead of adding something to the seed.

PyTorch's own seeding reads 32 bits on a CPU: `manual_seed(5)` is `manual_seed(5 + 2**32)`. So
NumPy's `SeedSequence` mixes the tuple and fills the whole state of the Mersenne twister, as it does
for `numpy.random.MT19937`. On a GPU, whose generator counts under a key of 64 bits, it makes the
key. A CPU's draws are the same on every machine; a GPU's are others.

References:
    Matsumoto, Nishimura, Mersenne twister: a 623-dimensionally equidistributed uniform
    pseudo-random number generator, 1998; O'Neill, Developing a seed_seq alternative, 2015.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rectified.errors import UserError

_WORDS = 624  # of the twister, each in 8 bytes of what `Generator.get_state` gives,
_OFFSET = 24  # after the seed (8), what is left (4), whether it is seeded (4) and the place (8)


def generator(*entropy: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose draws follow from all that is given.

    Args:
        entropy: numbers in [0, 2^64), and words for what is drawn.
        device: that it draws on.

    Raises:
        UserError: if a number is out of range.

    Example:
        >>> torch.rand(2, generator=generator(5, "weights"))
        tensor([0.8011, 0.4434])
    """
    sequence = _sequence(entropy)
    made = torch.Generator(device)
    made.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    if made.device.type == "cpu":
        made.set_state(_filled(made.get_state(), sequence))
    return made


@contextmanager
def seeded(*entropy: int | str, device: torch.device | str = "cpu") -> Iterator[None]:
    """For a while the global states of the CPU and of `device` are seeded; then they are put back.

    Args:
        entropy: as for `generator`.
        device: whose state counts beside the CPU's; those of other GPUs are left alone.

    Raises:
        UserError: if a number is out of range.

    Example:
        >>> with seeded(0): first = torch.rand(3)
        >>> with seeded(0): print(torch.equal(torch.rand(3), first))
        True
    """
    device = torch.device(device)
    gpus = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(gpus):
        torch.set_rng_state(generator(*entropy).get_state())
        for gpu in gpus:
            torch.cuda.set_rng_state(generator(*entropy, device=gpu).get_state(), gpu)
        yield


def _sequence(entropy: tuple[int | str, ...]) -> np.random.SeedSequence:
    numbers = [_number(entry) for entry in entropy]
    # how many there are, then two words for each: SeedSequence itself tells (1, 0) neither from
    # (1,) nor (5, 1) from (5 + 2**32,)
    words = [len(numbers), *(word for n in numbers for word in (n & 0xFFFFFFFF, n >> 32))]
    return np.random.SeedSequence(words)


def _number(entry: int | str) -> int:
    if isinstance(entry, str):
        return int.from_bytes(hashlib.blake2b(entry.encode(), digest_size=8).digest(), "little")
    if not 0 <= entry < 2**64:
        raise UserError(f"seed must be in [0, 2**64), got {entry}")
    return entry


def _filled(state: Tensor, sequence: np.random.SeedSequence) -> Tensor:
    """A freshly seeded state with other words."""
    words = sequence.generate_state(_WORDS)
    words[0] |= 0x80000000  # of the first word one bit counts; a state of zeros would stay zero
    filled = state.clone()
    filled[_OFFSET : _OFFSET + 8 * _WORDS] = torch.from_numpy(
        words.astype(np.uint64).view(np.uint8)
    )
    return filled
