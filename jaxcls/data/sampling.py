"""Other ways through a training set than each record once an epoch.

    draws = Draws(source, Sampling(balance=True, repeats=3), seed=0, batch_size=126)
    draws.ids(7)  # the records of step 7: int64 [126]

As in order.py, the records of a step are a pure function of the seed and the step.
"""

import dataclasses
from typing import Annotated

import numpy as np
from annotated_types import Interval

from jaxcls.data import order
from jaxcls.data.sources import Source
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Sampling:
    """How the records of the training split are drawn.

    Attributes:
      balance: draw every class equally often, to within one image in an epoch; the epoch stays
        as long as it is. The records of a class come in turns.
      repeats: copies of each record in a batch, each with an augmentation of its own (repeated
        augmentation, Hoffer et al. 2020, arXiv 1901.09335), 1..1024; it must divide the
        batch. An epoch has as many steps as before: it takes `repeats` of them to see all
        records.
      limit: records of each class that are trained on, 1..2**31; None takes all. A smaller
        limit takes some of those of a larger one.
      limit_seed: chooses these records, 0..2**32 - 1; the run's seed does not.
    """

    balance: bool = False
    repeats: Annotated[int, Interval(ge=1, le=1024)] = 1
    limit: Annotated[int, Interval(ge=1, le=2**31)] | None = None
    limit_seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0


class Draws:
    """Which records make up each step of a run."""

    def __init__(
        self, source: Source, sampling: Sampling, *, seed: int, batch_size: int
    ):
        """Prepares to draw.

        Args:
          source: the training set, to which sampling.limit has been applied.
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
        self._strata = source.strata
        if sampling.balance:
            classes = records_by_class(one_label_each(source))
            self._strata = order.Strata(classes, [1.0] * len(classes))

    def ids(self, step: int) -> np.ndarray:
        """Returns the records of global step `step`, in row order: int64 [batch_size]."""
        different = self._batch_size // self._repeats
        ids = order.record_ids(
            self._seed, step, different, self._num_records, self._strata
        )
        if self._repeats == 1:
            return ids
        # What is dealt by place in the batch, or mixed with the next row, must not always be
        # the same for the copies of a record.
        bits = order.philox(self._seed, step, order.ROWS)
        return np.repeat(ids, self._repeats)[order.permutation(bits, self._batch_size)]


def known_labels(source: Source) -> np.ndarray:
    """Returns the labels of a source.

    Raises:
      UserError: if the source does not know them without reading its images.
    """
    if source.labels is None:
        raise UserError(
            f"{source!r} does not tell the class of each image in advance (`labels`, integers "
            "[n]), which data.sampling.balance, data.sampling.limit and a loss that counts "
            "the images of each class need."
        )
    return np.asarray(source.labels)


def one_label_each(source: Source) -> np.ndarray:
    """Returns the class of every record, int [n].

    Raises:
      UserError: if the source does not know them without reading its images, or an image may
        have any number of them.
    """
    labels = known_labels(source)
    if labels.ndim != 1:
        raise UserError(
            f"the images of {source!r} have any number of classes each: they cannot be drawn "
            "by class. Leave out data.sampling.balance and data.sampling.limit."
        )
    return labels


def class_counts(source: Source) -> np.ndarray:
    """Returns the number of images of each class, int64 [classes]. An image of several classes
    counts for each.

    Raises:
      UserError: if the source does not know its labels without reading its images.
    """
    labels = known_labels(source)
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
    chosen = []
    for number, members in enumerate(records_by_class(labels)):
        bits = order.philox(seed, 0, order.LIMIT, number)
        chosen.append(members[order.permutation(bits, len(members))[:limit]])
    return np.sort(np.concatenate(chosen))


def records_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Returns the records of each class that occurs in labels, int [n]."""
    by_class = np.argsort(labels, kind="stable")
    starts = np.unique(labels[by_class], return_index=True)[1]
    return np.split(by_class, starts[1:])
