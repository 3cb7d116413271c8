"""Sources made of other sources: a part of one, one by other class names, several as one."""

import dataclasses
from typing import Any

import numpy as np

from jaxcls.data.decode import BadImage
from jaxcls.data.decode import size as image_size
from jaxcls.data.encoded_images import DecodedSource
from jaxcls.data.file_lists import counted, note
from jaxcls.data.sampling import Strata, all_labels, few_of_each_class, labels_of
from jaxcls.data.sources import (
    Dataset,
    Record,
    Source,
    Split,
    stacked,
    takes_words,
)
from jaxcls.errors import UserError, did_you_mean


def open_split(data: Dataset, split: Split) -> Source:
    """Returns the records of one split of a dataset; of the training split those that
    data.sampling.limit leaves."""
    source = data.source(split)
    if split == "train":
        _say_enlarged(source)
    limit = data.sampling.limit
    if split == "test" or limit is None:
        return source
    labels = labels_of(source)
    chosen = few_of_each_class(labels, limit, data.sampling.limit_seed)
    name = f"{source!r}, {limit} of each class by seed {data.sampling.limit_seed}"
    return Chosen(source, chosen, name)


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
        note(
            f"the first training image is {height} x {width}, and images become {rows} x "
            f"{columns}: --config.data.canvas.size={short} does not enlarge it."
        )


class Chosen:
    """Some records of a source."""

    def __init__(self, source: Source, ids: np.ndarray, name: str):
        """Takes the records `ids`, int64 [m], of a source; `name` is the repr."""
        self._source, self._ids, self._name = source, ids, name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._source.class_names

    @property
    def labels(self) -> np.ndarray:
        return all_labels(self._source)[self._ids]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._ids[index])]

    def gather(
        self, indices: np.ndarray, words: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        return _gather(self._source, self._ids[indices], words)

    def explain(self, index: int) -> str | None:
        return explain(self._source, int(self._ids[index]))

    def __repr__(self) -> str:
        return self._name


class Renumbered:
    """A source whose labels are indices into class names in another order, or more of them."""

    def __init__(self, source: Source, class_names: tuple[str, ...]):
        """Takes `class_names`, among which are all of the source."""
        self._source, self._class_names = source, class_names
        place = {name: index for index, name in enumerate(class_names)}
        self._new = np.array([place[name] for name in source.class_names], np.int32)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    @property
    def labels(self) -> np.ndarray:
        return self._renumbered(all_labels(self._source))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        label = self._renumbered(np.array([record["label"]]))[0]
        return {**record, "label": label if label.ndim else int(label)}

    def gather(
        self, indices: np.ndarray, words: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        batch = _gather(self._source, indices, words)
        return {**batch, "label": self._renumbered(batch["label"])}

    def _renumbered(self, labels: np.ndarray) -> np.ndarray:
        """Returns labels, int [n] or ones and zeros [n, classes], by the new class names."""
        if labels.ndim == 2:
            columns = np.zeros((len(labels), len(self._class_names)), labels.dtype)
            columns[:, self._new] = labels
            return columns
        known = (labels >= 0) & (labels < len(self._new))
        # One that is wrong stays so: who loads it says which record it is.
        return np.where(known, self._new[np.where(known, labels, 0)], -1)

    def explain(self, index: int) -> str | None:
        return explain(self._source, index)

    def __repr__(self) -> str:
        return repr(self._source)


def with_class_names(source: Source, class_names: tuple[str, ...]) -> Source:
    """Returns a split that is evaluated, its labels by the class names of training.

    Says on stderr which of these it has none of.

    Args:
      source: the split.
      class_names: of training.

    Raises:
      UserError: if it has a class that training does not know.
    """
    names = tuple(source.class_names)
    if names == class_names:
        return source
    unknown = [name for name in names if name not in set(class_names)]
    if unknown:
        raise UserError(
            f"{source!r} has {_some(unknown)}, unknown in training."
            f"{did_you_mean(unknown[0], class_names)} Training has "
            f"{counted(len(class_names), 'class', 'classes')}: {', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}."
        )
    missing = [name for name in class_names if name not in set(names)]
    if missing:
        note(
            f"{source!r} has no images of {_some(missing)}; labels are those of training"
        )
    return Renumbered(source, class_names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"class{'es' if len(names) > 1 else ''} {', '.join(names[:5])}{more}"


class Mixed:
    """The records of several sources of the same classes and shape, one after the other."""

    def __init__(self, sources: list[Source], shares: tuple[float, ...]):
        """Joins sources.

        Args:
          sources: at least one.
          shares: of the draws of an epoch, above 0; only their ratios matter.

        Raises:
          UserError: if their classes differ.
        """
        first = sources[0]
        for other in sources[1:]:
            if tuple(other.class_names) != tuple(first.class_names):
                raise UserError(
                    f"{other!r} and {first!r} have different classes, or in another order: a "
                    "Mixture needs the same ones."
                )
        self._sources, self._shares = sources, shares
        self._starts = np.cumsum([0, *map(len, sources)])
        self.strata = Strata(
            [np.arange(a, b) for a, b in zip(self._starts, self._starts[1:])],  # noqa: B905
            shares,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._sources[0].class_names

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([all_labels(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part], index - int(self._starts[part])

    def __getitem__(self, index: int) -> Record:
        source, own = self._place(index)
        return source[own]

    def gather(
        self, indices: np.ndarray, words: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        rows, batches = [], []
        for part in np.unique(parts):
            chosen = np.flatnonzero(parts == part)
            own = indices[chosen] - self._starts[part]
            drawn = None if words is None else words[chosen]
            rows.append(chosen)
            batches.append(_gather(self._sources[part], own, drawn))
        back = np.argsort(np.concatenate(rows))
        return {
            name: np.concatenate([batch[name] for batch in batches])[back]
            for name in ("image", "label", "mask")
        }

    def explain(self, index: int) -> str | None:
        return explain(*self._place(index))

    def __repr__(self) -> str:
        parts = [
            f"{share:g} of {source!r}"
            for share, source in zip(self._shares, self._sources, strict=True)
        ]
        return f"mixture({', '.join(parts)})"


def max_bad_share(data: Dataset) -> float:
    """Returns the share of bad images above which a run ends, 0..1."""
    if isinstance(data, Mixture):
        return min(map(max_bad_share, data.datasets))
    return getattr(data, "max_bad_share", 0.001)


def explain(source: Source, index: int) -> str | None:
    """Returns why a record is bad, where its source can say; None if it is good."""
    said = getattr(source, "explain", None)
    return said(index) if said is not None else f"record {index} of {source!r}"


def _gather(
    source: Source, ids: np.ndarray, words: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Returns records as a batch: "image", "label" and "mask"."""
    gather: Any = getattr(source, "gather", None)
    if gather is None:
        batch = stacked([source[int(i)] for i in ids])
    elif takes_words(source):
        batch = gather(ids, words=words)
    else:
        batch = gather(ids)
    return {"mask": np.ones(len(ids), bool), **batch}


@dataclasses.dataclass(kw_only=True)
class Mixture(Dataset):
    """Several datasets of the same classes and image shape, mixed in a fixed proportion.

    An epoch has as many images as all datasets together, of which each gives its share to
    within one: those of a small dataset with a large weight come several times. Evaluation is
    on the test split of the first.

    Attributes:
      datasets: one or more. How they are loaded is said here and not there; only their
        sampling.limit is read.
      weights: of each, above 0: its share of the images is weight / sum of weights.
    """

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]

    def source(self, split: Split) -> Source:
        if split == "test":
            return self.datasets[0].source("test")
        return Mixed([open_split(d, "train") for d in self.datasets], self.weights)

    def validate(self) -> None:
        super().validate()
        if not self.datasets or len(self.datasets) != len(self.weights):
            raise UserError(
                f"Mixture has {len(self.datasets)} datasets and {len(self.weights)} weights: "
                "give one weight for each of one or more datasets."
            )
        if not all(weight > 0 for weight in self.weights):
            raise UserError(f"Mixture.weights must be above 0, not {self.weights}.")
        if self.sampling.balance or self.sampling.limit is not None:
            raise UserError(
                "the weights of a Mixture say how often its images are drawn: leave out "
                "data.sampling.balance, and give data.sampling.limit to its datasets."
            )
        defaults = {f.name: f.default for f in dataclasses.fields(Dataset)}
        for index, dataset in enumerate(self.datasets):
            changed = [
                name
                for name in ("workers", "threads", "prefetch", "placement")
                if getattr(dataset, name) != defaults[name]
            ]
            changed += [
                f"sampling.{name}"
                for name, default in (("balance", False), ("repeats", 1))
                if getattr(dataset.sampling, name) != default
            ]
            if changed:
                raise UserError(
                    f"data.datasets[{index}].{changed[0]} is not read: set data.{changed[0]} "
                    "of the Mixture."
                )
