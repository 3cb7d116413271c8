"""Transforms that move pixels."""

import abc
import dataclasses
import itertools
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval

from jaxcls.augment.kernels.images import per_image, sometimes, symmetric, take, uniform
from jaxcls.augment.kernels.pillow_warp import FillMode, fill_outside, rotate, warp
from jaxcls.augment.kernels.resample import Interpolation, resample, resized_shape
from jaxcls.augment.pipeline import (
    LARGEST_SIDE,
    BatchFunction,
    ImageTransform,
    Maps,
    RandomGreyLevelTransform,
    RunPosition,
    Side,
    Warp,
    WholeGreyLevel,
    product,
)
from jaxcls.errors import UserError
from jaxcls.options import AboveZero, Ascending, Share, ShareBelowOne, ZeroOrMore

CropMode = Literal["constant", "edge", "reflect"]

Spread = ZeroOrMore | Annotated[tuple[float, float], Ascending()]
"""Uniform between two numbers; one number d means -d to d."""

_Shift = Annotated[float, Interval(ge=-1, le=1)]
_Zoom = Annotated[float, Interval(gt=-1, le=1)]
_ShearAngle = Annotated[float, Interval(gt=-90, lt=90)]

ShiftSpread = Share | Annotated[tuple[_Shift, _Shift], Ascending()]
ZoomSpread = ShareBelowOne | Annotated[tuple[_Zoom, _Zoom], Ascending()]
ShearSpread = (
    Annotated[float, Interval(ge=0, lt=90)]
    | Annotated[tuple[_ShearAngle, _ShearAngle], Ascending()]
    | tuple[_ShearAngle, _ShearAngle, _ShearAngle, _ShearAngle]
)


@dataclasses.dataclass(kw_only=True)
class Resize(ImageTransform):
    """Resizes the shorter side to `size`, keeping the aspect ratio, with antialiasing.

    torchvision's Resize(size) on Pillow images, to the last bit (kernels/resample.py
    says how). Two matrix products; "nearest" copies pixels, without antialiasing.

    Attributes:
      size: pixels of the shorter side, 1..16384.
      interpolation: "nearest", "bilinear" or "bicubic" (Keys' kernel with a = -0.5, Pillow's).
    """

    on_grey_levels: ClassVar[bool] = True

    size: Side
    interpolation: Interpolation = "bilinear"

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        if min(height, width) == self.size:
            return images
        height, width = resized_shape(height, width, self.size)
        return resample(images, height, width, self.interpolation)


@dataclasses.dataclass(kw_only=True)
class CenterCrop(ImageTransform):
    """Cuts a square out of the middle of each image (torchvision's CenterCrop(size)).

    An image that is smaller than the square stands in its middle, on black.

    Attributes:
      size: pixels of a side of the square, 1..16384.
    """

    on_grey_levels: ClassVar[bool] = True

    size: Side

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        borders = [(0, 0, 0)] * images.ndim
        for axis in (1, 2):
            side = images.shape[axis]
            start = center_start(side, self.size)
            # How many pixels are added before and behind; what is below 0 is cut off.
            borders[axis] = (-start, start + self.size - side, 0)
        black = jnp.zeros((), images.dtype)
        return jax.lax.pad(images, black, borders)


def center_start(side: int, size: int) -> int:
    """Returns the pixel where torchvision begins the middle `size` of `side` pixels.

    If an odd number of pixels is left over, the larger half is cut off at the end, or at the
    beginning if that makes the start even (Python rounds a half to the even number). The start
    is below 0 if the image is smaller; the larger half is then added at the end.
    """
    if side < size:
        return -((size - side) // 2)
    return round((side - size) / 2)


@dataclasses.dataclass(kw_only=True)
class RandomCrop(RandomGreyLevelTransform):
    """Pads every side and cuts out a window of the original size, at a place of its own for
    each image (torchvision's RandomCrop(size, padding)).

    Attributes:
      padding: pixels added to each side, 0..16384; less than the image for "reflect".
      mode: what lies outside: "constant" (the value `fill`), "edge" (the border pixel) or
        "reflect" (mirrored at the border pixel, which is not repeated).
      fill: whole grey level 0..255 outside, in mode "constant".
    """

    padding: Annotated[int, Interval(ge=0, le=LARGEST_SIDE)]
    mode: CropMode = "constant"
    fill: WholeGreyLevel = 0.0

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise UserError(
                f"RandomCrop(padding={self.padding}, mode='reflect') mirrors more than the "
                f"image of {height}x{width} has: use a padding below {min(height, width)}."
            )
        shift = jax.random.randint(rng, (batch, 2), -self.padding, self.padding + 1)
        row = shift[:, :1] + jnp.arange(height)
        column = shift[:, 1:] + jnp.arange(width)
        pick = jax.vmap(
            lambda image, row, column: take(take(image, row), (slice(None), column))
        )
        cropped = pick(images, self._source(row, height), self._source(column, width))
        at = column[:, None], row[:, :, None]
        return fill_outside(cropped, *at, self.fill, self.mode)

    def _source(self, place: jax.Array, size: int) -> jax.Array:
        """Returns which of `size` pixels is seen at a place inside or outside of the image."""
        if self.mode == "reflect":
            last = size - 1
            return last - jnp.abs(last - jnp.abs(place))
        return jnp.clip(place, 0, size - 1)


@dataclasses.dataclass(kw_only=True)
class _RandomFlip(ImageTransform):
    """Mirrors each image along an axis with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    random: ClassVar[bool] = True
    axis: ClassVar[int]

    p: Share = 0.5

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return sometimes(rng, self.p, jnp.flip(images, self.axis), images)


@dataclasses.dataclass(kw_only=True)
class HorizontalFlip(_RandomFlip):
    """Mirrors each image left to right with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    axis: ClassVar[int] = 2


@dataclasses.dataclass(kw_only=True)
class VerticalFlip(_RandomFlip):
    """Mirrors each image upside down with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    axis: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class AlternatingFlip(ImageTransform):
    """Mirrors half of the images left to right, and in the next epoch the other half.

    Any two epochs in a row show each image and its mirror once (Jordan, "94% on CIFAR-10 in
    3.29 Seconds on a Single GPU", 2024, where it beats random mirrors). Which half comes first
    is decided by a hash of the image's own pixels: the same for the same image in every epoch
    and every run, as long as nothing random comes before this transform.
    """

    random: ClassVar[bool] = True

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return _flipped_in_epoch(images, jnp.int32(0))

    def at(self, position: RunPosition) -> BatchFunction:
        epoch = position.step // position.steps_per_epoch
        return lambda _, images, targets: (_flipped_in_epoch(images, epoch), targets)


def _flipped_in_epoch(images: jax.Array, epoch: jax.Array) -> jax.Array:
    """Returns what AlternatingFlip makes of images in one epoch, int32 scalar."""
    flip = (coin(images) + epoch) % 2 == 1
    return jnp.where(per_image(flip), images[:, :, ::-1], images)


def coin(images: jax.Array) -> jax.Array:
    """Returns 0 or 1 for each image, each for about half of all, by a hash of its pixels.

    Args:
      images: float32 [batch, height, width, channels].

    Returns:
      int32 [batch].
    """
    values = jax.lax.bitcast_convert_type(images, jnp.uint32)
    place = jax.lax.broadcasted_iota(jnp.uint32, (1, values[0].size), 1)
    # A sum modulo 2^32 is the same in every order, hence on every device.
    scrambled = _scramble(values.reshape(len(values), -1) + _scramble(place))
    total = scrambled.sum(1, dtype=jnp.uint32)
    return (_scramble(total) >> 31).astype(jnp.int32)


def _scramble(x: jax.Array) -> jax.Array:
    """Returns a permutation of the uint32 numbers in which all bits depend on all bits: the
    last step of the hash MurmurHash3 (Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@dataclasses.dataclass(kw_only=True)
class RandomRotation(Warp):
    """Turns each image about its middle by a random angle (torchvision's RandomRotation).

    Attributes:
      degrees: counter-clockwise, uniform between the two; one number d means -d to d.
    """

    degrees: Spread

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        # As matrices() below, with more digits.
        angles = uniform(rng, len(images), self.degrees)
        return rotate(images, angles, self.interpolation, self.fill)

    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        cos, sin = _cos_sin(uniform(rng, batch, self.degrees))
        return _about_middle([[cos, -sin], [sin, cos]], height, width)


@dataclasses.dataclass(kw_only=True)
class RandomAffine(Warp):
    """Turns, moves, scales and shears each image about its middle (torchvision's RandomAffine).

    Attributes:
      degrees: clockwise, uniform between the two; one number d means -d to d.
      translate: largest moves to either side, as fractions 0..1 of width and height; whole
        pixels. None does not move.
      scale: factors above 0, uniform between the two. None does not scale.
      shear: degrees along x, uniform between the two, between -90 and 90; one number d means
        -d to d. Four numbers are the two for x and the two for y. None does not shear.
    """

    degrees: Spread
    translate: tuple[Share, Share] | None = None
    scale: Annotated[tuple[AboveZero, AboveZero], Ascending()] | None = None
    shear: ShearSpread | None = None

    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        keys = jax.random.split(rng, 6)
        angle = uniform(keys[0], batch, self.degrees)
        across, down = self.translate or (0.0, 0.0)
        move_x = jnp.round(uniform(keys[1], batch, across * width))
        move_y = jnp.round(uniform(keys[2], batch, down * height))
        scale = uniform(keys[3], batch, self.scale or (1.0, 1.0))
        shear_x, shear_y = self._shears()
        tan_x = jnp.tan(jnp.radians(uniform(keys[4], batch, shear_x)))
        tan_y = jnp.tan(jnp.radians(uniform(keys[5], batch, shear_y)))

        # The inverse of turning after shearing along y after shearing along x:
        # R(angle) [[1, 0], [-tan_y, 1]] [[1, -tan_x], [0, 1]]. Its determinant is 1.
        cos, sin = _cos_sin(angle)
        a, c = cos + sin * tan_y, sin - cos * tan_y
        b, d = -a * tan_x - sin, -c * tan_x + cos
        linear: _Rows = [[d / scale, -b / scale], [-c / scale, a / scale]]
        turned = _about_middle(linear, height, width)
        return product(turned, _moves(-move_x, -move_y))

    def _shears(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        angles = symmetric(self.shear or 0.0)
        return angles[:2], angles[2:] or (0.0, 0.0)

    def validate(self) -> None:
        if any(low > high for low, high in self._shears()):
            raise UserError(
                "RandomAffine.shear must go from the smaller to the greater angle, along x and "
                f"along y, not {self.shear}."
            )


@dataclasses.dataclass(kw_only=True)
class RandomPerspective(Warp):
    """Looks at each image from another side with probability `p` (torchvision's
    RandomPerspective): each corner moves inwards by whole pixels.

    Attributes:
      distortion_scale: how far at most, as a fraction 0..1 of half of the width and height.
      p: probability, 0..1.
    """

    interpolation: Interpolation = "bilinear"
    distortion_scale: Share = 0.5
    p: Share = 0.5

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return images if self.p == 0 else super().change(rng, images)

    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        corner_key, use_key = jax.random.split(rng)
        far = [int(self.distortion_scale * (side // 2)) for side in (width, height)]
        # Corners clockwise from the upper left one.
        moves = jax.random.randint(corner_key, (batch, 4, 2), 0, jnp.array(far) + 1)
        inwards = jnp.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        last = jnp.array([width - 1, height - 1])
        corners = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * last + inwards * moves
        maps = rectangle_from(corners.astype(jnp.float32), height, width)
        used = jax.random.bernoulli(use_key, jnp.float32(self.p), (batch, 1, 1))
        return jnp.where(used, maps, jnp.eye(3))


def rectangle_from(corners: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the projective maps that take four corners to those of an image.

    The square of side 1 goes to the corners (Heckbert, "Fundamentals of Texture Mapping and
    Image Warping", 1989, section 2.2.3); the inverse of that goes back.

    Args:
      corners: float32 [batch, 4, 2], (x, y) clockwise from the upper left one.
      height: the image's corners are (0, 0), (width - 1, 0), (width - 1, height - 1) and
        (0, height - 1), as torchvision's perspective has them.
      width: see height.

    Returns:
      float32 [batch, 3, 3], with 1 in the last place.
    """
    # Counted from the first corner, so that small numbers keep their digits.
    origin = corners[:, :1]
    _, (x1, y1), (x2, y2), (x3, y3) = (corners - origin).transpose(1, 2, 0)
    sum_x, sum_y = x2 - x1 - x3, y2 - y1 - y3
    dx1, dy1, dx2, dy2 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    det = dx1 * dy2 - dx2 * dy1
    g = (sum_x * dy2 - dx2 * sum_y) / det
    h = (dx1 * sum_y - sum_x * dy1) / det
    # [[a, b, 0], [d, e, 0], [g, h, 1]] takes (u, v, 1) to a corner.
    a, b, d, e = x1 * (1 + g), x3 * (1 + h), y1 * (1 + g), y3 * (1 + h)
    scale_x, scale_y = max(width - 1, 1), max(height - 1, 1)
    inverse: _Rows = [
        [scale_x * e, -scale_x * b, 0.0],
        [-scale_y * d, scale_y * a, 0.0],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    x0, y0 = origin[:, 0].T
    maps = product(_matrices(inverse), _moves(-x0, -y0))
    maps /= maps[:, 2:, 2:]
    # An affine map must be recognised as one, despite rounding.
    affine = (g == 0) & (h == 0)
    last = jnp.where(affine[:, None], jnp.array([0.0, 0.0, 1.0]), maps[:, 2])
    return maps.at[:, 2].set(last)


@dataclasses.dataclass(kw_only=True)
class _Reframe(RandomGreyLevelTransform):
    """A transform that shows more or less of a scene, or another part: see its subclasses."""

    height_factor: ShiftSpread
    fill_mode: FillMode = "reflect"
    interpolation: Interpolation = "bilinear"
    fill: WholeGreyLevel = 0.0

    @abc.abstractmethod
    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        """Draws the map of each of `batch` images of height x width pixels."""

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        maps = self.matrices(rng, *images.shape[:3])
        return warp(images, maps, self.interpolation, self.fill, self.fill_mode)


@dataclasses.dataclass(kw_only=True)
class RandomZoom(_Reframe):
    """Zooms each image out or in about its middle (Keras' RandomZoom, on whole grey levels).

    Attributes:
      height_factor: how much higher the part that is seen becomes, uniform between the two, as
        fractions of the image above -1: positive zooms out, negative in. One number f means
        -f to f.
      width_factor: the same for the width; None keeps the aspect ratio.
      fill_mode: what lies outside: "reflect" (mirrored at the border, the border pixel
        repeated), "constant" (the value `fill`) or "nearest" (the border pixel).
      interpolation: "nearest", "bilinear" or "bicubic" (a = -1), as Pillow's transform.
      fill: whole grey level 0..255.
    """

    height_factor: ZoomSpread
    width_factor: ZoomSpread | None = None

    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        height_key, width_key = jax.random.split(rng)
        high = 1 + uniform(height_key, batch, self.height_factor)
        wide = high
        if self.width_factor is not None:
            wide = 1 + uniform(width_key, batch, self.width_factor)
        return _about_middle([[wide, 0.0], [0.0, high]], height, width)


@dataclasses.dataclass(kw_only=True)
class RandomTranslation(_Reframe):
    """Moves each image by a fraction of its size (Keras' RandomTranslation, on whole grey
    levels). Moves are not whole pixels.

    Attributes:
      height_factor: how far down, uniform between the two, as fractions -1..1 of the height;
        negative is up. One number f means -f to f.
      width_factor: how far to the right, as fractions -1..1 of the width.
      fill_mode: what lies outside: "reflect" (mirrored at the border, the border pixel
        repeated), "constant" (the value `fill`) or "nearest" (the border pixel).
      interpolation: "nearest", "bilinear" or "bicubic" (a = -1), as Pillow's transform.
      fill: whole grey level 0..255.
    """

    width_factor: ShiftSpread

    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        height_key, width_key = jax.random.split(rng)
        down = height * uniform(height_key, batch, self.height_factor)
        right = width * uniform(width_key, batch, self.width_factor)
        return _moves(-right, -down)


def _cos_sin(degrees: jax.Array) -> tuple[jax.Array, jax.Array]:
    angle = jnp.radians(degrees)
    return jnp.cos(angle), jnp.sin(angle)


_Rows = list[list[jax.Array | float]]
"""The rows of a matrix for each image: an entry is [batch], or one number for all images."""


def _matrices(rows: _Rows) -> Maps:
    """Returns the matrices as [batch, 3, 3]."""
    entries = jnp.broadcast_arrays(*itertools.chain(*rows))
    return jnp.stack(entries, -1).reshape(-1, 3, 3)


def _about_middle(linear: _Rows, height: int, width: int) -> Maps:
    """Returns the maps with a linear part, two rows of two, that keep the middle of the image
    in its place."""
    (a, b), (c, d) = linear
    x, y = width / 2, height / 2
    move_x, move_y = x - a * x - b * y, y - c * x - d * y
    return _matrices([[a, b, move_x], [c, d, move_y], [0.0, 0.0, 1.0]])


def _moves(x: jax.Array, y: jax.Array) -> Maps:
    """Returns the maps that add x and y, each [batch]."""
    return _matrices([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
