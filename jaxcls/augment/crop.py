"""Boxes of random size, cut out and resized as Pillow does it."""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.kernels.boxes import Boxes
from jaxcls.augment.kernels.resample import Interpolation, kernel, nearest
from jaxcls.augment.pipeline import RandomGreyLevelTransform, Side
from jaxcls.options import AboveZero, Ascending, ShareAboveZero

_TRIES = 10
"""How often torchvision draws a box before it takes the middle of the image."""


@dataclasses.dataclass(kw_only=True)
class RandomResizedCrop(RandomGreyLevelTransform):
    """Cuts a box of random area and shape out of each image and resizes it to a square
    (torchvision's RandomResizedCrop; Szegedy et al., "Going Deeper with Convolutions", 2014).

    The box is cut out first: no pixel around it has a part in the result. Two matrix products
    with a kernel for each image.

    Attributes:
      size: pixels of a side of the square, 1..16384.
      scale: the box's area as a fraction of the image's, above 0, uniform between the two.
      ratio: the box's width by its height, above 0, its logarithm uniform between the two.
      interpolation: "nearest", "bilinear" or "bicubic" (Keys' kernel with a = -0.5).
      antialiased: whether the kernel is as wide as the new pixels where these are the wider
        ones, as for Pillow images; else new pixels come from their nearest neighbours alone
        (torchvision's antialias=False; no different for "nearest").
    """

    size: Side
    scale: Annotated[tuple[ShareAboveZero, ShareAboveZero], Ascending()] = (0.08, 1.0)
    ratio: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialiased: bool = True

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        return self.resized(images, self.boxes(rng, batch, height, width))

    def boxes(self, rng: jax.Array, batch: int, height: int, width: int) -> Boxes:
        """Draws a box in each of `batch` images of height x width.

        The first that fits of ten tries is taken. If none fits, the box is the middle of the
        image, cut to the nearest ratio that is allowed.
        """
        area_key, ratio_key, top_key, left_key = jax.random.split(rng, 4)
        shape = (batch, _TRIES)
        low, high = self.scale
        share = jax.random.uniform(area_key, shape, minval=low, maxval=high)
        area = height * width * share
        low, high = (math.log(bound) for bound in self.ratio)
        aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
        # Heights and widths, [2, batch, tries].
        tried = jnp.sqrt(jnp.stack([area / aspect, area * aspect]))
        tried = jnp.round(tried).astype(jnp.int32)
        sides = jnp.array([[height], [width]])
        fits = ((0 < tried) & (tried <= sides[..., None])).all(0)
        first = fits & (jnp.cumsum(fits, 1) == 1)

        none = ~fits.any(1)
        fallback = jnp.array(_middle_box(height, width, self.ratio))
        box = jnp.where(none, fallback[:, None], (tried * first).sum(2))
        spare = sides - box
        top = jax.random.randint(top_key, (batch,), 0, spare[0] + 1)
        left = jax.random.randint(left_key, (batch,), 0, spare[1] + 1)
        place = jnp.where(none, spare // 2, jnp.stack([top, left]))
        return Boxes(*place, *box)

    def resized(self, images: jax.Array, boxes: Boxes) -> jax.Array:
        """Cuts a box out of each image and resizes it to a square, as Pillow's crop and resize.

        Columns first, rounded to grey levels, then rows: Pillow since version 13 has it the
        other way round in some high boxes, which changes a few pixels by one level. Beyond that,
        float32 moves a pixel by one level here and there.

        Args:
          images: float32 [batch, height, width, channels], whole values 0..255.
          boxes: one for each image, within it.

        Returns:
          float32 [batch, size, size, channels], whole values 0..255.
        """
        _, height, width, _ = images.shape
        # Grey levels, and weights that are 0 and 1, are exact in the fastest kind of product.
        precision = "default" if self.interpolation == "nearest" else "highest"
        einsum = functools.partial(jnp.einsum, precision=precision)
        across = self._weights(boxes.left, boxes.width, width)
        down = self._weights(boxes.top, boxes.height, height)
        levels = _rounded(einsum("bsw,bhwc->bhsc", across, images))
        return _rounded(einsum("bsh,bhwc->bswc", down, levels))

    def _weights(self, start: jax.Array, length: jax.Array, side: int) -> jax.Array:
        """Returns how much each of `side` pixels adds to each of `size` that the `length` pixels
        from `start` on, int32 [batch] both, are resized to.

        Returns:
          float32 [batch, size, side]; each row sums to 1 within the box, and is 0 outside.
        """
        place = jnp.arange(side) - start[:, None, None]
        if self.interpolation == "nearest":
            sources = [nearest(1 + pixels, self.size) for pixels in range(side)]
            source = jnp.asarray(np.stack(sources), jnp.int32)[length - 1]
            return (place == source[:, :, None]).astype(jnp.float32)
        length = length[:, None, None]
        # A new pixel's middle, in units of 1 / (2 size) old pixels, so that it is whole.
        middle = (2 * jnp.arange(self.size)[:, None] + 1) * length
        inside = (place >= 0) & (place < length)
        distance = (2 * place + 1) * self.size - middle
        stretch = jnp.maximum(length, self.size) if self.antialiased else self.size
        weights = kernel(distance / (2 * stretch), self.interpolation, jnp)
        weights = jnp.where(inside, weights, 0)
        return weights / weights.sum(2, keepdims=True)


def _middle_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Returns the (height, width) of the largest box of an allowed ratio."""
    if width / height < ratio[0]:
        return max(round(width / ratio[0]), 1), width
    if width / height > ratio[1]:
        return height, max(round(height * ratio[1]), 1)
    return height, width


def _rounded(values: jax.Array) -> jax.Array:
    """Returns grey levels: whole numbers 0..255, halves rounded up."""
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)
