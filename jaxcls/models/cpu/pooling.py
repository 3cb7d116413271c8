"""Pooling as torch's, with a gradient that is fast on a CPU too.

XLA takes 15 times as long there for the gradient of a maximum over windows as its memory traffic
asks for (44 ms instead of 3 for 2x2 windows over 32 images of 64 x 64 x 64 values on 2 cores).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcls.models.cpu.choice import written_out_on_cpus
from jaxcls.models.cpu.windows import Windows, pad


def max_pool(
    x: jax.Array, window: int, stride: int, *, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Maximum over square windows, as torch.nn.MaxPool2d: padding is never the maximum.

    Only reverse-mode differentiation works. Of equal maxima the first gets the gradient, row by
    row, as in torch and in XLA.

    Args:
      x: [batch, height, width, channels].
      window: side of the windows in pixels.
      stride: pixels between windows.
      padding: pixels added on each of the four sides.
      ceil: whether a last window that hangs over the edge counts (torch's ceil_mode).
    """
    pads = []
    for side in x.shape[1:3]:
        beyond = 0
        if ceil:
            found = math.ceil((side + 2 * padding - window) / stride) + 1
            # A window that would begin beyond the image and its left padding is left out.
            if (found - 1) * stride >= side + padding:
                found -= 1
            beyond = (found - 1) * stride + window - (side + 2 * padding)
        pads.append((padding, padding + max(beyond, 0)))
    return _max_pool(Windows((window,) * 2, (stride,) * 2, tuple(pads)), x)


def _by_xla(windows: Windows, x: jax.Array) -> jax.Array:
    return nn.max_pool(x, windows.size, windows.strides, padding=windows.pads)


# Jitted, so that layers of one shape are compiled once.
@functools.partial(jax.jit, static_argnums=0)
def _gradient(windows: Windows, x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    padded = lax.optimization_barrier(pad(x, windows.pads, -jnp.inf))
    seen = windows.shifts(padded, grad.shape[1:3])
    # Place of each window's maximum, counted from 1, row by row.
    highest, place = next(seen), jnp.ones(grad.shape, jnp.int8)
    for index, values in enumerate(seen, start=2):
        place = jnp.where(values > highest, jnp.int8(index), place)
        highest = jnp.maximum(values, highest)
    places = np.arange(1, math.prod(windows.size) + 1, dtype=np.int8)
    total = windows.gather(
        lambda grad, place, where: jnp.where(place == where, grad, 0),
        (grad, place),
        jnp.asarray(places.reshape(*windows.size, 1)),
        x.shape[1:3],
    )
    return (total,)


_max_pool = written_out_on_cpus(_by_xla, _by_xla, _gradient)


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages [batch, height, width, channels] to [batch, size, size, channels].

    Output i of a side of n pixels is the mean of pixels floor(i n / size) up to, not including,
    ceil((i + 1) n / size), as torch.nn.AdaptiveAvgPool2d: windows overlap where size does not
    divide n, and repeat pixels where the image is smaller than `size`.
    """
    if x.shape[1:3] == (size, size):
        return x
    if size == 1:
        return x.mean((1, 2), keepdims=True)
    rows, columns = (_window_means(side, size) for side in x.shape[1:3])
    means = (rows.astype(x.dtype), columns.astype(x.dtype))
    return jnp.einsum("bhwc,ih,jw->bijc", x, *means, precision=lax.Precision.HIGHEST)


def _window_means(side: int, size: int) -> np.ndarray:
    """Returns float32 [size, side] whose row i averages the pixels of window i."""
    means = np.zeros((size, side), np.float32)
    for i in range(size):
        start, stop = i * side // size, -(-(i + 1) * side // size)
        means[i, start:stop] = 1 / (stop - start)
    return means
