"""Moves pixels as Pillow's Image.transform does on 8 bits, on whole batches.

Pillow samples where the centre (x + 0.5, y + 0.5) of each new pixel falls. "nearest" follows an
affine map in whole multiples of 2^-16 pixels, "bilinear" and "bicubic" (Keys' kernel with
a = -1 here, unlike a = -0.5 when Pillow resizes) in double precision, and both cut the fraction
of the grey level off. Beside the border they repeat it; outside of the image is `fill`.

Shears and translations take a number per row, rotations an angle: their maps are computed with
more digits than float32 has, because a pixel's place often lies on the very border of two.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.kernels.images import take
from jaxcls.augment.kernels.places import ONE, Places
from jaxcls.augment.kernels.platforms import by_platform
from jaxcls.augment.kernels.resample import Interpolation
from jaxcls.augment.kernels.tpu import packed_pixels, products, rotation

FillMode = Literal["constant", "nearest", "reflect"]

_COARSE = 1 << 12
"""Sines are split into a multiple of 1 / _COARSE and a rest: float32 and int32 hold the product
of such a multiple and a place in an image."""

_TAPS = {"bilinear": (0, 1), "bicubic": (-1, 0, 1, 2)}
"""The pixels that make one, counted from the last whose centre lies before its place."""


def warp(
    images: jax.Array,
    maps: jax.Array,
    interpolation: Interpolation,
    fill: float,
    fill_mode: FillMode = "constant",
) -> jax.Array:
    """Moves the pixels of each image by a projective map of its own.

    Affine maps are Pillow's Image.transform(AFFINE), others its PERSPECTIVE, as far as float32
    tells places apart: about 1e-5 pixels in images of 200.

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      maps: float32 [batch, 3, 3]; takes a place (x, y, 1) of the result, in pixels from the
        upper left corner of the image, to its place in the original, up to a factor.
      interpolation: the kernel; "bicubic" is Keys' with a = -1.
      fill: grey level outside of the image, for fill_mode "constant".
      fill_mode: what lies outside: "constant", "nearest" (the border pixel) or "reflect"
        (mirrored at the border, so that the border pixel is repeated).

    Returns:
      float32 of the same shape, whole values 0..255.
    """
    _, height, width, _ = images.shape
    pixels = jnp.arange(width), jnp.arange(height)[:, None]
    x, y = (pixel + 0.5 for pixel in pixels)
    m = maps[:, :, :, None, None]  # each [batch, 1, 1], beside [height, width]
    depth = m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2]
    across = (m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]) / depth
    down = (m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]) / depth
    if interpolation != "nearest":
        return _interpolate(images, across, down, interpolation, fill, fill_mode)

    affine = (maps[:, 2] == jnp.array([0.0, 0.0, 1.0])).all(1)[:, None, None]
    # Where fixed point would overflow, Pillow takes floats too.
    fixed = affine & (jnp.abs(across) < ONE / 4) & (jnp.abs(down) < ONE / 4)
    columns, rows = (
        Places(*(_round(v * ONE) for v in (a, b, c + 0.5 * a + 0.5 * b))).at(*pixels)
        for a, b, c in (maps[:, 0].T, maps[:, 1].T)
    )
    column = jnp.where(fixed, columns, _whole(across))
    row = jnp.where(fixed, rows, _whole(down))
    at = [_index(column, width, fill_mode)], [_index(row, height, fill_mode)]
    copied = _pick_pixels(images, *at)[0][0]
    return fill_outside(copied, column, row, fill, fill_mode)


def rotate(
    images: jax.Array, degrees: jax.Array, interpolation: Interpolation, fill: float
) -> jax.Array:
    """Turns each image about its middle (torchvision's rotate, Pillow's Image.rotate).

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      degrees: float32 [batch], counter-clockwise.
      interpolation: the kernel; "bicubic" is Keys' with a = -1.
      fill: grey level outside of the image.

    Returns:
      float32 of the same shape, whole values 0..255.
    """
    _, height, width, _ = images.shape
    (cos, cos_rest), (sin, sin_rest) = _cos_sin(degrees)
    if interpolation == "nearest":

        def places(size: int, along: _Split, across: _Split) -> Places:
            """Of 2^-16 pixels: size / 2 + along * (x - width / 2) + across * (y - height / 2)."""
            (a, a_rest), (b, b_rest) = along, across
            whole = -a * (width - 1) - b * (height - 1)
            rest = -a_rest * (width - 1) - b_rest * (height - 1)
            start = _fixed((whole, rest), ONE // _COARSE // 2, ONE // 2)
            return Places(
                _fixed(along, ONE // _COARSE, ONE),
                _fixed(across, ONE // _COARSE, ONE),
                size * (ONE // 2) + start,
            )

        columns = places(width, (cos, cos_rest), (-sin, -sin_rest))
        rows = places(height, (sin, sin_rest), (cos, cos_rest))
        x, y = jnp.arange(width), jnp.arange(height)[:, None]
        column, row = columns.at(x, y), rows.at(x, y)
        copy = by_platform(copy_rotated, tpu=rotation.rotate)
        copied = copy(images, degrees, columns, rows)
        return fill_outside(copied, column, row, fill)

    c = (cos / _COARSE + cos_rest)[:, None, None]
    s = (sin / _COARSE + sin_rest)[:, None, None]
    x = jnp.arange(width) + (0.5 - width / 2)
    y = (jnp.arange(height) + (0.5 - height / 2))[:, None]
    across, down = width / 2 + c * x - s * y, height / 2 + s * x + c * y
    return _interpolate(images, across, down, interpolation, fill, "constant")


def shear_x(
    images: jax.Array, factor: jax.Array, interpolation: Interpolation, fill: float
) -> jax.Array:
    """Moves each row to the left by its distance from the upper border, times a factor.

    torchvision's affine(shear=[degrees(atan(factor)), 0], center=[0, 0]) on Pillow images, as
    RandAugment's ShearX.

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      factor: float32 [batch], between -2 and 2.
      interpolation: the kernel; "bicubic" is Keys' with a = -1.
      fill: grey level outside of the image.

    Returns:
      float32 of the same shape, whole values 0..255.
    """
    _, height, width, _ = images.shape
    places = jnp.arange(height)
    if interpolation == "nearest":
        start = ONE // 2 + _round(factor * (ONE / 2))
        step = _round(factor * ONE)
        shift = (start[:, None] + step[:, None] * places) >> 16
        return _filled(_shift_rows(images, shift), shift, fill)

    # factor * (y + 0.5) as whole pixels and a fraction in units of 2^-31, of which int32 keeps
    # just the fraction when it overflows. Much hangs on its last digit: whether a row begins at
    # 0 or before.
    bits = _round(factor * 2.0**30)[:, None] * (2 * places + 1) & 2**31 - 1
    fraction = bits * 2.0**-31
    shift = jnp.round(factor[:, None] * (places + 0.5) - fraction).astype(jnp.int32)
    taps = _TAPS[interpolation]
    # Places in the left half of the first pixel are between it and the border repeated.
    before, after = 1 - taps[0], taps[-1]
    padded = jnp.pad(images, ((0, 0), (0, 0), (before, after), (0, 0)), "edge")
    padded = _shift_rows(padded, shift)
    pixels = [padded[:, :, before + tap : before + tap + width] for tap in taps]
    levels = _levels(_KERNELS[interpolation](pixels, fraction[:, :, None, None]))
    return _filled(levels, shift + (bits >> 30), fill)


def shear_y(
    images: jax.Array, factor: jax.Array, interpolation: Interpolation, fill: float
) -> jax.Array:
    """Moves each column up by its distance from the left border, times a factor: shear_x with
    the axes exchanged, RandAugment's ShearY."""
    return shear_x(images.swapaxes(1, 2), factor, interpolation, fill).swapaxes(1, 2)


def translate_x(
    images: jax.Array, pixels: jax.Array, interpolation: Interpolation, fill: float
) -> jax.Array:
    """Moves each image to the right by whole pixels, RandAugment's TranslateX.

    Args:
      images: float32 [batch, height, width, channels].
      pixels: float32 [batch]; rounded towards zero as torchvision does.
      interpolation: has no effect on whole pixels; all moves take the same arguments.
      fill: grey level outside of the image.

    Returns:
      float32 of the same shape.
    """
    shift = -jnp.trunc(pixels).astype(jnp.int32)
    moved = by_platform(shift_images, tpu=products.shift_images)(images, shift)
    return _filled(moved, shift[:, None], fill)


def translate_y(
    images: jax.Array, pixels: jax.Array, interpolation: Interpolation, fill: float
) -> jax.Array:
    """Moves each image down by whole pixels: translate_x with the axes exchanged, RandAugment's
    TranslateY."""
    moved = translate_x(images.swapaxes(1, 2), pixels, interpolation, fill)
    return moved.swapaxes(1, 2)


_Split = tuple[jax.Array, jax.Array]
"""A number with more digits than float32 has: an integer, and a float32 that is added to it in
a finer unit."""


def _cos_sin(degrees: jax.Array) -> tuple[_Split, _Split]:
    """Returns cosine and sine, each int32 [batch] of 1 / _COARSE and the rest, float32 [batch].

    Exact to about 1e-9, and to 1e-11 at whole degrees.
    """
    # As Pillow: multiples of 90 degrees have no dust of the order of 1e-16.
    angles = np.radians(np.arange(360))
    table = np.round([np.cos(angles), np.sin(angles)], 15)
    coarse = np.round(table * _COARSE)
    whole = jnp.round(degrees)
    index = whole.astype(jnp.int32) % 360
    cos, sin = jnp.asarray(coarse, jnp.int32)[:, index]
    cos_rest, sin_rest = jnp.asarray(table - coarse / _COARSE, jnp.float32)[:, index]
    # The angle's fraction, by the sine and cosine of a sum. 1 - cos(r) = 2 sin(r / 2)^2.
    c, s = jnp.asarray(table, jnp.float32)[:, index]
    r = (degrees - whole) * (math.pi / 180)
    less, sine = 2 * jnp.sin(r / 2) ** 2, jnp.sin(r)
    return (
        (cos, cos_rest - (c * less + s * sine)),
        (sin, sin_rest + (c * sine - s * less)),
    )


def _fixed(number: _Split, unit: int, rest_unit: int) -> jax.Array:
    """Returns number[0] * unit + number[1] * rest_unit, rounded to int32."""
    whole, rest = number
    return whole * unit + _round(rest * rest_unit)


def _round(values: jax.Array) -> jax.Array:
    """Returns the nearest int32, the greater one of two, without rounding a sum on the way."""
    below = jnp.floor(values)
    return (below + (values - below >= 0.5)).astype(jnp.int32)


def _whole(places: jax.Array) -> jax.Array:
    """Returns the pixel that a place lies in, int32; far outside of every image, and for NaN
    (where a plane is seen from its edge), any that is outside."""
    return jnp.where(jnp.abs(places) < ONE, jnp.floor(places), -ONE).astype(jnp.int32)


def copy_rotated(
    images: jax.Array, degrees: jax.Array, across: Places, down: Places
) -> jax.Array:
    """Returns the pixels at the places of a rotation, and any where a place lies outside.

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      degrees: float32 [batch], the angle; not needed here.
      across: columns of the original.
      down: rows of the original.
    """
    _, height, width, _ = images.shape
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    columns = jnp.clip(across.at(x, y), 0, width - 1)
    rows = jnp.clip(down.at(x, y), 0, height - 1)
    return pick_pixels(images, [columns], [rows])[0][0]


def fill_outside(
    levels: jax.Array, x: jax.Array, y: jax.Array, fill: float, mode: str = "constant"
) -> jax.Array:
    """Returns the levels with `fill` where (x, y), [batch, height, width] or broadcast to it, is
    outside of the image. In modes other than "constant" the levels stay."""
    if mode != "constant":
        return levels
    _, height, width, _ = levels.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return jnp.where(inside[..., None], levels, fill)


def _interpolate(
    images: jax.Array,
    across: jax.Array,
    down: jax.Array,
    interpolation: Literal["bilinear", "bicubic"],
    fill: float,
    mode: FillMode,
) -> jax.Array:
    """Returns the grey level at (across, down), float32 [batch, height, width], in pixels from
    the upper left corner of each image."""
    _, height, width, _ = images.shape
    x, y = across - 0.5, down - 0.5
    left, above = _whole(x), _whole(y)
    kernel, taps = _KERNELS[interpolation], _TAPS[interpolation]
    columns = [_index(left + tap, width, mode) for tap in taps]
    rows = [_index(above + tap, height, mode) for tap in taps]
    dx, dy = (x - left)[..., None], (y - above)[..., None]
    lines = [kernel(pixels, dx) for pixels in _pick_pixels(images, columns, rows)]
    levels = _levels(kernel(lines, dy))
    return fill_outside(levels, across, down, fill, mode)


def pick_pixels(
    images: jax.Array, columns: Sequence[jax.Array], rows: Sequence[jax.Array]
) -> list[list[jax.Array]]:
    """Returns the pixels at all pairs of a row and a column, as [row][column].

    Args:
      images: [batch, height, width, channels], whole values 0..255.
      columns: each int32 [batch, new height, new width], within the image.
      rows: of the same shape, within the image.

    Returns:
      each [batch, new height, new width, channels].
    """
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, height * width, channels)
    pick = jax.vmap(take)
    return [[pick(flat, row * width + column) for column in columns] for row in rows]


_pick_pixels = by_platform(pick_pixels, tpu=products.pick_pixels)


def _index(place: jax.Array, size: int, mode: FillMode) -> jax.Array:
    """Returns which of `size` pixels is seen at a place inside or outside of the image."""
    if mode == "reflect":
        place %= 2 * size
        return jnp.minimum(place, 2 * size - 1 - place)
    return jnp.clip(place, 0, size - 1)


def _bilinear(pixels: Sequence[jax.Array], d: jax.Array) -> jax.Array:
    """Returns the value at d, 0..1, between two pixels."""
    a, b = pixels
    return a + (b - a) * d


def _bicubic(pixels: Sequence[jax.Array], d: jax.Array) -> jax.Array:
    """Returns the value at d, 0..1, between the two pixels in the middle of four: the cubic
    whose slope at a pixel is the difference of its neighbours."""
    before, a, b, after = pixels
    slope = b - before
    square = 2 * (before - a) + b - after
    cube = a - before - b + after
    return a + d * (slope + d * (square + d * cube))


_KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}


def _levels(values: jax.Array) -> jax.Array:
    """Returns grey levels: whole numbers 0..255, the fraction cut off."""
    return jnp.clip(jnp.floor(values), 0, 255)


def _filled(images: jax.Array, shift: jax.Array, fill: float) -> jax.Array:
    """Returns the images with `fill` where pixel x + shift of a row, int32 [batch, height],
    is not in the image."""
    column = shift[:, :, None] + jnp.arange(images.shape[2])
    return fill_outside(images, column, jnp.zeros_like(column), fill)


def shift_rows(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns images whose pixel x is x + shift of the same row, and any where there is none.

    Args:
      images: [batch, height, width, channels], whole values 0..255.
      shift: int32 [batch, height].
    """
    width = images.shape[2]
    source = jnp.clip(shift[:, :, None] + jnp.arange(width), 0, width - 1)
    return jax.vmap(jax.vmap(take))(images, source)


def shift_images(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Does what shift_rows does, by one number for all rows of an image, int32 [batch]."""
    return shift_rows(images, jnp.broadcast_to(shift[:, None], images.shape[:2]))


_shift_rows = by_platform(shift_rows, tpu=packed_pixels.shift_rows)
