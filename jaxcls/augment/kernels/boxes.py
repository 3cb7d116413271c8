"""Rectangles that random transforms cut out, erase or paste."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Rectangles of pixels, one or several for each image.

    Attributes:
      top: first row, int32 of any shape; may lie outside of the image.
      left: first column, int32 of the same shape; may lie outside too.
      height: rows, 0 or more.
      width: columns, 0 or more.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array

    def clipped(self, height: int, width: int) -> "Boxes":
        """Returns the parts of the boxes inside an image of height x width pixels."""
        top, left = jnp.clip(self.top, 0, height), jnp.clip(self.left, 0, width)
        bottom = jnp.clip(self.top + self.height, 0, height)
        right = jnp.clip(self.left + self.width, 0, width)
        return Boxes(top, left, bottom - top, right - left)

    def mask(self, height: int, width: int) -> jax.Array:
        """Returns which pixels of an image lie in each box, bool [..., height, width, 1]."""
        rows = _between(jnp.arange(height), self.top, self.height)
        columns = _between(jnp.arange(width), self.left, self.width)
        return (rows[..., :, None] & columns[..., None, :])[..., None]


def _between(place: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    """Whether start <= place < start + length, bool [*start's shape, places]."""
    offset = place - start[..., None]
    return (offset >= 0) & (offset < length[..., None])


def below(number: int | jax.Array, share: jax.Array) -> jax.Array:
    """Returns whole numbers 0..number - 1, equally likely if `share` is drawn evenly from 0..1,
    1 excluded."""
    return jnp.floor(number * share).astype(jnp.int32)
