"""Pixels that are moved as one number each.

Selects between arrays and products of matrices cost a third when the channels of a pixel are
packed into one whole number:

    packed = red + 2^8 green + 2^16 blue

float32 and int32 both hold it exactly, because it is below 2^24.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_CHANNELS = 3
"""Channels of 8 bits each that one float32 holds."""


def move_packed(move: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Moves the pixels of images, packed.

    Args:
      move: takes packed pixels, int32 [batch, height, width], to packed pixels [batch, new
        height, new width].
      images: [batch, height, width, channels], whole values 0..255.

    Returns:
      [batch, new height, new width, channels] of the same dtype.
    """
    levels = images.astype(jnp.int32)
    moved = []
    for first in range(0, levels.shape[-1], _CHANNELS):
        some = levels[..., first : first + _CHANNELS]
        bits = 8 * jnp.arange(some.shape[-1])
        packed = move((some << bits).sum(-1))
        moved.append(packed[..., None] >> bits & 255)
    return jnp.concatenate(moved, axis=-1).astype(images.dtype)


def roll(values: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """Rolls every line along an axis by a shift of its own: element i of the result is element
    i + shift of the line, counted in a circle.

    A barrel shifter: for each bit of the shift, rolls everything and selects where it is set.

    Args:
      values: of any shape.
      shift: int32; the values' shape without the axis.
      axis: 0 or more.
    """
    size = values.shape[axis]
    shift = jnp.expand_dims(shift % size, axis)
    for bit in range((size - 1).bit_length()):
        rolled = jnp.roll(values, -(1 << bit), axis)
        values = jnp.where(shift >> bit & 1 == 1, rolled, values)
    return values


def shift_rows(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Moves every row of an image by a number of its own: pillow_warp's shift_rows."""
    return move_packed(lambda packed: roll(packed, shift, axis=2), images)
