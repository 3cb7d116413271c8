"""Windows over images, and what they see, written out as shifted images.

XLA turns sums of shifted images into one loop over the pixels, which a CPU runs at the speed of its
memory. convolution.py and pooling.py use them there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where windows lie on images.

    Attributes:
      size: height and width of a window.
      strides: vertical and horizontal.
      pads: ((above, below), (left, right)) of the images.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads

    def count(self, x: jax.Array) -> tuple[int, ...]:
        """Returns how many windows fit below and beside one another on images [batch, height,
        width, channels] before their padding."""
        sides = zip(x.shape[1:3], self.pads, self.size, self.strides, strict=True)
        return tuple(
            (side + sum(pads) - size) // stride + 1
            for side, pads, size, stride in sides
        )

    def shifts(self, padded: jax.Array, count: Sequence[int]) -> Iterator[jax.Array]:
        """Yields for each place in a window, row by row, the pixels that lie there.

        Args:
          padded: [batch, height, width, channels].
          count: how many windows there are.

        Yields:
          [batch, windows below one another, windows beside one another, channels].
        """
        batch, _, _, channels = padded.shape
        for i, j in np.ndindex(*self.size):
            bottom = i + (count[0] - 1) * self.strides[0] + 1
            right = j + (count[1] - 1) * self.strides[1] + 1
            stop = (batch, bottom, right, channels)
            yield lax.slice(padded, (0, i, j, 0), stop, (1, *self.strides, 1))

    def gather(
        self,
        term: Callable[..., jax.Array],
        results: tuple[jax.Array, ...],
        places: jax.Array,
        image: Sequence[int],
    ) -> jax.Array:
        """Gives every pixel the sum over the windows that it lies in: the way back from windows
        to pixels, for any stride.

        Row m * stride + r of the padded image lies in row t * stride + r of window m - t; columns
        likewise. So with the places seen as [t, r] and the image as [m, r], this is a sum over t.

        Args:
          term: takes each of `results` and then the places, in shapes that broadcast to
            [batch, m, r, m, r, channels]; returns what is added. It must give zero where the
            results are zeros, which is what lies beyond the last windows.
          results: what belongs to each window, [batch, windows, windows, channels].
          places: what belongs to each place in a window, [window height, window width, channels
            or 1]. Those past the window are zeros.
          image: height and width before the padding.

        Returns:
          [batch, height, width, channels].
        """
        (height, width), (down, across) = image, self.strides
        (above, _), (left, _) = self.pads
        tall, wide = -(-places.shape[0] // down), -(-places.shape[1] // across)
        rows, columns = -(-(height + above) // down), -(-(width + left) // across)
        batch, found_rows, found_columns, channels = results[0].shape
        around = ((tall - 1, rows - found_rows), (wide - 1, columns - found_columns))
        padded = lax.optimization_barrier(tuple(pad(x, around) for x in results))
        past = (tall * down - places.shape[0], wide * across - places.shape[1])
        places = jnp.pad(places, ((0, past[0]), (0, past[1]), (0, 0)))
        places = places.reshape(tall, down, wide, across, -1)
        total: Any = 0
        for i, j in np.ndindex(tall, wide):
            start = (0, tall - 1 - i, wide - 1 - j, 0)
            stop = (batch, start[1] + rows, start[2] + columns, channels)
            shifted = [lax.slice(x, start, stop) for x in padded]
            shifted = [x[:, :, None, :, None] for x in shifted]
            total += term(*shifted, places[i, :, j][:, None])
        total = total.reshape(batch, rows * down, columns * across, channels)
        below, right = height + above - rows * down, width + left - columns * across
        return pad(total, ((-above, below), (-left, right)))


def pad(x: jax.Array, pads: Pads, value: float = 0) -> jax.Array:
    """Pads, or where negative crops, height and width of [batch, height, width, channels]."""
    config = ((0, 0, 0), *((*side, 0) for side in pads), (0, 0, 0))
    return lax.pad(x, jnp.array(value, x.dtype), config)
