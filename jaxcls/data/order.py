"""Which records make up which step: arithmetic, not the state of an iterator.

Everything here is a pure function of (seed, step, batch size, number of records), so a run
goes on from any step without replaying the ones before, on any number of hosts and workers.
"""

import functools

import numpy as np


# The steps of an epoch share its order; batches are made ahead, so that epochs overlap.
@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns the order of all records in one epoch: a uniform permutation, int64 [n].

    Sorts one 64-bit word a record, drawn by the counter-based generator Philox (Salmon et
    al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the key (seed, epoch).
    NumPy promises the raw words for ever, but not what its shuffles make of them.

    Args:
      seed: 0 <= seed < 2**64.
      epoch: 0 for the first pass.
      num_records: n, the size of the training set.
    """
    key = np.array([seed, epoch], np.uint64)
    words = np.random.Philox(key=key).random_raw(num_records)
    permutation = np.argsort(words, kind="stable")
    permutation.setflags(write=False)
    return permutation


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Returns the whole batches in an epoch; the n mod batch_size records left over in one
    epoch's order are left out of that epoch (other ones in each epoch)."""
    return num_records // batch_size


def record_ids(seed: int, step: int, batch_size: int, num_records: int) -> np.ndarray:
    """Returns the records of global step `step`, in row order: int64 [batch_size].

    Args:
      seed: the run's seed.
      step: 0 for the first step of the run.
      batch_size: images in a step over all hosts; at most num_records.
      num_records: the size of the training set.
    """
    epoch, batch = divmod(step, steps_per_epoch(num_records, batch_size))
    order = epoch_permutation(seed, epoch, num_records)
    return order[batch * batch_size : (batch + 1) * batch_size]
