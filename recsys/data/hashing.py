"""Hashes of ids that are the same on every machine, in every process and in every release.

Why: the shard of a user and the held-out events of a random split must not depend on Python's hash
seed, on library versions or on the number of workers. The functions are vectorised in numpy over
the bytes of Arrow strings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # histories import the constants below
    from recsys.data.histories import Array

_PRIME: Final = np.uint64(0x100000001B3)
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
MULTIPLIER: Final = np.uint64(0xBF58476D1CE4E5B9)  # the first one of splitmix64's finaliser
_SECOND: Final = np.uint64(0x94D049BB133111EB)


def spread(values: Array) -> Array:
    """Spread the bits of 64-bit integers: the finaliser of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * MULTIPLIER
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def mix(values: Array) -> Array:
    """One step of splitmix64 for every integer: :func:`spread` after the golden ratio was added."""
    with np.errstate(over="ignore"):
        return spread(values.astype(np.uint64) + GOLDEN)


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2^31) for a tuple of integers, such as seed, epoch and rank: splitmix64 over
    them, one by one.

    >>> seed_of(1, 2) == seed_of(1, 2), seed_of(1, 2) == seed_of(2, 1)
    (True, False)
    """
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = mix(state ^ np.array([number % 2**64], dtype=np.uint64))
    return int(state[0] >> np.uint64(33))


def string_hashes(strings: pa.Array) -> Array:
    """A 64-bit hash of every string: a polynomial of its bytes modulo 2^64, then :func:`mix`; null
    hashes like "".

    >>> first, second, again = string_hashes(pa.array(["a", "b", "a"]))
    >>> bool(first == again), bool(first == second)
    (True, False)
    """
    parts = [
        _chunk_hashes(strings.slice(start, 1 << 20)) for start in range(0, len(strings), 1 << 20)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _chunk_hashes(strings: pa.Array) -> Array:
    binary = strings.cast(pa.large_binary()).fill_null(b"")
    _, offset_buffer, data_buffer = binary.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[
        binary.offset : binary.offset + len(binary) + 1
    ]
    lengths = np.diff(offsets)
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    sums, power = np.zeros(len(lengths), dtype=np.uint64), np.uint64(1)
    rows = np.flatnonzero(lengths)
    with np.errstate(over="ignore"):
        # one byte position of all strings at a time
        for position in range(int(lengths.max(initial=0))):
            power *= _PRIME
            rows = (
                rows
                if len(rows) == 0 or lengths[rows].min() > position
                else rows[lengths[rows] > position]
            )
            # +1, so that a byte of 0 counts
            sums[rows] += (data[offsets[rows] + position].astype(np.uint64) + np.uint64(1)) * power
        # the polynomial alone leaves short strings close together
        return mix(sums)


def pair_hashes(first: Array, second: Array, seed: int) -> Array:
    """A 64-bit hash for every pair of hashes, a pure function of the pair and the seed.

    Parameters
    ----------
    first, second : array of uint64
        The hashes of both members of each pair, of one shape.
    seed : int
        Seed of the result.

    Returns
    -------
    array of uint64
        One hash per pair.
    """
    with np.errstate(over="ignore"):
        return mix(mix(first ^ mix(np.array([seed], dtype=np.uint64))) + second)


def uniform(first: Array, second: Array, seed: int) -> Array:
    """:func:`pair_hashes` as float64 numbers in [0, 1).

    Parameters
    ----------
    first, second : array of uint64
        The hashes of both members of each pair, of one shape.
    seed : int
        Seed of the result.
    """
    # a float64 has 53 bits: 64 would round up to 1.0
    return np.asarray((pair_hashes(first, second, seed) >> np.uint64(11)) * 2.0**-53)
