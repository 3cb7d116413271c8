"""Opens the splits of a dataset, and looks at their first records before a run begins."""

import dataclasses

import numpy as np

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import BadImage
from jaxcls.data.decode import size as image_size
from jaxcls.data.encoded_images import DecodedSource
from jaxcls.data.loader import load_rows
from jaxcls.data.notes import explaining, note
from jaxcls.data.relabelled import with_class_names
from jaxcls.data.sampling import few_of_each_class, one_label_each
from jaxcls.data.sources import Batch, Source, Split
from jaxcls.errors import UserError


class Subset(Source):
    """Some records of a source."""

    def __init__(self, source: Source, ids: np.ndarray, name: str):
        """Takes the records `ids`, int64 [m], of a source; `name` is the repr."""
        self._source, self._ids, self._name = source, ids, name
        self.class_names = source.class_names
        if source.labels is not None:
            self.labels = np.take(source.labels, ids, axis=0)
        self.max_bad_share = source.max_bad_share

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        return self._source.gather(self._ids[indices], row_seeds)

    def explain(self, index: int) -> str | None:
        return self._source.explain(int(self._ids[index]))

    def __repr__(self) -> str:
        return self._name


@dataclasses.dataclass(frozen=True)
class OpenSplit:
    """One split of a dataset.

    Attributes:
      source: its records.
      first: a batch of its first record alone, as load_rows() gives it.
    """

    source: Source
    first: Batch

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


def open_split(data: Dataset, split: Split) -> Source:
    """Opens one split of a dataset; of the training split the records that
    data.sampling.limit leaves.

    Raises:
      UserError: if it cannot be opened, or is no Source.
    """
    source = data.source(split)
    if not isinstance(source, Source):
        raise UserError(
            f"{type(data).__name__}.source gives a {type(source).__name__}, which must be a "
            "subclass of jaxcls.data.Source."
        )
    if split == "train":
        _note_enlarged(source)
    limit = data.sampling.limit
    if split == "test" or limit is None:
        return source
    labels = one_label_each(source)
    chosen = few_of_each_class(labels, limit, data.sampling.limit_seed)
    name = f"{source!r}, {limit} of each class by seed {data.sampling.limit_seed}"
    return Subset(source, chosen, name)


def _note_enlarged(source: Source) -> None:
    """Notes that images become more than twice as large, judging by the first one: they take
    the time of large ones, and show no more."""
    if not isinstance(source, DecodedSource) or not len(source):
        return
    try:
        height, width = image_size(source.encoded.read(0))
    except (BadImage, OSError):
        return  # loading it will say so
    short = min(height, width)
    rows, columns, _ = source.canvas.shape(source.channels)
    if 2 * short < min(rows, columns):
        note(
            f"the first training image is {height} x {width}, and images become {rows} x "
            f"{columns}: --config.data.canvas.size={short} does not enlarge it."
        )


def _open(data: Dataset, split: Split) -> OpenSplit:
    """Opens one split, checks its size and class names, and loads its first record."""
    with explaining(f"the {split} split of {type(data).__name__} cannot be opened"):
        source = open_split(data, split)
        size, names = len(source), list(source.class_names)
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
