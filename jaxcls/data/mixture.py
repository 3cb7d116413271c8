"""Several datasets as one, in a fixed proportion."""

import dataclasses
from typing import Annotated

import numpy as np
from annotated_types import MinLen

from jaxcls.data.dataset import Dataset
from jaxcls.data.opening import open_split
from jaxcls.data.order import Strata
from jaxcls.data.sources import Batch, Source, Split
from jaxcls.errors import UserError
from jaxcls.options import AboveZero, options

SET_BY_MIXTURE = frozenset(
    "workers threads prefetch placement sampling.balance sampling.repeats".split()
)
"""Options that the datasets of a mixture leave to it."""


class MixedSource(Source):
    """The records of several sources of the same classes and shape, one after the other."""

    def __init__(self, sources: list[Source], shares: tuple[float, ...]):
        """Joins sources.

        Args:
          sources: at least one.
          shares: how much of an epoch each source gives, above 0; only the ratios matter.

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
        self.class_names = first.class_names
        labels = [s.labels for s in sources if s.labels is not None]
        if len(labels) == len(sources):
            self.labels = np.concatenate(labels)
        self.strata = Strata(np.split(np.arange(len(self)), self._starts[1:-1]), shares)
        self.max_bad_share = min(source.max_bad_share for source in sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        rows, batches = [], []
        for part in np.unique(parts):
            chosen = np.flatnonzero(parts == part)
            seeds = None if row_seeds is None else row_seeds[chosen]
            own = indices[chosen] - self._starts[part]
            batch = self._sources[part].gather(own, seeds)
            batches.append({"mask": np.ones(len(chosen), bool), **batch})
            rows.append(chosen)
        back = np.argsort(np.concatenate(rows))
        return {
            name: np.concatenate([batch[name] for batch in batches])[back]
            for name in ("image", "label", "mask")
        }

    def explain(self, index: int) -> str | None:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part].explain(index - int(self._starts[part]))

    def __repr__(self) -> str:
        parts = [
            f"{share:g} of {source!r}"
            for share, source in zip(self._shares, self._sources, strict=True)
        ]
        return f"mixture({', '.join(parts)})"


@dataclasses.dataclass(kw_only=True)
class Mixture(Dataset):
    """Several datasets of the same classes and image shape, mixed in a fixed proportion.

    An epoch has as many images as all datasets together, of which each gives its share to
    within one: those of a small dataset with a large weight come several times. Evaluation is
    on the test split of the first.

    Attributes:
      datasets: one or more. The options of the mixture say how they are loaded; of their own
        ones, only sampling.limit is read.
      weights: of each, above 0: its share of the images is weight / sum of weights.
    """

    datasets: Annotated[tuple[Dataset, ...], MinLen(1)]
    weights: tuple[AboveZero, ...]

    def source(self, split: Split) -> Source:
        if split == "test":
            return self.datasets[0].source("test")
        return MixedSource(
            [open_split(d, "train") for d in self.datasets], self.weights
        )

    def validate(self) -> None:
        if len(self.datasets) != len(self.weights):
            raise UserError(
                f"Mixture has {len(self.datasets)} datasets and {len(self.weights)} weights: "
                "give one weight for each dataset."
            )
        if self.sampling.balance or self.sampling.limit is not None:
            raise UserError(
                "the weights of a Mixture say how often its images are drawn: leave out "
                "data.sampling.balance, and give data.sampling.limit to its datasets."
            )
        for index, dataset in enumerate(self.datasets):
            for name, (owner, value) in options(dataset).items():
                default = getattr(type(owner), name.rpartition(".")[2], value)
                if name in SET_BY_MIXTURE and value != default:
                    raise UserError(
                        f"data.datasets[{index}].{name} is not read: set data.{name} of the "
                        "Mixture."
                    )
