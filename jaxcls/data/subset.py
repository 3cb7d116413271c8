"""A part of a source."""

import numpy as np

from jaxcls.data.sources import Batch, Source


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
