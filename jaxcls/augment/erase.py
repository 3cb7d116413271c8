"""Transforms that cover a part of each image."""

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval, MinLen

from jaxcls.augment.kernels.boxes import Boxes, below
from jaxcls.augment.pipeline import ImageTransform, Side
from jaxcls.errors import UserError
from jaxcls.options import AboveZero, Ascending, Share

Fill = Literal["constant", "color", "pixel"]

_Count = Annotated[int, Interval(ge=1, le=100)]

_TRIES = 10
"""How often torchvision and timm draw a box that may turn out too large."""


@dataclasses.dataclass(kw_only=True)
class RandomErasing(ImageTransform):
    """Erases boxes of random sizes, shapes and places (Zhong et al. 2020, arXiv 1708.04896).

    A box covers a fraction of the image drawn evenly from `scale`, with a height / width
    drawn evenly on a logarithmic scale from `ratio`. If it is as high or as wide as the image,
    it is drawn again; after ten tries, nothing is erased. With one box that is torchvision's
    RandomErasing, whose value="random" is fill="pixel"; with several it is timm's, whose modes
    "const", "rand" and "pixel" are fill="constant", "color" and "pixel".

    It belongs behind Normalize, where 0 is the mean colour and the pixels themselves have
    about the mean and the deviation of the random ones.

    Attributes:
      p: probability that an image is erased at all, 0..1.
      scale: smallest and largest fraction of the image's area, 0..1, that the boxes of an
        image cover together, if they do not overlap.
      ratio: smallest and largest height / width of a box, above 0.
      fill: "constant" is the colour `value`, "color" a colour drawn for each box from a normal
        distribution (mean 0, standard deviation 1), "pixel" one for each pixel.
      value: of "constant", a value for each channel or one for all.
      count: fewest and most boxes in an image, 1..100; drawn evenly.
    """

    random: ClassVar[bool] = True

    p: Share = 0.5
    scale: Annotated[tuple[Share, Share], Ascending()] = (0.02, 0.33)
    ratio: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (0.3, 3.3)
    fill: Fill = "constant"
    value: Annotated[tuple[float, ...], MinLen(1)] = (0.0,)
    count: Annotated[tuple[_Count, _Count], Ascending()] = (1, 1)

    @property
    def keeps_grey_levels(self) -> bool:  # type: ignore[override]
        whole = all(0 <= v <= 255 and v == int(v) for v in self.value)
        return self.fill == "constant" and whole

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.p == 0:
            return images
        batch, height, width, channels = images.shape
        box_rng, fill_rng = jax.random.split(rng)
        erased = self._boxes(box_rng, batch, height, width).mask(height, width)
        if self.fill == "pixel":
            noise = jax.random.normal(fill_rng, images.shape)
            return jnp.where(erased.any(1), noise, images)
        if self.fill == "color":
            colors = jax.random.normal(fill_rng, (batch, self.count[1], 1, 1, channels))
            # Where boxes overlap, the later one lies on top.
            for box in range(self.count[1]):
                images = jnp.where(erased[:, box], colors[:, box], images)
            return images
        if len(self.value) not in (1, channels):
            raise UserError(
                f"RandomErasing.value has {len(self.value)} values but the images have "
                f"{channels} channels: give {channels}, or one for all."
            )
        return jnp.where(erased.any(1), jnp.array(self.value, jnp.float32), images)

    def _boxes(self, rng: jax.Array, batch: int, height: int, width: int) -> Boxes:
        """Draws boxes [batch, most boxes]; those that an image does not have are empty."""
        count_rng, size_rng, place_rng = jax.random.split(rng, 3)
        fewest, most = self.count
        chosen, more = jax.random.uniform(count_rng, (2, batch, 1))
        counts = fewest + below(most - fewest + 1, more)
        exists = (chosen < self.p) & (jnp.arange(most) < counts)

        fraction, ratio = jax.random.uniform(size_rng, (2, _TRIES, batch, most))
        low, high = self.scale
        area = height * width * (low + (high - low) * fraction) / counts
        low, high = map(math.log, self.ratio)
        ratio = jnp.exp(low + (high - low) * ratio)
        heights = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)

        fits = (heights < height) & (widths < width)
        first = jnp.arange(_TRIES)[:, None, None] == jnp.argmax(fits, 0)
        first &= fits & exists
        # At most one try is left, so that a sum picks it, or 0 where there is none.
        box_height = jnp.sum(heights * first, 0)
        box_width = jnp.sum(widths * first, 0)
        row, column = jax.random.uniform(place_rng, (2, batch, most))
        top = below(height - box_height + 1, row)
        left = below(width - box_width + 1, column)
        return Boxes(top, left, box_height, box_width)


@dataclasses.dataclass(kw_only=True)
class Cutout(ImageTransform):
    """Sets a square to 0 (DeVries and Taylor 2017, arXiv 1708.04552). Its middle is any pixel of
    the image with equal probability, and the part outside of the image is lost.

    0 is the mean colour behind Normalize, as published, and black before.

    Attributes:
      size: pixels of a side of the square, 1..16384.
      p: probability that an image has one, 0..1.
    """

    random: ClassVar[bool] = True

    size: Side
    p: Share = 1.0

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.p == 0:
            return images
        batch, height, width, _ = images.shape
        chosen, row, column = jax.random.uniform(rng, (3, batch))
        side = self.size * (chosen < self.p)
        half = self.size // 2
        boxes = Boxes(
            below(height, row) - half, below(width, column) - half, side, side
        )
        return jnp.where(boxes.mask(height, width), 0.0, images)
