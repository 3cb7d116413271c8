"""The grey levels of Pillow's colour operations, bit for bit, on whole batches.

Pillow computes in bytes, in float32 and in double precision, and mostly cuts off the rest. Here
whole numbers decide instead wherever its result is that of exact arithmetic, so that no
compiler's order of operations shows; where Pillow's own rounding shows, it is repeated.

In every function the images are float32 [batch, height, width, channels] with whole values
0..255 and 1 or 3 channels, and so is the result; an amount is [batch], one for each image.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.kernels.images import per_image, take
from jaxcls.augment.kernels.platforms import by_platform
from jaxcls.augment.kernels.tpu import products
from jaxcls.errors import UserError

_LEVELS = 256


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Mixes black with each image (Pillow's ImageEnhance.Brightness).

    Args:
      images: the batch.
      factor: float32 [batch], 0 or more: 0 is black, 1 the image, above 1 brighter.
    """
    return _blend(jnp.zeros((1, 1, 1, 1)), images, factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Mixes the grey image with each image (Pillow's ImageEnhance.Color).

    Args:
      images: the batch.
      factor: float32 [batch], 0 or more: 0 is grey, 1 the image, above 1 more colourful.
    """
    if images.shape[-1] == 1:
        return images
    return _blend(_luma(images), images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Mixes the mean grey level of an image with it (Pillow's ImageEnhance.Contrast).

    Args:
      images: the batch.
      factor: float32 [batch], 0 or more: 0 is flat, 1 the image, above 1 more contrast.
    """
    _, height, width, _ = images.shape
    pixels = height * width
    total = _luma(images).astype(jnp.int32).sum((1, 2, 3), keepdims=True)
    mean = (total + pixels // 2) // pixels
    return _blend(mean.astype(images.dtype), images, factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Mixes the smoothed image with each image (Pillow's ImageEnhance.Sharpness).

    Args:
      images: the batch.
      factor: float32 [batch], 0 or more: 0 is smooth, 1 the image, above 1 sharper.
    """
    return _blend(_smooth(images), images, factor)


def grayscale(images: jax.Array) -> jax.Array:
    """Replaces each channel by the luma (Pillow's mode L, the weights of ITU-R 601-2)."""
    return jnp.broadcast_to(_luma(images), images.shape)


def invert(images: jax.Array) -> jax.Array:
    """Exchanges black and white (Pillow's ImageOps.invert)."""
    return 255 - images


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts what is bright (Pillow's ImageOps.solarize).

    Args:
      images: the batch.
      threshold: float32 or int32 [batch]: inverts the grey levels from here on, so that 0
        inverts all and 256 none.
    """
    return jnp.where(images >= per_image(threshold), 255 - images, images)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest bits of each grey level (Pillow's ImageOps.posterize).

    Args:
      images: the batch.
      bits: int32 or float32 [batch] with whole values 0..8: 8 is the image, 0 black.
    """
    lost = per_image(8 - bits.astype(jnp.int32))
    levels = images.astype(jnp.int32) >> lost << lost
    return levels.astype(images.dtype)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel of each image to 0..255 (Pillow's ImageOps.autocontrast).

    A channel of one grey level stays as it is. The greatest level often becomes 254, not
    255, as in Pillow.
    """
    batch, height, width, channels = images.shape

    def lines(images: jax.Array) -> jax.Array:
        flat = images.reshape(batch, height, width * channels)
        # Columns first: whole lines at a time.
        low, high = (
            jnp.tile(most(most(flat, 1).reshape(batch, width, channels), 1), (1, width))
            for most in (jnp.min, jnp.max)
        )
        return _stretch(flat, low[:, None], high[:, None]).reshape(images.shape)

    def pixels(images: jax.Array) -> jax.Array:
        low, high = (most(images, (1, 2), keepdims=True) for most in (jnp.min, jnp.max))
        return _stretch(images, low, high)

    # As in _smooth.
    return by_platform(pixels, cpu=lines)(images)


def _stretch(levels: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns levels from low to high, all broadcast against each other, as levels 0..255."""
    width = jnp.maximum(high - low, 1)
    above = 255 * (levels - low)
    # The half keeps any rounding of the quotient, a whole number or at least 1 / 255 away
    # from one, on its side.
    stretched = jnp.floor((above + 0.5) / width)
    whole = stretched * width == above
    kinds, bits = _stretches_rounded_down()
    place = low.astype(jnp.int32) * _LEVELS + high.astype(jnp.int32)
    down = whole & _is_set(jnp.asarray(bits)[jnp.asarray(kinds)[place]], stretched)
    return jnp.where(high > low, stretched - down, levels)


def equalize(images: jax.Array) -> jax.Array:
    """Levels out the histogram of each channel of each image (Pillow's ImageOps.equalize)."""
    batch, _, _, channels = images.shape
    levels = images.astype(jnp.int32).reshape(batch, -1, channels)
    counts = by_platform(histogram, tpu=products.histogram)(levels)
    before = jnp.cumsum(counts, -1) - counts
    # All the pixels but those of the greatest level, in 255 steps. A channel with less than
    # a pixel to a step, or with one level, stays as it is.
    step = jnp.where(counts > 0, before, 0).max(-1, keepdims=True) // 255
    table = jax.lax.div(step // 2 + before, jnp.maximum(step, 1))
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(_LEVELS))
    # The table rises anyway: this only keeps XLA from dividing anew for each pixel.
    table = jax.lax.cummax(table.astype(images.dtype), axis=2)
    looked_up = by_platform(look_up, tpu=products.look_up)(table, levels)
    return looked_up.reshape(images.shape)


def gamma(images: jax.Array, exponent: jax.Array) -> jax.Array:
    """Raises each grey level to a power (torchvision's adjust_gamma on Pillow images).

    A level whose power lies within 1e-4 of a whole grey level may differ by one level.

    Args:
      images: the batch.
      exponent: float32 [batch], 0 or more: below 1 brightens, above 1 darkens.
    """
    raised = jnp.power(images / 255, per_image(exponent))
    return jnp.floor(255.999 * raised)


def hue(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Turns the hue (torchvision's adjust_hue on Pillow images).

    Hue and saturation are bytes in between, so that even a factor of 0 moves a colour by some
    levels. One-channel images stay as they are.

    Args:
      images: the batch.
      factor: float32 [batch], -0.5..0.5 turns of the colour circle.
    """
    if images.shape[-1] == 1:
        return images
    _check_colours(images)
    angle, colourfulness, value = _hue_saturation_value(images)
    angle += jnp.trunc(factor * 255).reshape(-1, 1, 1)
    # Quicker than a remainder, and the angle is at most one turn off.
    angle = jnp.where(angle < 0, angle + 256, angle)
    angle = jnp.where(angle > 255, angle - 256, angle)
    return _red_green_blue(angle, colourfulness, value)


def gaussian_blur(images: jax.Array, kernel_size: int, sigma: jax.Array) -> jax.Array:
    """Blurs with a Gaussian (torchvision's gaussian_blur on Pillow images).

    Borders are mirrored at the border pixel. Where a sum lies within 1e-4 of the middle
    between two grey levels, it may go to the other one.

    Args:
      images: the batch.
      kernel_size: pixels of a side of the kernel, odd, below twice the shorter side of the
        images.
      sigma: float32 [batch], standard deviation in pixels, above 0.

    Raises:
      UserError: if the kernel reaches beyond the mirrored image.
    """
    reach = kernel_size // 2
    shorter = min(images.shape[1:3])
    if reach >= shorter:
        raise UserError(
            f"A Gaussian blur with kernel_size={kernel_size} mirrors more than the images of "
            f"{images.shape[1]}x{images.shape[2]} have: use one below {2 * shorter}."
        )
    if reach == 0:
        return images
    weights = jnp.exp(-0.5 * (jnp.arange(reach + 1) / sigma[:, None]) ** 2)
    weights = weights / (2 * weights.sum(1, keepdims=True) - 1)
    for axis in (1, 2):
        images = _convolve(images, weights, axis)
    return jnp.round(images)


def _blend(start: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns start + factor * (images - start) as whole levels, Pillow's Image.blend.

    Args:
      start: broadcasts against the images: what is left at factor 0.
      images: what is left at factor 1.
      factor: float32 [batch].
    """
    change = per_image(factor) * (images - start)
    # Pillow rounds the product and the sum, compilers like to round them once, at the end.
    # A maximum that changes nothing stands between.
    change = jnp.maximum(change, -1e9)
    return jnp.floor(jnp.clip(start + change, 0, 255))


def _luma(images: jax.Array) -> jax.Array:
    """Returns Pillow's mode L, [batch, height, width, 1]."""
    if images.shape[-1] == 1:
        return images
    _check_colours(images)
    red, green, blue = jnp.split(images, 3, -1)
    # Below 2^24: exact in float32 in any order.
    total = 19595 * red + 38470 * green + 7471 * blue + 32768
    return jnp.floor(total / 65536)


def _check_colours(images: jax.Array) -> None:
    if images.shape[-1] != 3:
        raise UserError(
            f"a change of colours takes images of 1 or 3 channels, not {images.shape[-1]}: "
            "arrays are [batch, height, width, channels]."
        )


def _smooth(images: jax.Array) -> jax.Array:
    """Returns Pillow's ImageFilter.SMOOTH: 3x3 pixels, the middle one five times. Pixels of
    the border stay as they are."""
    batch, height, width, channels = images.shape
    if min(height, width) < 3:
        return images

    def lines(images: jax.Array) -> jax.Array:
        flat = images.reshape(batch, height, width * channels, 1)
        return _smooth_inside(flat, channels).reshape(images.shape)

    # On a CPU long lines fill the vector registers; a TPU would turn the memory around.
    pixels = functools.partial(_smooth_inside, step=1)
    return by_platform(pixels, cpu=lines)(images)


def _smooth_inside(images: jax.Array, step: int) -> jax.Array:
    """_smooth, of images [batch, height, columns, channels] where `step` columns lie between
    neighbours."""
    _, height, columns, _ = images.shape
    # Padded first, and once: sums of slices of the result are then made in one quick loop.
    border = (0, 0), (1, 1), (step, step), (0, 0)
    padded = jax.lax.optimization_barrier(jnp.pad(images, border))
    around = sum(
        padded[:, row : row + height, column : column + columns]
        for row in range(3)
        for column in (0, step, 2 * step)
    )
    # 13 is odd: no sum comes closer than 1 / 26 to the middle between two levels.
    smoothed = jnp.floor((around + 4 * images) / 13 + 0.5)
    inner = np.ones((1, height - 2, columns - 2 * step, 1), bool)
    return jnp.where(np.pad(inner, border), smoothed, images)


def _convolve(images: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Sums neighbours along an axis, mirrored at the border pixels.

    Args:
      images: the batch.
      weights: float32 [batch, reach + 1], of the pixel itself and of those at each distance.
      axis: 1 or 2.
    """
    reach = weights.shape[1] - 1
    border = [(0, 0)] * 4
    border[axis] = (reach, reach)
    padded = jnp.pad(images, border, mode="reflect")
    size = images.shape[axis]

    def shifted(by: int) -> jax.Array:
        return jax.lax.slice_in_dim(padded, reach + by, reach + by + size, axis=axis)

    total = per_image(weights[:, 0]) * images
    for by in range(1, reach + 1):
        total += per_image(weights[:, by]) * (shifted(-by) + shifted(by))
    return total


def _hue_saturation_value(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns Pillow's mode HSV of three-channel images: each [batch, height, width]."""
    red, green, blue = (images[..., channel] for channel in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # The hue in sixths of a turn is sector + offset / chroma.
    sector = jnp.where(value == green, 2, 4)
    offset = jnp.where(value == green, blue - red, red - green)
    is_red = value == red
    sector = jnp.where(is_red, jnp.where(green >= blue, 0, 6), sector)
    offset = jnp.where(is_red, green - blue, offset)
    # In 255ths of a turn: a whole number below 2^24 over another one. The half keeps any
    # rounding of the quotient on its side of the whole numbers.
    above = 85 * (sector * chroma + offset)
    below = 2 * jnp.maximum(chroma, 1)
    angle = jnp.floor((above + 0.5) / below)
    down = (angle * below == above) & _is_set(jnp.asarray(_hues_rounded_down()), angle)
    saturation = jnp.floor((255 * chroma + 0.5) / jnp.maximum(value, 1))
    return angle - down, saturation, value


def _red_green_blue(
    angle: jax.Array, saturation: jax.Array, value: jax.Array
) -> jax.Array:
    """Returns Pillow's mode RGB of mode HSV, [batch, height, width, 3] of [batch, height, width].

    A channel takes away from the value what its colour is away from the hue: nothing within a
    sixth of a turn, all the saturation from two sixths on, in 255ths.
    """
    angle, saturation, value = (p[..., None] for p in (angle, saturation, value))
    place = 6 * angle - jnp.array([0.0, 510.0, 1020.0])
    place = jnp.where(place < 0, place + 1530, place)
    distance = jnp.clip(jnp.minimum(place - 255, 1275 - place), 0, 255)
    above = value * (65025 - saturation * distance)
    # Below 2^24: exact in float32, and so is the rest, which shows what the quotient, rounded
    # somehow, should have been.
    level = jnp.floor(above * (1 / 65025) + 0.5)
    rest = above - 65025 * level
    return level + (rest > 32512) - (rest < -32512)


def _is_set(bits: jax.Array, position: jax.Array) -> jax.Array:
    """Returns whether the bit at a position is set.

    Args:
      bits: uint32 [..., 8], 256 bits from the lowest of the first number on.
      position: float32, broadcasts against [...]: whole values 0..255.
    """
    position = position.astype(jnp.uint32)
    number = bits[..., 0]
    for index in range(1, 8):
        number = jnp.where(position >> 5 == index, bits[..., index], number)
    return (number >> (position & 31)) & 1 == 1


def _packed(bits: np.ndarray) -> np.ndarray:
    """Packs bool [..., 256] into uint32 [..., 8], for _is_set."""
    return np.packbits(bits, -1, bitorder="little").view("<u4").astype(np.uint32)


@functools.cache
def _hues_rounded_down() -> np.ndarray:
    """Returns which whole hues Pillow's float32 makes one less: 256 bits, for _is_set."""
    hues = np.arange(_LEVELS)
    sector = (hues * 6 + 255) // 510 * 2
    offset = hues * 6 / 255 - sector
    # The channels are ranked by how far they are below the greatest, in units of the chroma:
    # one is 1, this is the other one.
    other = np.float32(1 - np.abs(offset)).astype(np.float64)
    sixths = np.where(offset > 0, sector % 6 + 1 - other, sector % 6 + other - 1)
    turns = np.float32(np.fmod(np.float32(sixths) / np.float64(6) + 1, 1))
    return _packed(np.floor(turns * np.float64(255)) < hues)


@functools.cache
def _stretches_rounded_down() -> tuple[np.ndarray, np.ndarray]:
    """Returns which whole results Pillow's double precision makes one less in autocontrast.

    Returns:
      kinds: uint16 [65536], the row of `bits` for least level * 256 + greatest level.
      bits: uint32 [kinds, 8], whether each result is one less, for _is_set.
    """
    down = np.zeros((_LEVELS, _LEVELS, _LEVELS), bool)
    for width in range(1, _LEVELS):
        # Whole results: at multiples of width / share above the least level.
        share = math.gcd(width, 255)
        result = np.arange(share + 1) * (255 // share)
        low = np.arange(_LEVELS - width)[:, None]
        scale = 255.0 / width
        level = low + np.arange(share + 1) * (width // share)
        stretched = np.floor(level * scale + -low * scale)
        down[low, low + width, result] = stretched < result
    bits = _packed(down.reshape(-1, _LEVELS))
    bits, kinds = np.unique(bits, axis=0, return_inverse=True)
    return kinds.astype(np.uint16), bits


def histogram(levels: jax.Array) -> jax.Array:
    """Counts the pixels of each level.

    Args:
      levels: int32 [batch, pixels, channels] in 0..255.

    Returns:
      int32 [batch, channels, 256].
    """
    channels = levels.shape[-1]

    def count(entries: jax.Array) -> jax.Array:
        counts = jnp.zeros(channels * _LEVELS, jnp.int32)
        return counts.at[entries].add(1, mode="promise_in_bounds")

    return jax.vmap(count)(_entries(levels)).reshape(-1, channels, _LEVELS)


def look_up(table: jax.Array, levels: jax.Array) -> jax.Array:
    """Replaces each level by its entry in a table.

    Args:
      table: float32 [batch, channels, 256], whole values 0..255.
      levels: int32 [batch, pixels, channels] in 0..255.

    Returns:
      float32 [batch, pixels, channels].
    """
    found = jax.vmap(take)(table.reshape(len(table), -1), _entries(levels))
    return found.reshape(levels.shape)


def _entries(levels: jax.Array) -> jax.Array:
    """Returns the places of levels [batch, pixels, channels] in a table of channels * 256,
    [batch, pixels * channels]: in the order of the memory, which is twice as fast."""
    starts = _LEVELS * jnp.arange(levels.shape[-1])
    return (levels + starts).reshape(len(levels), -1)
