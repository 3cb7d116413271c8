"""Where images come from: random-access sequences of records.

source = Digits().source("train")  # formats/digits.py
source[0]            # {"image": uint8 [8, 8, 1], "label": 0}
source.class_names   # ("0", ..., "9")
"""

import abc
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

import numpy as np

from jaxcls.data.sampling import Sampling
from jaxcls.errors import UserError

Split = Literal["train", "test"]


class Record(TypedDict):
    """One labelled image: uint8 [height, width, channels] and a class index, or, where an image
    may be of any number of classes, uint8 [classes] of ones and zeros."""

    image: np.ndarray
    label: int | np.ndarray


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of records.

    All images of a source have one shape. `repr()` names the data and nothing else (no
    memory address, no path of the machine): it is stored with a run and compared when the
    run is continued. A source is sent to worker processes by pickling.

    A source may also have, and what is there is used:

    * `gather(indices) -> {"image": uint8 [n, height, width, channels], "label": int [n]}` (or
      uint8 [n, classes]), which loads a whole batch of records at once. With a second argument `words`, uint64 [n], it gets
      a random word for each row in training and None otherwise. It may return "mask" bool
      [n], False where an image cannot be read and the row is to count for nothing.
    * `labels`, int [n] (or uint8 [n, classes]): the class of each record, known without reading
      any.
    * `explain(index)`: why the image of a record cannot be read, and where it lies; None if it
      can.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; a label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def __repr__(self) -> str: ...


def takes_words(source: Source) -> bool:
    """Whether the gather of a source, if it has one, draws something for each row."""
    gather = getattr(source, "gather", None)
    return gather is not None and "words" in inspect.signature(gather).parameters


def stacked(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Makes one batch of records, whose images must have one shape."""
    return {
        "image": np.stack([record["image"] for record in records]),
        "label": np.array([record["label"] for record in records]),
    }


class ArraySource:
    """Records that lie in memory as two arrays."""

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
        self._class_names = tuple(class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the records `indices` (int [n]) as one batch, at the speed of memory:
        "image" uint8 [n, height, width, channels] and "label" int32 [n]."""
        return {"image": self.images[indices], "label": self.labels[indices]}

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return f"{self.name}({len(self)} images {height}x{width}x{channels})"


@dataclasses.dataclass(kw_only=True)
class Dataset(abc.ABC):
    """A dataset of a config, and how its batches are loaded.

    Attributes:
      workers: processes that load batches, 0..256; 0 loads them in threads of the trainer.
      threads: threads that load batches, in each process, each with a batch in the making,
        1..256; None takes one a core, 16 at most.
      prefetch: batches kept ready in each process, and on the devices, 1..1024.
      placement: where the training images lie: "host" sends each batch to the devices;
        "device" keeps all of them in the devices' memory, each device a part, and sends only
        the indices of a step. The images and their order are the same.
      sampling: how the training images are drawn.
    """

    workers: int = 0
    threads: int | None = None
    prefetch: int = 2
    placement: Literal["host", "device"] = "host"
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    @abc.abstractmethod
    def source(self, split: Split) -> Source:
        """Returns the records of one split."""

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        for name, value, low, high in (
            ("workers", self.workers, 0, 256),
            ("threads", 1 if self.threads is None else self.threads, 1, 256),
            ("prefetch", self.prefetch, 1, 1024),
        ):
            if not low <= value <= high:
                raise UserError(f"data.{name} must lie in {low}..{high}, not {value}.")
