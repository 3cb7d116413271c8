"""The one place that chooses between formulations of a computation by platform."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Formulation = Callable[..., Any]
"""Takes arrays and returns arrays."""

LEVELS = jnp.uint8
"""The dtype in which repeated() keeps images between two steps, except on TPUs."""


def by_platform(default: Formulation, **special: Formulation) -> Formulation:
    """Returns a function that uses the formulation of the platform that it is compiled for.

    All formulations return the same for the same arguments.

    Args:
      default: the formulation for all other platforms.
      **special: the formulations for some platforms, by JAX's names: cpu=..., tpu=...
    """
    return functools.partial(jax.lax.platform_dependent, default=default, **special)


def repeated(
    count: int | jax.Array,
    step: Callable[[jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    *,
    tpu_dtype: Any,
) -> jax.Array:
    """Applies a step several times, in a loop that is compiled once.

    Between two steps the images have a dtype that holds whole values 0..255 and is quick to
    copy: bytes, which only TPUs convert slowly.

    Args:
      count: of the steps, 0 or more.
      step: (index of the step, images) -> images of the same dtype.
      images: float32 [batch, height, width, channels], whole values 0..255.
      tpu_dtype: the dtype between two steps on TPUs.
    """

    def loop(dtype: Any, images: jax.Array) -> jax.Array:
        levels = jax.lax.fori_loop(0, count, step, images.astype(dtype))
        return levels.astype(images.dtype)

    on_tpus = functools.partial(loop, tpu_dtype)
    return by_platform(functools.partial(loop, LEVELS), tpu=on_tpus)(images)
