"""The operations that policies choose from, by torchvision's names, on whole batches.

    apply_op("Rotate", images, jnp.array([-30.0, 12.5]), interpolation="bilinear")

Each is what torchvision's AutoAugment and Pillow do on 8 bits (pillow_color.py and pillow_warp.py
say how exactly), with a magnitude for each image.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.kernels import pillow_color, pillow_warp
from jaxcls.augment.kernels.images import check_images, per_image
from jaxcls.augment.kernels.resample import Interpolation
from jaxcls.errors import UserError, did_you_mean
from jaxcls.options import allows, type_name

Operation = Callable[..., jax.Array]
"""(images, magnitude, interpolation, fill) -> images."""


def _with_magnitude(function: Any) -> Operation:
    """Returns the operation that changes values by a magnitude."""
    return lambda images, magnitude, *_: function(images, magnitude)


def _enhancing(function: Any) -> Operation:
    """Returns the operation whose magnitude is an enhancement factor less 1, no change."""
    return lambda images, magnitude, *_: function(images, 1 + magnitude)


def _without_magnitude(function: Any) -> Operation:
    """Returns the operation that changes values and has no magnitude."""
    return lambda images, *_: function(images)


def _solarize_add(images: jax.Array, add: jax.Array) -> jax.Array:
    brighter = jnp.minimum(images + per_image(add), 255)
    return jnp.where(images < 128, brighter, images)


OPERATIONS: dict[str, Operation] = {
    "Identity": _without_magnitude(lambda images: images),
    "ShearX": pillow_warp.shear_x,
    "ShearY": pillow_warp.shear_y,
    "TranslateX": pillow_warp.translate_x,
    "TranslateY": pillow_warp.translate_y,
    "Rotate": pillow_warp.rotate,
    "Brightness": _enhancing(pillow_color.brightness),
    "Color": _enhancing(pillow_color.saturation),
    "Contrast": _enhancing(pillow_color.contrast),
    "Sharpness": _enhancing(pillow_color.sharpness),
    "Posterize": _with_magnitude(pillow_color.posterize),
    "Solarize": _with_magnitude(pillow_color.solarize),
    "SolarizeAdd": _with_magnitude(_solarize_add),
    "AutoContrast": _without_magnitude(pillow_color.autocontrast),
    "Equalize": _without_magnitude(pillow_color.equalize),
    "Invert": _without_magnitude(pillow_color.invert),
}
"""What a magnitude means: ShearX, ShearY the factor; TranslateX, TranslateY pixels, truncated to
whole ones; Rotate degrees, counter-clockwise; Brightness, Color, Contrast, Sharpness the
enhancement factor less 1, from -1 up; Posterize bits kept, 0..8; Solarize the grey level from which
pixels are inverted, 0..256; SolarizeAdd (timm's) whole grey levels added to those below 128. The
others have none."""

_RANGES: dict[str, tuple[float, float]] = {
    # A thousand images away, or turns: beyond, float32 has no fractions of a pixel left.
    **dict.fromkeys(("ShearX", "ShearY"), (-1e3, 1e3)),
    **dict.fromkeys(("TranslateX", "TranslateY", "Rotate"), (-1e6, 1e6)),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (-1, 1e3)),
    "Posterize": (0, 8),
    "Solarize": (0, 256),
    "SolarizeAdd": (0, 255),
}
"""Least and greatest magnitude of the operations that have one."""

_WHOLE = ("Posterize", "SolarizeAdd")
"""Operations whose magnitude is a whole number."""


def apply_op(
    name: str,
    images: jax.Array,
    magnitude: jax.Array,
    interpolation: Interpolation = "nearest",
    fill: float = 0,
) -> jax.Array:
    """Applies one operation to a batch.

    Args:
      name: a key of OPERATIONS.
      images: uint8, or floats with whole values 0..255, [batch, height, width, channels]; 1
        or 3 channels.
      magnitude: float32 [batch], in the unit of the operation (see OPERATIONS). Its values are
        checked where they are known: not within jax.jit.
      interpolation: "nearest", "bilinear" or "bicubic", of those that move pixels.
      fill: grey level 0..255 outside of the image, of those that move pixels.

    Returns:
      float32, shaped as the images, whole values 0..255.

    Raises:
      UserError: for an unknown name, arrays of another shape, or a value out of range.
    """
    if name not in OPERATIONS:
        raise UserError(
            f"unknown operation '{name}'.{did_you_mean(name, OPERATIONS)} Known: "
            f"{', '.join(OPERATIONS)}."
        )
    check_images("apply_op", images)
    if images.shape[-1] not in (1, 3):
        raise UserError(
            f"apply_op takes images of 1 or 3 channels, not {images.shape[-1]}."
        )
    if not allows(Interpolation, interpolation):
        raise UserError(
            f"interpolation must be {type_name(Interpolation)}, not {interpolation!r}."
        )
    if not 0 <= fill <= 255:
        raise UserError(f"fill must be a grey level in 0..255, not {fill}.")
    magnitude = jnp.asarray(magnitude, jnp.float32)
    if magnitude.shape != images.shape[:1]:
        raise UserError(
            f"{name} takes a magnitude for each of {len(images)} images, not an array of shape "
            f"{magnitude.shape}."
        )
    if not isinstance(magnitude, jax.core.Tracer):
        _check_magnitudes(name, np.asarray(magnitude))
    levels = jnp.asarray(images, jnp.float32)
    return OPERATIONS[name](levels, magnitude, interpolation, fill)


def _check_magnitudes(name: str, magnitude: np.ndarray) -> None:
    """Raises UserError unless each is finite and in the range of the operation."""
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    whole = name in _WHOLE
    fits = np.isfinite(magnitude) & (low <= magnitude) & (magnitude <= high)
    if whole:
        fits &= magnitude == np.round(magnitude)
    if not fits.all():
        number = "whole numbers" if whole else "numbers"
        raise UserError(
            f"{name} takes as magnitudes {number} in {low:g}..{high:g}, not "
            f"{magnitude[~fits][0]:g}."
        )
