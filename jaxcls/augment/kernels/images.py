"""What functions on batches of images share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import UserError


def check_images(function: str, images: jax.Array) -> None:
    """Raises UserError, naming the function, unless images are uint8 or floats [batch, height,
    width, channels] with at least one image."""
    levels = images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
    if not levels or images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"{function} takes images [batch, height, width, channels], uint8 or float32, one "
            f"or more, not {images.dtype} of shape {tuple(images.shape)}."
        )


def per_image(values: jax.Array) -> jax.Array:
    """Returns [batch, 1, 1, 1] of [batch], to be broadcast against images."""
    return values.reshape(-1, 1, 1, 1)


def take(values: jax.Array, index: Any) -> jax.Array:
    """Returns values[index], for indices that are in bounds: without the checks that a gather
    makes by default."""
    return values.at[index].get(mode="promise_in_bounds")


def uniform(
    rng: jax.Array, batch: int, interval: float | tuple[float, ...]
) -> jax.Array:
    """Returns float32 [batch], each drawn from the interval, or from -d..d for a number d."""
    low, high = symmetric(interval)
    return jax.random.uniform(rng, (batch,), minval=low, maxval=high)


def symmetric(interval: float | tuple[float, ...]) -> tuple[float, ...]:
    """Returns the interval itself (or several of them), or -d to d for a number d."""
    return interval if isinstance(interval, tuple) else (-interval, interval)


def sometimes(
    rng: jax.Array, p: float, changed: jax.Array, images: jax.Array
) -> jax.Array:
    """Returns for each image the changed one with probability p, else the one as it was.

    Args:
      rng: a random key.
      p: 0..1; 0 and 1 draw nothing.
      changed: [batch, height, width, channels].
      images: of the same shape.
    """
    if p in (0, 1):
        return changed if p else images
    drawn = jax.random.bernoulli(rng, jnp.float32(p), (len(images),))
    return jnp.where(per_image(drawn), changed, images)
