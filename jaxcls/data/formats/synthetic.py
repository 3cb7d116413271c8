"""Random pixels: how fast a machine trains, without its disks."""

import dataclasses

import numpy as np

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

    images: int = 1024
    size: int = 224
    channels: int = 3
    classes: int = 1000

    def validate(self) -> None:
        super().validate()
        for name, value, low, high in (
            ("images", self.images, 1, 2**31 - 1),
            ("size", self.size, 1, 4096),
            ("channels", self.channels, 1, 3),
            ("classes", self.classes, 1, 2**20),
        ):
            if not low <= value <= high:
                raise UserError(f"data.{name} must lie in {low}..{high}, not {value}.")

    def source(self, split: Split) -> ArraySource:
        """Draws the images of a split into memory.

        Raises:
          UserError: if there is not enough of it.
        """
        self.validate()
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
