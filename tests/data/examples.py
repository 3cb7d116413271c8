"""Small sources that several tests of data use."""

import dataclasses

import numpy as np

from jaxcls.data import ArraySource, Dataset
from jaxcls.data.sources import Source, Split


def numbered(n: int, first: int = 0, names: str = "abc") -> ArraySource:
    """Records whose one pixel is their number from `first`."""
    images = np.arange(first, first + n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return ArraySource(f"from-{first}", images, np.arange(n) % len(names), tuple(names))


class Seeded(Source):
    """Records of 3 classes that are not in memory; bad where the index divides by 4."""

    class_names = tuple("abc")
    labels = np.arange(20) % 3

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": index % 3}

    def __repr__(self) -> str:
        return "seeded(20)"

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        drawn = np.zeros(len(indices), int) if row_seeds is None else row_seeds
        images = np.uint8(indices + drawn.astype(int)).reshape(-1, 1, 1, 1)
        return {"image": images, "label": indices % 3, "mask": indices % 4 != 0}

    def explain(self, index: int) -> str | None:
        return f"file {index}: torn" if index % 4 == 0 else None


class OneByOne(Source):
    """The records of another source without what a source need not have."""

    def __init__(self, source: Source):
        self.source = source
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> object:
        return self.source[index]

    def __repr__(self) -> str:
        return "one-by-one"


@dataclasses.dataclass(kw_only=True)
class Given(Dataset):
    """A dataset of numbered records."""

    n: int = 12
    first: int = 0
    names: str = "abc"

    def source(self, split: Split) -> Source:
        return numbered(self.n, self.first, self.names)
