"""Random pixels: how fast a machine trains, without its disks."""

import dataclasses
from typing import Annotated

import numpy as np
from annotated_types import Interval

from jaxcls import options
from jaxcls.data.dataset import Dataset
from jaxcls.data.sources import ArraySource, Split
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Synthetic(Dataset):
    """Random pixels of random classes, for measuring speed: there is nothing in them to learn.

    They are the same each time, and lie in memory.

    Attributes:
      images: training images, 1 or more; there are a quarter as many for testing.
      size: their height and width in pixels, 1..4096.
      channels: 3 for RGB, 1 for grey.
      classes: number of classes, 1 or more.
    """

    images: Annotated[int, Interval(ge=1, le=2**31 - 1)] = 1024
    size: Annotated[int, Interval(ge=1, le=4096)] = 224
    channels: Annotated[int, Interval(ge=1, le=3)] = 3
    classes: Annotated[int, Interval(ge=1, le=2**20)] = 1000

    def source(self, split: Split) -> ArraySource:
        """Draws the images of a split into memory.

        Raises:
          UserError: if there is not enough of it.
        """
        options.check(self, "data")
        count = self.images if split == "train" else max(1, self.images // 4)
        shape = (count, self.size, self.size, self.channels)
        rng = np.random.default_rng(0 if split == "train" else 1)
        try:
            pixels = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8)
        except (MemoryError, OverflowError) as error:
            raise UserError(
                f"{count:,} images of {self.size} x {self.size} pixels do not fit into memory: "
                "take a smaller data.images or data.size."
            ) from error
        labels = rng.integers(0, self.classes, count)
        names = tuple(str(i) for i in range(self.classes))
        return ArraySource(f"synthetic-{split}", pixels.reshape(shape), labels, names)
