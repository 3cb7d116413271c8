"""Pixels that are moved as one number each, for TPUs.

A TPU takes single pixels one after the other, but selects between arrays and multiplies matrices
hundreds of times as fast. Both cost a third when the channels of a pixel are one whole number,
its word:

    word = red + 2^8 green + 2^16 blue

which float32 and int32 hold alike: it is below 2^24.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_CHANNELS = 3
"""Of 8 bits each that float32 holds."""


def by_words(move: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Moves the pixels of images as words.

    Args:
      move: takes words, int32 [batch, height, width], to words [batch, new height, new width].
      images: [batch, height, width, channels], whole values 0..255.

    Returns:
      [batch, new height, new width, channels] of the same dtype.
    """
    levels = images.astype(jnp.int32)
    moved = []
    for first in range(0, levels.shape[-1], _CHANNELS):
        some = levels[..., first : first + _CHANNELS]
        bits = 8 * jnp.arange(some.shape[-1])
        words = move((some << bits).sum(-1))
        moved.append(words[..., None] >> bits & 255)
    return jnp.concatenate(moved, axis=-1).astype(images.dtype)


def roll(words: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """Returns words whose element i along an axis is element i + shift, counted in a circle.

    A barrel shifter: for each bit of the shift, rolls everything and selects where it is set.

    Args:
      words: of any shape.
      shift: int32; the words' shape without the axis.
      axis: 0 or more.
    """
    size = words.shape[axis]
    shift = jnp.expand_dims(shift % size, axis)
    for bit in range((size - 1).bit_length()):
        rolled = jnp.roll(words, -(1 << bit), axis)
        words = jnp.where(shift >> bit & 1 == 1, rolled, words)
    return words
