"""Transforms that move pixels."""

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxcls.augment.pipeline import Transform
from jaxcls.augment.resample import Interpolation, resample, resized_shape
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Resize(Transform):
    """Resizes the shorter side to `size`, keeping the aspect ratio, with antialiasing.

    torchvision's Resize(size) on Pillow images, to the last bit (jaxcls/augment/resample.py
    says how). Two matrix products; "nearest" copies pixels, without antialiasing.

    Attributes:
      size: pixels of the shorter side, 1 or more.
      interpolation: "nearest", "bilinear" or "bicubic" (Keys' kernel with a = -0.5, Pillow's).
    """

    on_grey_levels: ClassVar[bool] = True

    size: int
    interpolation: Interpolation = "bilinear"

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del rng
        _, height, width, _ = images.shape
        if min(height, width) == self.size:
            return images, targets
        height, width = resized_shape(height, width, self.size)
        return resample(images, height, width, self.interpolation), targets

    def validate(self) -> None:
        if self.size < 1:
            raise UserError(f"Resize.size must be 1 or more, not {self.size}.")
        known = get_args(Interpolation)
        if self.interpolation not in known:
            raise UserError(
                f"Resize.interpolation must be one of {', '.join(map(repr, known))}, not "
                f"{self.interpolation!r}."
            )


@dataclasses.dataclass(kw_only=True)
class CenterCrop(Transform):
    """Cuts a square out of the middle of each image (torchvision's CenterCrop(size)).

    An image that is smaller than the square stands in its middle, on black.

    Attributes:
      size: pixels of a side of the square, 1 or more.
    """

    on_grey_levels: ClassVar[bool] = True

    size: int

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del rng
        borders = [(0, 0, 0)] * images.ndim
        for axis in (1, 2):
            side = images.shape[axis]
            start = center_start(side, self.size)
            # How many pixels are added before and behind; what is below 0 is cut off.
            borders[axis] = (-start, start + self.size - side, 0)
        black = jnp.zeros((), images.dtype)
        return jax.lax.pad(images, black, borders), targets

    def validate(self) -> None:
        if self.size < 1:
            raise UserError(f"CenterCrop.size must be 1 or more, not {self.size}.")


def center_start(side: int, size: int) -> int:
    """Returns the pixel where torchvision begins the middle `size` of `side` pixels.

    Where an odd number is left over, the greater half of what is cut off lies behind, or
    before if that makes the start even (Python rounds a half to the even number). Below 0
    if the image is smaller: the greater half of what is added then lies behind.
    """
    if side < size:
        return -((size - side) // 2)
    return round((side - size) / 2)


@dataclasses.dataclass(kw_only=True)
class RandomCrop(Transform):
    """Pads every side and cuts out a window of the original size, at a place of its own for
    each image (torchvision's RandomCrop(size, padding)).

    Attributes:
      padding: pixels added to each side, 0 or more; less than the image for "reflect".
      mode: what lies outside: "constant" (the value `fill`), "edge" (the border pixel) or
        "reflect" (mirrored at the border pixel, which is not repeated).
      fill: whole grey level 0..255 outside, in mode "constant".
    """

    random: ClassVar[bool] = True
    on_grey_levels: ClassVar[bool] = True

    padding: int
    mode: Literal["constant", "edge", "reflect"] = "constant"
    fill: float = 0.0

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        batch, height, width, _ = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise UserError(
                f"RandomCrop(padding={self.padding}, mode='reflect') mirrors more than the "
                f"image of {height}x{width} has: use a padding below {min(height, width)}."
            )
        shift = jax.random.randint(rng, (batch, 2), -self.padding, self.padding + 1)
        rows, row_inside = self._source(shift[:, 0], height)
        columns, column_inside = self._source(shift[:, 1], width)
        # The indices are in bounds: no need for the checks that gather makes by default.
        pick = jax.vmap(
            lambda image, row, column: (
                image.at[row]
                .get(mode="promise_in_bounds")
                .at[:, column]
                .get(mode="promise_in_bounds")
            )
        )
        cropped = pick(images, rows, columns)
        if self.mode == "constant":
            inside = row_inside[:, :, None] & column_inside[:, None, :]
            cropped = jnp.where(inside[..., None], cropped, self.fill)
        return cropped, targets

    def _source(self, shift: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Returns for each pixel along one side where it comes from, int32 [batch, size] in
        0..size-1, and whether that lies inside the image, bool [batch, size]."""
        place = shift[:, None] + jnp.arange(size)
        inside = (place >= 0) & (place < size)
        if self.mode == "reflect":
            last = size - 1
            return last - jnp.abs(last - jnp.abs(place)), inside
        return jnp.clip(place, 0, size - 1), inside

    def validate(self) -> None:
        if self.padding < 0:
            raise UserError(
                f"RandomCrop.padding must be 0 or more, not {self.padding}."
            )
        if not 0 <= self.fill <= 255 or self.fill != int(self.fill):
            raise UserError(
                f"RandomCrop.fill must be a whole grey level in 0..255, not {self.fill}."
            )


@dataclasses.dataclass(kw_only=True)
class HorizontalFlip(Transform):
    """Mirrors each image left to right with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    random: ClassVar[bool] = True

    p: float = 0.5

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        flip = jax.random.bernoulli(rng, self.p, (len(images), 1, 1, 1))
        return jnp.where(flip, images[:, :, ::-1], images), targets

    def validate(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"HorizontalFlip.p must lie in 0..1, not {self.p}.")
