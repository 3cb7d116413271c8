"""Where images come from: random-access sequences of records.

source = Digits().source("train")
source[0]            # {"image": uint8 [8, 8, 1], "label": 0}
source.class_names   # ("0", ..., "9")
"""

import abc
import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias, TypedDict

import numpy as np

from jaxcls.data.order import Strata

Split = Literal["train", "test"]
Batch: TypeAlias = dict[str, np.ndarray]

MAX_BAD_SHARE = 0.001
"""The share of unreadable images above which a run ends, where a dataset has no option for it."""


class Record(TypedDict):
    """One labelled image: uint8 [height, width, channels] and a class index, or, where an image
    may have any number of classes, uint8 [classes] of ones and zeros."""

    image: np.ndarray
    label: int | np.ndarray


class Source(abc.ABC):
    """A random-access sequence of records, whose images all have one shape.

    A source of your own defines this; `gather` may take the place of `__getitem__` where loading
    many records at once is faster:

        class Faces(Source):
            class_names = ("frown", "smile")

            def __len__(self) -> int: ...
            def __getitem__(self, index: int) -> Record: ...
            def __repr__(self) -> str: ...

    `repr()` names the data and nothing else (no memory address, no path of the machine): a run
    stores it, and compares it when it continues. Worker processes get a source by pickling.

    Attributes:
      class_names: the name of each class; a label is an index into them.
      labels: the label of each record, int [n], or uint8 [n, classes] of ones and zeros where
        an image may have any number of classes. None if they are not known without reading the
        images.
      strata: parts of the records that get a fixed share of the draws each; None draws all
        records equally often.
      max_bad_share: the share of images that cannot be read above which a run ends, 0..1.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray | None = None
    strata: Strata | None = None
    max_bad_share: float = MAX_BAD_SHARE

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __repr__(self) -> str: ...

    def __getitem__(self, index: int) -> Record:
        """Loads one record."""
        if type(self).gather is Source.gather:
            raise NotImplementedError("a source must define __getitem__ or gather")
        batch = self.gather(np.array([index]))
        image, label = batch["image"][0], batch["label"][0]
        return {"image": image, "label": label if label.ndim else int(label)}

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        """Loads several records at once.

        Args:
          indices: the records, int [n].
          row_seeds: uint64 [n], which decide what is random in each row; None for evaluation.

        Returns:
          "image" uint8 [n, height, width, channels] and "label" int [n] (or uint8 [n,
          classes]). A source may add "mask" bool [n], False where an image cannot be read and
          the row is to count for nothing.
        """
        del row_seeds
        records = []
        for index in indices.tolist():
            with naming_failures(f"record {index} of {self!r}"):
                records.append(self[index])
        return {
            "image": np.stack([record["image"] for record in records]),
            "label": np.array([record["label"] for record in records]),
        }

    def explain(self, index: int) -> str | None:
        """Names the image of a record and says why it cannot be read; None if it can."""
        return f"record {index} of {self!r}"


@contextlib.contextmanager
def naming_failures(what: str) -> Iterator[None]:
    """Names what was being read when the code of a source fails.

    Raises:
      RuntimeError: for any exception. A RuntimeError passes unchanged: it names the file.
    """
    try:
        yield
    except Exception as error:
        if type(error) is RuntimeError:  # no subclass, such as RecursionError
            raise
        raise RuntimeError(
            f"{what} cannot be read: {type(error).__name__}: {error}"
        ) from None


class ArraySource(Source):
    """Records that lie in memory as two arrays."""

    labels: np.ndarray

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
    ):
        """Wraps uint8 images [n, height, width, channels] and integer labels [n].

        Raises:
          ValueError: if the images are not uint8 in four dimensions, the labels do not
            match them in number, there are none, or a label has no class name.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name}: images must be uint8 [n, height, width, channels], not "
                f"{images.dtype} {images.shape}."
            )
        if labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}: {len(images)} images and labels of shape {labels.shape}; expected "
                "one label an image, and at least one of both."
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: labels must be integers, not {labels.dtype}.")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"{name}: labels run from {labels.min()} to {labels.max()}, but there are "
                f"{len(class_names)} class names."
            )
        self.name = name
        self.images = images
        self.labels = labels.astype(np.int32)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        """Gathers records at the speed of memory; the labels are int32."""
        return {"image": self.images[indices], "label": self.labels[indices]}

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return f"{self.name}({len(self)} images {height}x{width}x{channels})"
