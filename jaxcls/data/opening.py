"""Opens the two splits of a dataset, and looks at their first records before a run begins."""

import dataclasses

import numpy as np

from jaxcls.data.loader import load_rows
from jaxcls.data.sources import Dataset, Source, Split
from jaxcls.data.subset import open_split, with_class_names
from jaxcls.errors import UserError


@dataclasses.dataclass(frozen=True)
class OpenSplit:
    """One split of a dataset.

    Attributes:
      source: its records.
      first: a batch of its first record alone, as load_rows() gives it.
    """

    source: Source
    first: dict[str, np.ndarray]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of all images."""
        return self.first["image"].shape[1:]


def open_splits(data: Dataset) -> tuple[OpenSplit, OpenSplit]:
    """Returns the training and the test split, with the same class names.

    Raises:
      UserError: if one cannot be opened, is empty or names a class twice, if training has one
        class alone, or the test split has classes or an image shape of its own.
    """
    train, test = _open(data, "train"), _open(data, "test")
    if train.image_shape != test.image_shape:
        raise UserError(
            f"the images of {train.source!r} are {train.image_shape}, those of "
            f"{test.source!r} {test.image_shape}: both splits must have one shape."
        )
    same_names = with_class_names(test.source, tuple(train.source.class_names))
    return train, OpenSplit(same_names, load_rows(same_names, np.array([0])))


def _open(data: Dataset, split: Split) -> OpenSplit:
    """Opens one split, checks what it says of itself, and loads its first record."""
    try:
        source = open_split(data, split)
        size, names = len(source), list(source.class_names)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the {split} split of {type(data).__name__} cannot be opened: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not size:
        raise UserError(f"{source!r} is empty: there is nothing to {split} on.")
    if len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise UserError(f"the class names of {source!r} must be different strings.")
    if split == "train" and len(names) == 1:
        raise UserError(
            f"there is one class, '{names[0]}': nothing can be learned. Expected two or more, in "
            "an image folder a folder for each class with its images, at "
            f"{getattr(data, 'path', '') or repr(source)}."
        )
    try:
        return OpenSplit(source, load_rows(source, np.array([0])))
    except RuntimeError as error:
        raise UserError(str(error)) from error
