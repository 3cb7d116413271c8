"""Resizes as Pillow does on 8 bits, bit for bit, on whole batches.

Published accuracies were measured on images that Pillow resized. Its kernels are whole
multiples of 2^-22 and each of its two passes ends in whole grey levels, so that the result
does not depend on the order of any sum: the same integers come out of a matrix product.
"""

from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Interpolation = Literal["nearest", "bilinear", "bicubic"]

_BITS = 22
"""Pillow's weights are whole multiples of 2^-22."""

_FINE_BITS = 11
"""A weight is split into halves of 11 bits: a product of one half and a grey level has
19 bits. float32 has 24, and sums dozens of such products without rounding."""


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the (height, width) at which the shorter side is `size`.

    The aspect ratio is kept; the longer side is truncated, not rounded (torchvision's rule).
    """
    shorter = min(height, width)
    return size * height // shorter, size * width // shorter


def resample(
    images: jax.Array, height: int, width: int, interpolation: Interpolation
) -> jax.Array:
    """Resizes a batch as Pillow's Image.resize, antialiased (but for "nearest").

    The result is Pillow's to the last bit as long as at most 64 pixels make one, up to
    32 times smaller for "bilinear" and 16 times for "bicubic"; beyond that, a value half-way
    between two grey levels may go to the other one.

    Args:
      images: float32 [batch, old height, old width, channels], whole values 0..255.
      height: new height, 1 or more.
      width: new width, 1 or more.
      interpolation: the kernel; "bicubic" is Keys' with a = -0.5.

    Returns:
      float32 [batch, height, width, channels], whole values 0..255.
    """
    sizes = {1: height, 2: width}
    if interpolation == "nearest":
        for axis, size in sizes.items():
            source = nearest(images.shape[axis], size)
            images = jnp.take(images, source, axis, mode="clip")
        return images
    # The order matters, because the first pass is rounded too. Pillow since version 13 begins
    # with the vertical one where that leaves much less for the second. With a kept aspect ratio:
    # images made smaller that are more than twice as high as wide.
    shrink = {axis: images.shape[axis] - size for axis, size in sizes.items()}
    vertical_first = shrink[1] > 0 and shrink[1] > 2 * shrink[2]
    for axis in (1, 2) if vertical_first else (2, 1):
        images = _resample_axis(images, axis, sizes[axis], interpolation)
    return images


def _resample_axis(
    images: jax.Array, axis: int, size: int, interpolation: Interpolation
) -> jax.Array:
    """Resizes one axis by one matrix product; rounds to whole grey levels 0..255."""
    weights = _weights(images.shape[axis], size, interpolation)
    halves = np.concatenate(_split(weights)).astype(np.float32)
    # Whole numbers in float32, because hardware multiplies matrices of floats fastest.
    sums = jnp.tensordot(halves, images, (1, axis), precision=jax.lax.Precision.HIGHEST)
    sums = sums.astype(jnp.int32)
    total = (sums[:size] << _FINE_BITS) + sums[size:]
    levels = (total + (1 << _BITS - 1)) >> _BITS
    return jnp.moveaxis(jnp.clip(levels, 0, 255).astype(images.dtype), 0, axis)


def _weights(side: int, size: int, interpolation: Interpolation) -> np.ndarray:
    """Returns how much each of `side` pixels adds to each of `size`, in units of 2^-22.

    Returns:
      int64 [size, side]; each row sums to 2^22, but for rounding.
    """
    scale = side / size
    # Antialiasing: a kernel as wide as the new pixels, where these are the wider ones.
    stretch = max(scale, 1.0)
    middle = ((np.arange(size) + 0.5) * scale)[:, None]
    place = np.arange(side)
    weights = kernel((place - middle + 0.5) * (1 / stretch), interpolation)
    weights = weights / weights.sum(1, keepdims=True) * 2**_BITS
    return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)


def _split(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the parts of weights = coarse * 2^11 + fine, with |fine| of 2^10 at most."""
    coarse = (weights + (1 << _FINE_BITS - 1)) >> _FINE_BITS
    return coarse, weights - (coarse << _FINE_BITS)


def kernel(x: Any, interpolation: Interpolation, numpy: ModuleType = np) -> Any:
    """Returns the height of the kernel at x.

    Args:
      x: an array, in the kernel's own pixels from its middle.
      interpolation: "bilinear" or "bicubic".
      numpy: NumPy, or JAX's for traced values.
    """
    x = numpy.abs(x)
    if interpolation == "bilinear":
        return numpy.maximum(1 - x, 0)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return numpy.where(x < 1, inner, numpy.where(x < 2, outer, 0))


def nearest(side: int, size: int) -> np.ndarray:
    """Returns which of `side` pixels each of `size` copies, int64 [size] in 0..side-1."""
    steps = np.full(size, side / size)
    steps[0] /= 2
    # Pillow adds up the steps in double precision: where the exact sum lies between two
    # pixels, rounding decides.
    return np.minimum(np.cumsum(steps).astype(np.int64), side - 1)
