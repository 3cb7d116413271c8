"""Other ways through a training set than each record once an epoch.

    draws = Draws(source, Sampling(balance=True, repeats=3), seed=0, batch_size=126)
    draws.ids(7)  # the records of step 7: int64 [126]

As in order.py, the records of a step are a pure function of the seed and the step. A balanced
epoch and one of a mixture are drawn alike: the records fall into strata (classes, datasets),
and each stratum gets its share of the epoch's draws.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxcls.data import order
from jaxcls.errors import UserError

if TYPE_CHECKING:  # sources.py holds a Sampling
    from jaxcls.data.sources import Source


@dataclasses.dataclass(kw_only=True)
class Sampling:
    """How the records of the training split are drawn.

    Attributes:
      balance: draw every class equally often, to within one image in an epoch; the epoch stays
        as long as it is. The records of a class come in turns.
      repeats: copies of each record in a batch, augmented each by itself (repeated
        augmentation, Hoffer et al. 2020, arXiv 1901.09335), 1 or more; it must divide the
        batch. An epoch has as many steps as before: it takes `repeats` of them to see all
        records.
      limit: records of each class that are trained on, 1 or more; None takes all. A smaller
        limit takes some of those of a larger one.
      limit_seed: of the choice of these records, 0..2**32 - 1: the run's seed does not change
        it.
    """

    balance: bool = False
    repeats: int = 1
    limit: int | None = None
    limit_seed: int = 0

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        for name, value, low, high in (
            ("repeats", self.repeats, 1, 1024),
            ("limit", 1 if self.limit is None else self.limit, 1, 2**31),
            ("limit_seed", self.limit_seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"data.sampling.{name} must lie in {low}..{high}, not {value}."
                )


class Draws:
    """Which records make up each step of a run."""

    def __init__(
        self, source: "Source", sampling: Sampling, *, seed: int, batch_size: int
    ):
        """Prepares to draw.

        Args:
          source: the training set, to which sampling.limit has been applied. If it has
            `strata`, as a mixture has, those get the shares that they name.
          sampling: how it is drawn.
          seed: the run's seed.
          batch_size: images in a step over all hosts.

        Raises:
          ValueError: if the copies of a record do not divide the batch.
        """
        if batch_size % sampling.repeats:
            raise ValueError(
                f"batch_size {batch_size} is no multiple of data.sampling.repeats "
                f"{sampling.repeats}."
            )
        self._seed = seed
        self._batch_size = batch_size
        self._repeats = sampling.repeats
        self._num_records = len(source)
        self._strata: Strata | None = getattr(source, "strata", None)
        if sampling.balance:
            self._strata = Strata.of_classes(labels_of(source))

    def ids(self, step: int) -> np.ndarray:
        """Returns the records of global step `step`, in row order: int64 [batch_size]."""
        different = self._batch_size // self._repeats
        if self._strata is None:
            ids = order.record_ids(self._seed, step, different, self._num_records)
        else:
            steps = order.steps_per_epoch(self._num_records, different)
            epoch, batch = divmod(step, steps)
            drawn = _epoch(self._strata, self._seed, epoch, steps * different)
            ids = drawn[batch * different : (batch + 1) * different]
        if self._repeats == 1:
            return ids
        # What is dealt by place in the batch, or mixed with the next row, must not always be
        # the same for the copies of a record.
        bits = order.philox(self._seed, step, order.ROWS)
        return np.repeat(ids, self._repeats)[order.permutation(bits, self._batch_size)]


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

    @classmethod
    def of_classes(cls, labels: np.ndarray) -> "Strata":
        """Returns the classes that occur in labels, int [n], all with the same share."""
        members = _by_class(labels)
        return cls(members, [1.0] * len(members))

    def draw(self, seed: int, epoch: int, size: int) -> np.ndarray:
        """Returns the records of an epoch of `size` draws, int64 [size].

        Each group gets its share of them to within one draw; which groups get the draws that do
        not divide changes from epoch to epoch, in proportion to the shares. No record of a
        group comes again before all of it have come.
        """
        word = int(order.philox(seed, epoch, order.OFFSET).random_raw())
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
                bits = order.philox(seed, epoch, order.STRATUM, group)
                words = bits.random_raw(rounds * len(members)).reshape(rounds, -1)
                places = np.argsort(words, axis=1, kind="stable").ravel()[:count]
                drawn[end - count : end] = members[places]
        return drawn[order.epoch_permutation(seed, epoch, size)]


# As in order.py: the steps of an epoch share its draws.
@functools.lru_cache(maxsize=4)
def _epoch(strata: Strata, seed: int, epoch: int, size: int) -> np.ndarray:
    return strata.draw(seed, epoch, size)


def all_labels(source: "Source") -> np.ndarray:
    """Returns the labels of every record: int [n], or uint8 [n, classes] of ones and zeros
    where an image may have any number of them.

    Raises:
      UserError: if the source does not know them without reading its images.
    """
    labels = getattr(source, "labels", None)
    if labels is None:
        raise UserError(
            f"{source!r} does not tell the class of each image in advance (`labels`, integers "
            "[n]), which data.sampling.balance, data.sampling.limit and a loss that counts "
            "the images of each class need."
        )
    return np.asarray(labels)


def labels_of(source: "Source") -> np.ndarray:
    """Returns the class of every record, int [n].

    Raises:
      UserError: if the source does not know them without reading its images, or an image may
        have any number of them.
    """
    labels = all_labels(source)
    if labels.ndim != 1:
        raise UserError(
            f"the images of {source!r} have any number of classes each: they cannot be drawn "
            "by class. Leave out data.sampling.balance and data.sampling.limit."
        )
    return labels


def class_counts(source: "Source") -> np.ndarray:
    """Returns the number of images of each class, int64 [classes]: with any number of classes
    an image, it counts for each.

    Raises:
      UserError: if the source does not know them without reading its images.
    """
    labels = all_labels(source)
    if labels.ndim == 2:
        return labels.sum(0, dtype=np.int64)
    return np.bincount(labels, minlength=len(source.class_names))


def few_of_each_class(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Returns `limit` records of each class, or all where it has fewer: int64 [m], ascending.

    Args:
      labels: int [n].
      limit: 1 or more; the records of a smaller one are among those of a larger one.
      seed: of the choice, 0 <= seed < 2**64.
    """
    chosen = [
        members[
            order.permutation(order.philox(seed, 0, order.LIMIT, group), len(members))
        ]
        for group, members in enumerate(_by_class(labels))
    ]
    return np.sort(np.concatenate([members[:limit] for members in chosen]))


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Returns the records of each class that occurs in labels, int [n]."""
    by_class = np.argsort(labels, kind="stable")
    starts = np.unique(labels[by_class], return_index=True)[1]
    return np.split(by_class, starts[1:])
