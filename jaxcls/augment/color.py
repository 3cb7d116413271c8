"""Transforms of pixel values."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxcls.augment.kernels import pillow_color as tones
from jaxcls.augment.pipeline import (
    Transform,
    check_amount,
    check_range,
    sometimes,
)
from jaxcls.errors import UserError

SMALLEST_STD = 1e-6
"""Of Normalize: far below the spread of any images, far above where float32 overflows."""

_LEVELS = jnp.uint8
"""In which images wait for their next change, but on TPUs."""


@dataclasses.dataclass(kw_only=True)
class Normalize(Transform):
    """(pixel / 255 - mean) / std, as torchvision's ToTensor and Normalize.

    Attributes:
      mean: a value for each channel in 0..1, or one for all.
      std: a value for each channel in 1e-6..1, or one for all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del rng
        self.check_channels(images.shape[-1])
        mean, std = jnp.array(self.mean), jnp.array(self.std)
        return (images / 255 - mean) / std, targets

    def check_channels(self, channels: int) -> None:
        """Raises UserError unless there is one value for all channels, or one for each."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"Normalize has {len(values)} values of {name} but the images have "
                    f"{channels} channels: give {channels}, or one for all."
                )

    def validate(self) -> None:
        for name, values, low in (
            ("mean", self.mean, 0),
            ("std", self.std, SMALLEST_STD),
        ):
            if not values:
                raise UserError(f"Normalize.{name} is empty: give a value a channel.")
            for value in values:
                if not low <= value <= 1:
                    raise UserError(
                        f"Normalize.{name} must lie in {low:g}..1, where 1 stands for grey "
                        f"level 255, not {value}."
                    )


@dataclasses.dataclass(kw_only=True)
class _Recolor(Transform):
    """A change of grey levels that each image undergoes with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    random: ClassVar[bool] = True
    on_grey_levels: ClassVar[bool] = True

    p: float

    @abc.abstractmethod
    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        """Returns all images changed, each by a draw of its own."""

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if self.p == 0:
            return images, targets
        choice, change = jax.random.split(rng)
        changed = self.recolored(change, images)
        return sometimes(choice, self.p, changed, images), targets

    def validate(self) -> None:
        check_range(self, "p", 0, 1)


@dataclasses.dataclass(kw_only=True)
class ColorJitter(_Recolor):
    """Changes brightness, contrast, saturation and hue by chance (torchvision's ColorJitter,
    on Pillow images).

    Each image has amounts of its own. The order of the changes is drawn for each batch and is
    the same for all its images, where torchvision draws one for each image.

    Attributes:
      brightness: a factor is drawn from 1 - brightness (at least 0) .. 1 + brightness. 0 or
        more; 0 leaves it alone, which holds for all four.
      contrast: likewise, about the mean grey level of the image.
      saturation: likewise, about the grey image.
      hue: turns of the colour circle: one is drawn from -hue..hue. 0..0.5.
      p: probability, 0..1, of any change to an image.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        changes: list[Callable[[jax.Array], jax.Array]] = []

        def add(
            change: Callable[[jax.Array, jax.Array], jax.Array], low: float, high: float
        ) -> None:
            if low == high:
                return
            key = jax.random.fold_in(rng, len(changes))
            amounts = jax.random.uniform(key, (len(images),), minval=low, maxval=high)
            changes.append(lambda images: change(images, amounts))

        add(tones.brightness, max(0, 1 - self.brightness), 1 + self.brightness)
        add(tones.contrast, max(0, 1 - self.contrast), 1 + self.contrast)
        add(tones.saturation, max(0, 1 - self.saturation), 1 + self.saturation)
        add(tones.hue, -self.hue, self.hue)
        if not changes:
            return images
        order = jax.random.permutation(
            jax.random.fold_in(rng, len(changes)), len(changes)
        )

        def in_turn(images: jax.Array, dtype: Any) -> jax.Array:
            # Converted within a branch, where that is one loop with the change.
            branches = [
                lambda levels, change=change: change(
                    levels.astype(images.dtype)
                ).astype(dtype)
                for change in changes
            ]
            return jax.lax.fori_loop(
                0,
                len(changes),
                lambda turn, levels: jax.lax.switch(order[turn], branches, levels),
                images.astype(dtype),
            ).astype(images.dtype)

        # uint8 is quicker to copy from turn to turn; TPUs would convert it slowly.
        return jax.lax.platform_dependent(
            images,
            tpu=functools.partial(in_turn, dtype=images.dtype),
            default=functools.partial(in_turn, dtype=_LEVELS),
        )

    def validate(self) -> None:
        super().validate()
        for name in ("brightness", "contrast", "saturation"):
            check_amount(self, name)
        check_range(self, "hue", 0, 0.5)


@dataclasses.dataclass(kw_only=True)
class RandomContrast(Transform):
    """Changes the contrast of each channel about its own mean (Keras' RandomContrast with
    value_range=(0, 255)), rounded to whole grey levels.

    Attributes:
      factor: each image's contrast is drawn from 1 - factor .. 1 + factor. 0..1.
    """

    random: ClassVar[bool] = True
    on_grey_levels: ClassVar[bool] = True

    factor: float

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if self.factor == 0:
            return images, targets
        factor = jax.random.uniform(
            rng,
            (len(images), 1, 1, 1),
            minval=1 - self.factor,
            maxval=1 + self.factor,
        )
        mean = images.mean((1, 2), keepdims=True)
        changed = jnp.clip(mean + factor * (images - mean), 0, 255)
        return jnp.round(changed), targets

    def validate(self) -> None:
        check_range(self, "factor", 0, 1)


@dataclasses.dataclass(kw_only=True)
class RandomGrayscale(_Recolor):
    """Makes some images grey, with as many channels as before (torchvision's RandomGrayscale,
    on Pillow images).

    Attributes:
      p: probability, 0..1.
    """

    p: float = 0.1

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        return tones.grayscale(images)


@dataclasses.dataclass(kw_only=True)
class GaussianBlur(_Recolor):
    """Blurs each image with a Gaussian of its own width (torchvision's GaussianBlur, on Pillow
    images). Borders are mirrored.

    Attributes:
      kernel_size: pixels of a side of the kernel, odd, 1 or more, below twice the shorter
        side of the images.
      sigma: least and greatest standard deviation in pixels, above 0.
      p: probability, 0..1.
    """

    kernel_size: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        low, high = self.sigma
        sigma = jax.random.uniform(rng, (len(images),), minval=low, maxval=high)
        return tones.gaussian_blur(images, self.kernel_size, sigma)

    def validate(self) -> None:
        super().validate()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(
                "GaussianBlur.kernel_size must be an odd number of pixels, 1 or more, not "
                f"{self.kernel_size}."
            )
        low, high = self.sigma
        if not 0 < low <= high < math.inf:
            raise UserError(
                "GaussianBlur.sigma must be the least and the greatest of two numbers above "
                f"0, not {self.sigma}."
            )


@dataclasses.dataclass(kw_only=True)
class RandomSolarize(_Recolor):
    """Inverts the bright pixels of some images (torchvision's RandomSolarize).

    Attributes:
      threshold: grey levels from here on are inverted, 0..256; 256 inverts none.
      p: probability, 0..1.
    """

    threshold: float = 128.0
    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        if self.threshold > 255:
            return images
        return tones.solarize(images, jnp.full(len(images), self.threshold))

    def validate(self) -> None:
        super().validate()
        check_range(self, "threshold", 0, 256)


@dataclasses.dataclass(kw_only=True)
class RandomPosterize(_Recolor):
    """Leaves some images fewer grey levels (torchvision's RandomPosterize).

    Attributes:
      bits: how many of the highest bits of each grey level are kept, 1..8; 8 keeps all.
      p: probability, 0..1.
    """

    bits: int
    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        if self.bits == 8:
            return images
        return tones.posterize(images, jnp.full(len(images), self.bits))

    def validate(self) -> None:
        super().validate()
        check_range(self, "bits", 1, 8)


@dataclasses.dataclass(kw_only=True)
class RandomEqualize(_Recolor):
    """Levels out the histograms of some images, channel by channel (torchvision's
    RandomEqualize).

    Attributes:
      p: probability, 0..1.
    """

    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        return tones.equalize(images)


@dataclasses.dataclass(kw_only=True)
class RandomAutoContrast(_Recolor):
    """Stretches the grey levels of some images to 0..255, channel by channel (torchvision's
    RandomAutocontrast, on Pillow images).

    Attributes:
      p: probability, 0..1.
    """

    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        return tones.autocontrast(images)


@dataclasses.dataclass(kw_only=True)
class RandomInvert(_Recolor):
    """Exchanges black and white in some images (torchvision's RandomInvert).

    Attributes:
      p: probability, 0..1.
    """

    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        return tones.invert(images)


@dataclasses.dataclass(kw_only=True)
class RandomSharpness(_Recolor):
    """Sharpens or smooths some images (torchvision's RandomAdjustSharpness, on Pillow images).

    Attributes:
      factor: 0 is smooth, 1 the image, 2 sharpened as much as 0 smooths. 0 or more.
      p: probability, 0..1.
    """

    factor: float
    p: float = 0.5

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        del rng
        if self.factor == 1:
            return images
        return tones.sharpness(images, jnp.full(len(images), self.factor))

    def validate(self) -> None:
        super().validate()
        check_amount(self, "factor")


@dataclasses.dataclass(kw_only=True)
class RandomGamma(_Recolor):
    """Raises the grey levels of each image, as parts of 255, to a power of its own
    (torchvision's adjust_gamma, on Pillow images).

    Attributes:
      gamma: least and greatest exponent, 0 or more; below 1 brightens, above 1 darkens.
      p: probability, 0..1.
    """

    gamma: tuple[float, float]
    p: float = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        low, high = self.gamma
        if low == high == 1:
            return images
        exponent = jax.random.uniform(rng, (len(images),), minval=low, maxval=high)
        return tones.gamma(images, exponent)

    def validate(self) -> None:
        super().validate()
        low, high = self.gamma
        if not 0 <= low <= high < math.inf:
            raise UserError(
                "RandomGamma.gamma must be the least and the greatest of two exponents, 0 or "
                f"more, not {self.gamma}."
            )


def around_normalize(
    transforms: Sequence[Transform],
) -> tuple[Sequence[Transform], Sequence[Transform]]:
    """Splits transforms into those of grey levels and those from Normalize on."""
    position = next(i for i, t in enumerate(transforms) if isinstance(t, Normalize))
    return transforms[:position], transforms[position:]
