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
"""The most records whose order in an epoch is an array: 32 MB and half a second for each epoch,
in every process that loads. The order of a larger set is computed place by place."""

# The uses of random numbers. Each has a range of the counter of its own, so that no two share
# numbers, whatever their keys.
ORDER, ROW_SEEDS, STRATUM, OFFSET, ROWS, LIMIT, CIPHER = range(7)


def philox(seed: int, index: int, use: int, stratum: int = 0) -> np.random.Philox:
    """Returns the counter-based generator Philox (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3"), whose raw 64-bit numbers NumPy promises for ever.

    Args:
      seed: 0 <= seed < 2**64; with `index` the key.
      index: an epoch or a step.
      use: ORDER and so on.
      stratum: a part of the records, where each has numbers of its own.
    """
    return np.random.Philox(
        key=np.array([seed, index], np.uint64),
        counter=np.array([0, 0, stratum, use], np.uint64),
    )


def permutation(bits: np.random.Philox, size: int) -> np.ndarray:
    """Returns a uniform permutation, int64 [size]: the order of one 64-bit number for each
    place. NumPy does not promise that its own shuffles stay the same."""
    return np.argsort(bits.random_raw(size), kind="stable")


# The steps of an epoch share its order. Batches are loaded ahead, so that epochs overlap.
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
    """Returns the number of whole batches in an epoch. The n mod batch_size records at the end
    of an epoch's order are left out, other ones in each epoch."""
    return num_records // batch_size


class Strata:
    """Parts of the records (classes, datasets), each with a fixed share of the draws.

    Takes arrays of the size of the training set, in every process that loads.
    """

    def __init__(self, members: Sequence[np.ndarray], shares: Sequence[float]):
        """Makes the parts.

        Args:
          members: the records of each part, int64 [n_i], n_i >= 1.
          shares: their shares of the draws, above 0; only the ratios matter.
        """
        self._members = members
        edges = np.cumsum(shares, dtype=np.float64)
        self._edges = edges / edges[-1]

    def draw(self, seed: int, epoch: int, size: int) -> np.ndarray:
        """Returns the records of an epoch of `size` draws, int64 [size].

        Each part gets its share to within one draw. The parts that get the draws left over
        change from epoch to epoch, in proportion to the shares. No record of a part comes again
        before all of them have come.
        """
        offset = (int(philox(seed, epoch, OFFSET).random_raw()) + 0.5) / 2**64
        # Draws lie evenly in 0..1, at (i + offset) / size: a part has those up to its edge.
        ends = np.ceil(self._edges * size - offset).astype(np.int64)
        ends[-1] = size
        counts = np.diff(ends, prepend=0).tolist()
        drawn = []
        for part, members in enumerate(self._members):
            rounds = -(-counts[part] // len(members))  # over all of them
            shape = rounds, len(members)
            keys = philox(seed, epoch, STRATUM, part).random_raw(math.prod(shape))
            places = np.argsort(keys.reshape(shape), axis=1, kind="stable").ravel()
            drawn.append(members[places[: counts[part]]])
        return np.concatenate(drawn)[epoch_permutation(seed, epoch, size)]


# The steps of an epoch share its draws.
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
    # Some transforms deal by place in the batch, or mix a row with the next: they must not
    # always treat the copies of a record alike.
    shuffled = permutation(philox(seed, step, ROWS), batch_size)
    return np.repeat(ids, repeats)[shuffled]


def enciphered(
    seed: int, epoch: int, num_records: int, places: np.ndarray
) -> np.ndarray:
    """Returns the values of a keyed permutation of 0..n-1 at some places, without an array of n.

    A place is left + rows * right, a cell of a rectangle of at least n cells. A generalised
    Feistel network (Black and Rogaway 2002, "Ciphers with arbitrary finite domains") adds a
    keyed hash of one half to the other, in turns; that can be undone, and so permutes the
    rectangle. Numbers beyond n go round again until they lie below, which permutes 0..n-1.

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
    """Returns a hash of each value, uint64: the last steps of SplitMix64 (Steele et al. 2014,
    "Fast splittable pseudorandom number generators")."""
    hashes = values + key
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def row_seeds(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns a seed for each row of a global step, for draws on the host: uint64 [batch_size],
    independent of the order."""
    return np.asarray(philox(seed, step, ROW_SEEDS).random_raw(batch_size))
