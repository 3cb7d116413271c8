"""A source with the class names of another one: evaluation counts in the classes of training."""

import numpy as np

from jaxcls.data.notes import counted, enumerated, note
from jaxcls.data.sources import Batch, Source
from jaxcls.errors import UserError, did_you_mean


def with_class_names(source: Source, class_names: tuple[str, ...]) -> Source:
    """Returns a split for evaluation, with the class names of training.

    Notes on stderr which of them have no images.

    Args:
      source: the split.
      class_names: those of training.

    Raises:
      UserError: if it has a class that training does not know.
    """
    names = tuple(source.class_names)
    if names == class_names:
        return source
    unknown = [name for name in names if name not in set(class_names)]
    if unknown:
        raise UserError(
            f"{source!r} has classes unknown in training: {enumerated(unknown)}."
            f"{did_you_mean(unknown[0], class_names)} Training has "
            f"{counted(len(class_names), 'class', 'classes')}: {enumerated(class_names)}."
        )
    missing = [name for name in class_names if name not in set(names)]
    if missing:
        note(
            f"{source!r} has no images of {enumerated(missing)}; labels are those of "
            "training"
        )
    return Relabelled(source, class_names)


class Relabelled(Source):
    """A source whose labels are indices into class names in another order, or more of them."""

    def __init__(self, source: Source, class_names: tuple[str, ...]):
        """Takes `class_names`, which include all of the source."""
        self._source, self.class_names = source, class_names
        place = {name: index for index, name in enumerate(class_names)}
        self._new = np.array([place[name] for name in source.class_names], np.int32)
        if source.labels is not None:
            self.labels = self._relabelled(np.asarray(source.labels))
        self.max_bad_share = source.max_bad_share

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        batch = self._source.gather(indices, row_seeds)
        return {**batch, "label": self._relabelled(batch["label"])}

    def _relabelled(self, labels: np.ndarray) -> np.ndarray:
        """Returns labels, int [n] or ones and zeros [n, classes], with the new class names."""
        if labels.ndim == 2:
            columns = np.zeros((len(labels), len(self.class_names)), labels.dtype)
            columns[:, self._new] = labels
            return columns
        known = (labels >= 0) & (labels < len(self._new))
        # A wrong label stays wrong: the loader names its record.
        return np.where(known, self._new[np.where(known, labels, 0)], -1)

    def explain(self, index: int) -> str | None:
        return self._source.explain(index)

    def __repr__(self) -> str:
        return repr(self._source)
