"""What windows over images see, written out as shifted images.

XLA turns sums of shifted images into one loop over the pixels, which a CPU runs at the speed of its
memory. convolution.py and pooling.py are made of them there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]


def count(
    image: Sequence[int],
    window: Sequence[int],
    strides: tuple[int, int],
    pads: Pads,
) -> tuple[int, int]:
    """Returns how many windows fit below and beside one another.

    Args:
      image: height and width before the padding.
      window: height and width.
      strides: vertical and horizontal.
      pads: ((above, below), (left, right)).
    """
    rows, columns = (
        (side + sum(pad) - size) // stride + 1
        for side, pad, size, stride in zip(image, pads, window, strides, strict=True)
    )
    return rows, columns


def pad(x: jax.Array, pads: Pads, value: float = 0) -> jax.Array:
    """Pads, or where negative crops, height and width of [batch, height, width, channels]."""
    config = ((0, 0, 0), *((*side, 0) for side in pads), (0, 0, 0))
    return lax.pad(x, jnp.array(value, x.dtype), config)


def shifts(
    padded: jax.Array,
    window: Sequence[int],
    strides: tuple[int, int],
    windows: Sequence[int],
) -> Iterator[jax.Array]:
    """Yields for each place in a window, row by row, the pixels that lie there.

    Args:
      padded: [batch, height, width, channels].
      window: height and width.
      strides: vertical and horizontal.
      windows: how many there are (see count).

    Yields:
      [batch, windows below one another, windows beside one another, channels].
    """
    batch, _, _, channels = padded.shape
    for i in range(window[0]):
        for j in range(window[1]):
            bottom = i + (windows[0] - 1) * strides[0] + 1
            right = j + (windows[1] - 1) * strides[1] + 1
            stop = (batch, bottom, right, channels)
            yield lax.slice(padded, (0, i, j, 0), stop, (1, *strides, 1))


def gather(
    term: Callable[..., jax.Array],
    results: tuple[jax.Array, ...],
    places: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
    image: tuple[int, int],
) -> jax.Array:
    """Gives every pixel the sum over the windows that it lies in: the way back from windows to
    pixels, for any stride.

    Row m * stride + r of the padded image lies in row t * stride + r of window m - t; columns
    likewise. So with the places seen as [t, r] and the image as [m, r], this is a sum over t.

    Args:
      term: takes each of `results` and then the places, in shapes that broadcast to
        [batch, m, r, m, r, channels]; returns what is added. It must give zero where the
        results are zeros, which is what lies beyond the last windows.
      results: what belongs to each window, [batch, windows, windows, channels].
      places: what belongs to each place in a window, [window height, window width, channels or
        1]. Those past the window are zeros.
      strides: vertical and horizontal.
      pads: ((above, below), (left, right)).
      image: height and width before the padding.

    Returns:
      [batch, height, width, channels].
    """
    (height, width), (down, across) = image, strides
    (above, _), (left, _) = pads
    tall, wide = -(-places.shape[0] // down), -(-places.shape[1] // across)
    rows, columns = -(-(height + above) // down), -(-(width + left) // across)
    batch, found_rows, found_columns, channels = results[0].shape
    around = ((tall - 1, rows - found_rows), (wide - 1, columns - found_columns))
    padded = lax.optimization_barrier(tuple(pad(x, around) for x in results))
    past = ((0, tall * down - places.shape[0]), (0, wide * across - places.shape[1]))
    places = jnp.pad(places, (*past, (0, 0)))
    places = places.reshape(tall, down, wide, across, -1)
    total: Any = 0
    for i in range(tall):
        for j in range(wide):
            start = (0, tall - 1 - i, wide - 1 - j, 0)
            stop = (batch, start[1] + rows, start[2] + columns, channels)
            shifted = [lax.slice(x, start, stop) for x in padded]
            shifted = [x[:, :, None, :, None] for x in shifted]
            total += term(*shifted, places[i, :, j][:, None])
    total = total.reshape(batch, rows * down, columns * across, channels)
    crop = (
        (-above, height + above - rows * down),
        (-left, width + left - columns * across),
    )
    return pad(total, crop)
