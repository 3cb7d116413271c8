"""A part of a source, and the way to open the split of a dataset."""

import numpy as np

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import BadImage
from jaxcls.data.decode import size as image_size
from jaxcls.data.encoded_images import DecodedSource
from jaxcls.data.file_lists import say
from jaxcls.data.sampling import few_of_each_class, one_label_each
from jaxcls.data.sources import Batch, Source, Split
from jaxcls.errors import UserError


def open_split(data: Dataset, split: Split) -> Source:
    """Returns the records of one split of a dataset; of the training split those that
    data.sampling.limit leaves.

    Raises:
      UserError: if it cannot be opened, or what it gives is no Source.
    """
    source = data.source(split)
    if not isinstance(source, Source):
        raise UserError(
            f"{type(data).__name__}.source gives a {type(source).__name__}, which must be a "
            "subclass of jaxcls.data.Source."
        )
    if split == "train":
        _say_enlarged(source)
    limit = data.sampling.limit
    if split == "test" or limit is None:
        return source
    labels = one_label_each(source)
    chosen = few_of_each_class(labels, limit, data.sampling.limit_seed)
    name = f"{source!r}, {limit} of each class by seed {data.sampling.limit_seed}"
    return Subset(source, chosen, name)


def _say_enlarged(source: Source) -> None:
    """Says so if images become more than twice as large, judging by the first one: they take
    the time of large ones, and hold no more."""
    if not isinstance(source, DecodedSource) or not len(source):
        return
    try:
        height, width = image_size(source.encoded.read(0))
    except (BadImage, OSError):
        return  # who loads it says so
    short = min(height, width)
    rows, columns, _ = source.canvas.shape(source.channels)
    if 2 * short < min(rows, columns):
        say(
            f"the first training image is {height} x {width}, and images become {rows} x "
            f"{columns}: --config.data.canvas.size={short} does not enlarge it."
        )


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
