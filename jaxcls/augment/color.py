"""Transforms of pixel values."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval, MinLen

from jaxcls.augment.kernels import pillow_color
from jaxcls.augment.kernels.images import per_image, sometimes, uniform
from jaxcls.augment.kernels.platforms import repeated
from jaxcls.augment.pipeline import ImageTransform, RandomGreyLevelTransform, Transform
from jaxcls.errors import UserError
from jaxcls.options import AboveZero, Ascending, Share, ZeroOrMore

SMALLEST_STD = 1e-6
"""Of Normalize: far below the spread of any images, far above where float32 overflows."""


@dataclasses.dataclass(kw_only=True)
class Normalize(ImageTransform):
    """(pixel / 255 - mean) / std, as torchvision's ToTensor and Normalize.

    Attributes:
      mean: a value for each channel in 0..1, or one for all.
      std: a value for each channel in 1e-6..1, or one for all.
    """

    mean: Annotated[tuple[float, ...], MinLen(1)]
    std: Annotated[tuple[float, ...], MinLen(1)]

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        self.check_channels(images.shape[-1])
        return (images / 255 - jnp.array(self.mean)) / jnp.array(self.std)

    def check_channels(self, channels: int) -> None:
        """Raises UserError unless there is one value for all channels, or one for each."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"Normalize has {len(values)} values of {name} but the images have "
                    f"{channels} channels: give {channels}, or one for all."
                )

    def validate(self) -> None:
        for name, low in (("mean", 0), ("std", SMALLEST_STD)):
            for value in getattr(self, name):
                if not low <= value <= 1:
                    raise UserError(
                        f"Normalize.{name} must lie in {low:g}..1, where 1 stands for grey "
                        f"level 255, not {value}."
                    )


@dataclasses.dataclass(kw_only=True)
class _Recolor(RandomGreyLevelTransform):
    """A change of grey levels that each image undergoes with probability `p`.

    Attributes:
      p: probability, 0..1.
    """

    p: Share = 0.5

    @abc.abstractmethod
    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        """Returns all images changed, each by a draw of its own."""

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        choice, change = jax.random.split(rng)
        return sometimes(choice, self.p, self.recolored(change, images), images)


@dataclasses.dataclass(kw_only=True)
class ColorJitter(_Recolor):
    """Changes brightness, contrast, saturation and hue by chance (torchvision's ColorJitter,
    on Pillow images).

    Each image has amounts of its own. The order of the changes is drawn for each batch and is
    the same for all its images, where torchvision draws one for each image.

    Attributes:
      brightness: 0 or more; the factor is drawn from 1 - brightness (at least 0) .. 1 +
        brightness. 0 changes nothing, here and in the next three.
      contrast: the same, about the mean grey level of the image.
      saturation: the same, about the grey image.
      hue: 0..0.5; the turn of the colour circle is drawn from -hue..hue.
      p: probability, 0..1, of any change to an image.
    """

    brightness: ZeroOrMore = 0.0
    contrast: ZeroOrMore = 0.0
    saturation: ZeroOrMore = 0.0
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    p: Share = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        def changed(change: Any, amounts: jax.Array, levels: jax.Array) -> jax.Array:
            # Converted within a branch, where that is one loop with the change.
            return change(levels.astype(images.dtype), amounts).astype(levels.dtype)

        changes = {
            pillow_color.brightness: (max(0, 1 - self.brightness), 1 + self.brightness),
            pillow_color.contrast: (max(0, 1 - self.contrast), 1 + self.contrast),
            pillow_color.saturation: (max(0, 1 - self.saturation), 1 + self.saturation),
            pillow_color.hue: (-self.hue, self.hue),
        }
        branches: list[Callable[[jax.Array], jax.Array]] = []
        for change, (low, high) in changes.items():
            if low < high:
                key = jax.random.fold_in(rng, len(branches))
                amounts = uniform(key, len(images), (low, high))
                branches.append(functools.partial(changed, change, amounts))
        if not branches:
            return images
        count = len(branches)
        order = jax.random.permutation(jax.random.fold_in(rng, count), count)

        def change_once(index: jax.Array, levels: jax.Array) -> jax.Array:
            return jax.lax.switch(order[index], branches, levels)

        return repeated(count, change_once, images, tpu_dtype=images.dtype)


@dataclasses.dataclass(kw_only=True)
class RandomContrast(RandomGreyLevelTransform):
    """Changes the contrast of each channel about its own mean (Keras' RandomContrast with
    value_range=(0, 255)), rounded to whole grey levels.

    Attributes:
      factor: each image's contrast is drawn from 1 - factor .. 1 + factor. 0..1.
    """

    factor: Share

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.factor == 0:
            return images
        low, high = 1 - self.factor, 1 + self.factor
        factor = per_image(uniform(rng, len(images), (low, high)))
        mean = images.mean((1, 2), keepdims=True)
        return jnp.round(jnp.clip(mean + factor * (images - mean), 0, 255))


@dataclasses.dataclass(kw_only=True)
class RandomGrayscale(_Recolor):
    """Makes some images grey, with as many channels as before (torchvision's RandomGrayscale,
    on Pillow images).

    Attributes:
      p: probability, 0..1.
    """

    p: Share = 0.1

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return pillow_color.grayscale(images)


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
    sigma: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (0.1, 2.0)
    p: Share = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        sigma = uniform(rng, len(images), self.sigma)
        return pillow_color.gaussian_blur(images, self.kernel_size, sigma)

    def validate(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(
                "GaussianBlur.kernel_size must be an odd number of pixels, 1 or more, not "
                f"{self.kernel_size}."
            )


@dataclasses.dataclass(kw_only=True)
class RandomSolarize(_Recolor):
    """Inverts the bright pixels of some images (torchvision's RandomSolarize).

    Attributes:
      threshold: grey levels from here on are inverted, 0..256; 256 inverts none.
      p: probability, 0..1.
    """

    threshold: Annotated[float, Interval(ge=0, le=256)] = 128.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.threshold > 255:
            return images
        return pillow_color.solarize(images, jnp.full(len(images), self.threshold))


@dataclasses.dataclass(kw_only=True)
class RandomPosterize(_Recolor):
    """Leaves some images fewer grey levels (torchvision's RandomPosterize).

    Attributes:
      bits: how many of the highest bits of each grey level are kept, 1..8; 8 keeps all.
      p: probability, 0..1.
    """

    bits: Annotated[int, Interval(ge=1, le=8)]

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.bits == 8:
            return images
        return pillow_color.posterize(images, jnp.full(len(images), self.bits))


@dataclasses.dataclass(kw_only=True)
class RandomEqualize(_Recolor):
    """Levels out the histograms of some images, channel by channel (torchvision's
    RandomEqualize).

    Attributes:
      p: probability, 0..1.
    """

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return pillow_color.equalize(images)


@dataclasses.dataclass(kw_only=True)
class RandomAutoContrast(_Recolor):
    """Stretches the grey levels of some images to 0..255, channel by channel (torchvision's
    RandomAutocontrast, on Pillow images).

    Attributes:
      p: probability, 0..1.
    """

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return pillow_color.autocontrast(images)


@dataclasses.dataclass(kw_only=True)
class RandomInvert(_Recolor):
    """Exchanges black and white in some images (torchvision's RandomInvert).

    Attributes:
      p: probability, 0..1.
    """

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        return pillow_color.invert(images)


@dataclasses.dataclass(kw_only=True)
class RandomSharpness(_Recolor):
    """Sharpens or smooths some images (torchvision's RandomAdjustSharpness, on Pillow images).

    Attributes:
      factor: 0 is smooth, 1 the image, 2 sharpened as much as 0 smooths. 0 or more.
      p: probability, 0..1.
    """

    factor: ZeroOrMore

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.factor == 1:
            return images
        return pillow_color.sharpness(images, jnp.full(len(images), self.factor))


@dataclasses.dataclass(kw_only=True)
class RandomGamma(_Recolor):
    """Raises the grey levels of each image, as parts of 255, to a power of its own
    (torchvision's adjust_gamma, on Pillow images).

    Attributes:
      gamma: least and greatest exponent, 0 or more; below 1 brightens, above 1 darkens.
      p: probability, 0..1.
    """

    gamma: Annotated[tuple[ZeroOrMore, ZeroOrMore], Ascending()]
    p: Share = 1.0

    def recolored(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        if self.gamma == (1, 1):
            return images
        exponent = uniform(rng, len(images), self.gamma)
        return pillow_color.gamma(images, exponent)


def around_normalize(
    transforms: Sequence[Transform],
) -> tuple[Sequence[Transform], Sequence[Transform]]:
    """Splits transforms into those of grey levels and those from Normalize on."""
    position = next(i for i, t in enumerate(transforms) if isinstance(t, Normalize))
    return transforms[:position], transforms[position:]
