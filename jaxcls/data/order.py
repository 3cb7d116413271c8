"""Which records make up which step: arithmetic, not the state of an iterator.

Everything here is a pure function of (seed, step, batch size, number of records), so a run
goes on from any step without replaying the ones before, on any number of hosts and workers.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST_ARRAY = 2**22
"""Records up to which the order of an epoch is an array: 32 MB and half a second for each, in
every process that loads. Orders of larger sets are computed where they are looked at."""

# What random words are for: each use has a range of the counter of its own, so that no two
# uses share words, whatever their keys.
ORDER, ROW_SEEDS, STRATUM, OFFSET, ROWS, LIMIT, CIPHER = range(7)


def philox(seed: int, index: int, use: int, stratum: int = 0) -> np.random.Philox:
    """Returns the counter-based generator Philox (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3"), whose raw words NumPy promises for ever.

    Args:
      seed: 0 <= seed < 2**64; with `index` the key.
      index: what the words belong to, an epoch or a step.
      use: ORDER and so on.
      stratum: a part of the records, where each has words of its own.
    """
    return np.random.Philox(
        key=np.array([seed, index], np.uint64),
        counter=np.array([0, 0, stratum, use], np.uint64),
    )


def permutation(bits: np.random.Philox, size: int) -> np.ndarray:
    """Returns a uniform permutation, int64 [size]: it sorts one 64-bit word for each place.
    NumPy does not promise what its own shuffles make of the words."""
    return np.argsort(bits.random_raw(size), kind="stable")


# The steps of an epoch share its order; batches are made ahead, so that epochs overlap.
@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns the order of all records in one epoch: a uniform permutation, int64 [n].

    Args:
      seed: 0 <= seed < 2**64.
      epoch: 0 for the first pass.
      num_records: n, the size of the training set.
    """
    order = permutation(philox(seed, epoch, ORDER), num_records)
    order.setflags(write=False)
    return order


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Returns the whole batches in an epoch; the n mod batch_size records left over in one
    epoch's order are left out of that epoch (other ones in each epoch)."""
    return num_records // batch_size


class Strata:
    """Records in groups, each with a share of the draws.

    Takes arrays of the size of the training set, in every process that loads.
    """

    def __init__(self, members: Sequence[np.ndarray], shares: Sequence[float]):
        """Makes groups.

        Args:
          members: the records of each, int64 [n_i], n_i >= 1.
          shares: of the draws, above 0; only their ratios matter.
        """
        self._members = members
        edges = np.cumsum(shares, dtype=np.float64)
        self._edges = edges / edges[-1]

    def draw(self, seed: int, epoch: int, size: int) -> np.ndarray:
        """Returns the records of an epoch of `size` draws, int64 [size].

        Each group gets its share of them to within one draw; which groups get the draws that do
        not divide changes from epoch to epoch, in proportion to the shares. No record of a
        group comes again before all of it have come.
        """
        word = int(philox(seed, epoch, OFFSET).random_raw())
        offset = (word + 0.5) / 2**64
        # Draws lie evenly in 0..1, at (i + offset) / size: a group has those up to its edge.
        ends = np.ceil(self._edges * size - offset).astype(np.int64)
        ends[-1] = size
        counts = np.diff(ends, prepend=0)
        drawn = np.empty(size, np.int64)
        for group, members in enumerate(self._members):
            count, end = counts[group], ends[group]
            if count:
                rounds = -(-count // len(members))
                bits = philox(seed, epoch, STRATUM, group)
                words = bits.random_raw(rounds * len(members)).reshape(rounds, -1)
                places = np.argsort(words, axis=1, kind="stable").ravel()[:count]
                drawn[end - count : end] = members[places]
        return drawn[epoch_permutation(seed, epoch, size)]


# The steps of an epoch share its draws, too.
@functools.lru_cache(maxsize=4)
def _stratified_epoch(strata: Strata, seed: int, epoch: int, size: int) -> np.ndarray:
    return strata.draw(seed, epoch, size)


def record_ids(
    seed: int,
    step: int,
    batch_size: int,
    num_records: int,
    *,
    strata: Strata | None = None,
    repeats: int = 1,
) -> np.ndarray:
    """Returns the records of global step `step`, in row order: int64 [batch_size].

    Args:
      seed: the run's seed.
      step: 0 for the first step of the run.
      batch_size: images in a step over all hosts; at most num_records, and a multiple of
        `repeats`.
      num_records: the size of the training set. Up to LARGEST_ARRAY the order of an epoch is
        exactly uniform; beyond that it is one of the permutations of `enciphered`.
      strata: parts of the records with a share of the draws each; None draws every record once
        an epoch.
      repeats: copies of each record in a batch.
    """
    different = batch_size // repeats
    steps = steps_per_epoch(num_records, different)
    epoch, batch = divmod(step, steps)
    places = slice(batch * different, (batch + 1) * different)
    if strata is not None:
        ids = _stratified_epoch(strata, seed, epoch, steps * different)[places]
    elif num_records <= LARGEST_ARRAY:
        ids = epoch_permutation(seed, epoch, num_records)[places]
    else:
        every_place = np.arange(places.start, places.stop)
        ids = enciphered(seed, epoch, num_records, every_place)
    if repeats == 1:
        return ids
    # What is dealt by place in the batch, or mixed with the next row, must not always be the
    # same for the copies of a record.
    shuffled = permutation(philox(seed, step, ROWS), batch_size)
    return np.repeat(ids, repeats)[shuffled]


def enciphered(
    seed: int, epoch: int, num_records: int, places: np.ndarray
) -> np.ndarray:
    """Returns what a keyed permutation of 0..n-1 has at some places, without an array of n.

    The places are numbers of a rectangle at least as large as n, left + rows * right. A
    generalised Feistel network (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains") adds in turns a keyed hash of one half to the other, which can be undone and so
    permutes the rectangle. Numbers beyond n go round again until they lie below: that
    permutes 0..n-1.

    Args:
      seed: 0 <= seed < 2**64; with `epoch` the key.
      epoch: 0 for the first pass.
      num_records: n, 1 <= n < 2**62.
      places: any integers [m], 0 <= place < n.

    Returns:
      int64 [m], different numbers 0..n-1 for different places.
    """
    keys = philox(seed, epoch, CIPHER).random_raw(8)
    height = math.isqrt(num_records - 1) + 1
    rows, columns = np.uint64(height), np.uint64(-(-num_records // height))
    numbers: Any = np.asarray(places).astype(np.uint64)
    outside = np.ones(numbers.shape, bool)
    while outside.any():
        left, right = numbers[outside] % rows, numbers[outside] // rows
        for left_key, right_key in keys.reshape(-1, 2):
            left = (left + _hash(right, left_key) % rows) % rows
            right = (right + _hash(left, right_key) % columns) % columns
        numbers[outside] = left + rows * right
        outside = numbers >= num_records
    return numbers.astype(np.int64)


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Returns a word for each value, uint64: the last steps of SplitMix64 (Steele et al. 2014,
    "Fast splittable pseudorandom number generators")."""
    words = values + key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def row_seeds(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns a seed for each row of a global step, for what is drawn on the host: uint64
    [batch_size], independent of the order."""
    seeds: Any = philox(seed, step, ROW_SEEDS).random_raw(batch_size)
    return seeds
