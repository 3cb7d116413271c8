"""Other ways through a training set than each record once an epoch.

Here are the options and what they need to know of the labels; order.py draws.
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


def strata_of(source: Source, sampling: Sampling) -> order.Strata | None:
    """Returns the parts of a training set that get a fixed share of the draws each, if any."""
    if not sampling.balance:
        return source.strata
    classes = records_by_class(one_label_each(source))
    return order.Strata(classes, [1.0] * len(classes))


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
      seed: decides the choice, 0 <= seed < 2**64.
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
