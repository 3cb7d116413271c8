"""Places in an image in the fixed point of Pillow's "nearest"."""

from typing import NamedTuple

import jax

ONE = 1 << 16
"""A pixel."""


class Places(NamedTuple):
    """Where along one axis of the original each pixel (x, y) of a result lies: pixel
    (start + right * x + down * y) >> 16. Each int32 [batch]."""

    right: jax.Array
    down: jax.Array
    start: jax.Array

    def at(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the pixel, int32 in the shape of x and y, which begin with the batch."""
        right, down, start = (part.reshape(-1, 1, 1) for part in self)
        return (start + right * x + down * y) >> 16

    def mirrored(self, size: int) -> "Places":
        """Returns the same places counted from the other end of `size` pixels."""
        return Places(-self.right, -self.down, size * ONE - 1 - self.start)
