"""Turning images by whole pixels ("nearest") with matrix products alone, for TPUs.

A TPU takes single pixels one after the other, but multiplies matrices hundreds of times as fast.
Each pixel of the result comes from one row and one column of the original, so that two products
with zeros and ones could fetch it, first the column and then the row, if no two pixels of a
column of the result came from one row of the original. With a turn of at most 45 degrees at
most two do, neighbours, one in an even row of the result and one in an odd; and larger turns
begin with quarter turns. Whole grey levels 0..255 are exact in bfloat16, so the result is that of
a copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_ONE = 1 << 16


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
        return Places(-self.right, -self.down, size * _ONE - 1 - self.start)


def turn(
    images: jax.Array, degrees: jax.Array, across: Places, down: Places
) -> jax.Array:
    """Copies the pixels of a rotation.

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      degrees: float32 [batch], counter-clockwise: the angle of the places.
      across: columns of the original.
      down: rows of the original.

    Returns:
      float32 of the same shape; any values where a place lies outside of the image.
    """
    batch, height, width, channels = images.shape
    size = max(height, width)
    canvas, across, down = _within_45_degrees(images, degrees, across, down)
    x = jnp.arange(width)

    # For row r of the original and column x of the result: the first row y of the result that
    # comes from r, and which column the even and the odd one of y and y + 1 need.
    r = jnp.arange(-1, size + 1)[:, None]
    right, step, start = (part.reshape(-1, 1, 1) for part in down)
    first = -((start + right * x - r * _ONE) // step)  # rounded up
    even = first + (first & 1)
    odd = first + 1 - (first & 1)
    column = across.at(x, even)
    aside = across.at(x, odd) - column  # -1, 0 or 1

    # The column and its neighbours, as further channels: they cost a product nothing.
    padded = jnp.pad(canvas, ((0, 0), (1, 1), (2, 2), (0, 0)))
    beside = jnp.concatenate([padded[:, :, j : size + 2 + j] for j in range(3)], -1)
    chosen = jax.nn.one_hot(column + 1, size + 2, dtype=canvas.dtype)
    found = jnp.einsum("brxk,brkc->brxc", chosen, beside)
    before, here, after = jnp.split(found, 3, axis=-1)
    aside = aside[..., None]
    odds = jnp.where(aside == 0, here, jnp.where(aside < 0, before, after))

    # Rows y and y + 1 of the result, y even, come from rows r and r or r + 1.
    pairs = 2 * jnp.arange(-(-height // 2))[:, None]
    row, row_below = down.at(x, pairs), down.at(x, pairs + 1)
    following = jnp.pad(odds[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    chosen = jax.nn.one_hot(row + 1, size + 2, dtype=canvas.dtype)
    rows = jnp.concatenate([here, odds, following], -1)
    found = jnp.einsum("byxr,brxc->byxc", chosen, rows)
    evens, same, next_ = jnp.split(found, 3, axis=-1)
    odds = jnp.where((row == row_below)[..., None], same, next_)
    turned = jnp.stack([evens, odds], 2).reshape(batch, -1, width, channels)
    return turned[:, :height].astype(images.dtype)


def _within_45_degrees(
    images: jax.Array, degrees: jax.Array, across: Places, down: Places
) -> tuple[jax.Array, Places, Places]:
    """Gives each image the quarter turns that leave at most 45 degrees.

    Returns:
      bfloat16 [batch, size, size, channels] with size = max(height, width), and the places on
      it.
    """
    _, height, width, _ = images.shape
    size = max(height, width)
    beyond = ((0, 0), (0, size - height), (0, size - width), (0, 0))
    canvas = jnp.pad(images, beyond).astype(jnp.bfloat16)
    flipped = canvas.swapaxes(1, 2)
    quarters = jnp.round(degrees / 90).astype(jnp.int32) % 4
    at = quarters.reshape(-1, 1, 1, 1)
    canvas = jnp.select(
        [at == 0, at == 1, at == 2],
        [canvas, flipped[:, ::-1], canvas[:, ::-1, ::-1]],
        flipped[:, :, ::-1],
    )

    def choose(*choices: Places) -> Places:
        conditions = [quarters == quarter for quarter in range(3)]
        parts = zip(*choices, strict=True)
        return Places(*(jnp.select(conditions, part[:3], part[3]) for part in parts))

    left, up = across.mirrored(size), down.mirrored(size)
    return canvas, choose(across, down, left, up), choose(down, left, up, across)
