"""Policies: which operations are applied, how strongly, how often.

Each image costs as many operations as its policy applies to it, not as many as there are
(kernels/one_operation.py). The images of one row of a batch's groups share their operation, never
its strength or sign.
"""

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax import lax

from jaxcls.augment.kernels import pillow_color
from jaxcls.augment.kernels.images import per_image, sometimes, uniform
from jaxcls.augment.kernels.one_operation import (
    Operation,
    drawn_by_rows,
    one_operation_per_image,
)
from jaxcls.augment.kernels.operations import OPERATIONS
from jaxcls.augment.kernels.platforms import repeated
from jaxcls.augment.kernels.resample import Interpolation
from jaxcls.augment.pipeline import RandomGreyLevelTransform
from jaxcls.errors import UserError
from jaxcls.options import Ascending, Share, ZeroOrMore

ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
SHEARS = ("ShearX", "ShearY")
TRANSLATIONS = ("TranslateX", "TranslateY")
SIGNED = {*SHEARS, *TRANSLATIONS, "Rotate", *ENHANCEMENTS}
"""Operations whose magnitude goes either way, each with probability 1/2."""

Magnitudes = dict[str, jax.Array]
"""Name of each operation -> its magnitude at one level of strength."""

Space = Callable[[jax.Array], Magnitudes]
"""(level in 0..1) -> the magnitudes at that level."""

_Count = Annotated[int, Interval(ge=0, le=100)]
_CountFromOne = Annotated[int, Interval(ge=1, le=100)]
_Bins = Annotated[int, Interval(ge=2, le=1000)]
_TenthsOfStrength = Annotated[float, Interval(ge=0, le=10)]
_BlurWidth = Annotated[float, Interval(gt=0, le=100)]


def rand_augment_space(height: int, width: int, level: jax.Array) -> Magnitudes:
    """Returns the 14 operations of RandAugment with their magnitudes, as torchvision's.

    Args:
      height: of the images, pixels.
      width: of the images, pixels.
      level: float32, 0..1: the bin divided by the last bin. Its shape is the magnitudes'.
    """
    return {
        "Identity": jnp.zeros_like(level),
        **dict.fromkeys(SHEARS, 0.3 * level),
        # A third of the 331 pixels of the NASNet search, Cubuk et al. 2018.
        "TranslateX": 150 / 331 * width * level,
        "TranslateY": 150 / 331 * height * level,
        "Rotate": 30 * level,
        **dict.fromkeys(ENHANCEMENTS, 0.9 * level),
        "Posterize": 8 - jnp.round(4 * level),
        "Solarize": 255 * (1 - level),
        **dict.fromkeys(("AutoContrast", "Equalize"), jnp.zeros_like(level)),
    }


def trivial_augment_space(level: jax.Array) -> Magnitudes:
    """Returns the 14 operations of TrivialAugment's wide space with their magnitudes.

    Args:
      level: float32, 0..1: the bin divided by the last bin. Its shape is the magnitudes'.
    """
    return rand_augment_space(1, 1, level) | {
        **dict.fromkeys(SHEARS, 0.99 * level),
        **dict.fromkeys(TRANSLATIONS, 32 * level),
        "Rotate": 135 * level,
        **dict.fromkeys(ENHANCEMENTS, 0.99 * level),
        "Posterize": 8 - jnp.round(6 * level),
    }


@dataclasses.dataclass(kw_only=True)
class _Policy(RandomGreyLevelTransform):
    """What all policies share.

    Attributes:
      interpolation: "nearest", "bilinear" or "bicubic", for operations that move pixels.
      fill: grey level 0..255 outside of the image, for those operations.
    """

    interpolation: Interpolation = "nearest"
    fill: Annotated[float, Interval(ge=0, le=255)] = 0.0

    def signed(self) -> set[str]:
        """Returns the operations whose magnitude goes either way."""
        return SIGNED

    def operate(
        self, name: str, key: jax.Array, images: jax.Array, magnitude: jax.Array
    ) -> jax.Array:
        """Applies an operation, with a random sign for each image if the operation is signed.

        The magnitude is a number for each image, or one for all.
        """
        magnitude = jnp.broadcast_to(magnitude, len(images))
        if name in self.signed():
            signs = jax.random.rademacher(key, magnitude.shape, magnitude.dtype)
            magnitude = magnitude * signs
        return OPERATIONS[name](images, magnitude, self.interpolation, self.fill)

    def random_operations(self, space: Space, bins: int, last: int) -> list[Operation]:
        """Returns the operations of a space, each with magnitudes that are drawn.

        Args:
          space: of the policy.
          bins: each image's bin is drawn from 0..bins - 1.
          last: the bin of full strength.
        """

        def operate(name: str, key: jax.Array, images: jax.Array) -> jax.Array:
            sign, strength = jax.random.split(key)
            drawn = jax.random.randint(strength, (len(images),), 0, bins)
            return self.operate(name, sign, images, space(drawn / last)[name])

        return [functools.partial(operate, name) for name in _names(space)]


def _names(space: Space) -> list[str]:
    """Returns the names of a space's operations."""
    return list(space(jnp.zeros(())))


def _in_rounds(
    rng: jax.Array, images: jax.Array, operations: Sequence[Operation], count: int
) -> jax.Array:
    """Applies one of the operations to each image, a number of times."""

    def one_round(index: jax.Array, levels: jax.Array) -> jax.Array:
        key = jax.random.fold_in(rng, index)
        return one_operation_per_image(key, levels, operations)

    return repeated(count, one_round, images, tpu_dtype=jnp.bfloat16)


@dataclasses.dataclass(kw_only=True)
class RandAugment(_Policy):
    """A number of operations drawn from 14, all at one magnitude (torchvision's RandAugment).

    Cubuk et al. 2019, https://arxiv.org/abs/1909.13719.

    Attributes:
      num_ops: operations applied one after the other to each image, 0..100.
      magnitude: bin of the strength, 0..bins - 1; need not be whole.
      bins: bins from no to full strength, 2..1000.
    """

    num_ops: _Count = 2
    magnitude: ZeroOrMore = 9.0
    bins: _Bins = 31

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        operations = list(self.operations(height, width).values())
        return _in_rounds(rng, images, operations, self.num_ops)

    def operations(self, height: int, width: int) -> dict[str, Operation]:
        """Returns what may be done to images of height x width pixels, by name."""
        space = functools.partial(rand_augment_space, height, width)

        def operate(name: str, key: jax.Array, images: jax.Array) -> jax.Array:
            level = jnp.asarray(self.magnitude / (self.bins - 1), jnp.float32)
            return self.operate(name, key, images, space(level)[name])

        return {name: functools.partial(operate, name) for name in _names(space)}

    def validate(self) -> None:
        if self.magnitude > self.bins - 1:
            raise UserError(
                f"RandAugment.magnitude must lie in 0..{self.bins - 1}, not {self.magnitude}."
            )


@dataclasses.dataclass(kw_only=True)
class TrivialAugmentWide(_Policy):
    """One operation of 14 at a magnitude of any of the bins, for each image.

    Müller & Hutter 2021, https://arxiv.org/abs/2103.10158, table 1; torchvision's
    TrivialAugmentWide.

    Attributes:
      bins: bins from no to full strength, 2..1000.
    """

    bins: _Bins = 31

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        space, bins = trivial_augment_space, self.bins
        operations = self.random_operations(space, bins, bins - 1)
        return one_operation_per_image(rng, images, operations)


def timm_space(
    height: int, width: int, level: jax.Array, *, increasing: bool
) -> Magnitudes:
    """Returns timm's 15 operations with their magnitudes, signs still to be given.

    Args:
      height: of the images, pixels.
      width: of the images, pixels.
      level: float32 0..1, a tenth of timm's. Its shape is the magnitudes'.
      increasing: whether a higher level always changes more (timm's inc1); else a level of
        1/2 leaves colours alone, and posterising and solarising weaken with it.
    """
    none = jnp.zeros_like(level)
    bits = jnp.floor(4 * level)
    threshold = jnp.minimum(jnp.floor(256 * level), 256)
    enhancement = 0.9 * level if increasing else 1.8 * level - 0.9
    return {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), none),
        "Rotate": 30 * level,
        "Posterize": 4 - bits if increasing else bits,
        "Solarize": 256 - threshold if increasing else threshold,
        "SolarizeAdd": jnp.minimum(jnp.floor(110 * level), 128),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhancement),
        **dict.fromkeys(SHEARS, 0.3 * level),
        "TranslateX": 0.45 * width * level,
        "TranslateY": 0.45 * height * level,
    }


@dataclasses.dataclass(kw_only=True)
class TimmRandAugment(_Policy):
    """timm's RandAugment: "rand-m9-mstd0.5-inc1" is
    TimmRandAugment(magnitude=9, magnitude_std=0.5, increasing=True).

    It differs from timm's in three ways: the interpolation is not drawn, a translation is of
    whole pixels, and the fill is one grey level.

    Attributes:
      num_ops: operations one after the other, 0..100.
      magnitude: strength, 0..10.
      magnitude_std: standard deviation of each image's strength about it, 0..10; the strength
        is clipped to 0..10.
      increasing: whether a higher magnitude always changes more.
      p: probability, for each image and operation, that it is applied, 0..1.
    """

    fill: Annotated[float, Interval(ge=0, le=255)] = 128.0
    num_ops: _Count = 2
    magnitude: _TenthsOfStrength = 9.0
    magnitude_std: _TenthsOfStrength = 0.5
    increasing: bool = True
    p: Share = 0.5

    def signed(self) -> set[str]:
        # Without "increasing", enhancements go from 0.1 to 1.9 and have no sign.
        return SIGNED if self.increasing else SIGNED.difference(ENHANCEMENTS)

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        space = functools.partial(timm_space, height, width, increasing=self.increasing)

        def operate(name: str, key: jax.Array, images: jax.Array) -> jax.Array:
            strength, sign, whether = jax.random.split(key, 3)
            noise = jax.random.normal(strength, (len(images),))
            level = (self.magnitude + self.magnitude_std * noise) / 10
            magnitude = space(jnp.clip(level, 0, 1))[name]
            changed = self.operate(name, sign, images, magnitude)
            return sometimes(whether, self.p, changed, images)

        operations = [functools.partial(operate, name) for name in _names(space)]
        return _in_rounds(rng, images, operations, self.num_ops)


Entry = tuple[str, float, int]
"""Operation, probability and bin of 10."""


def sub_policies(policy: str) -> list[tuple[Entry, ...]]:
    """Returns the 25 sub-policies of "imagenet", "cifar10" or "svhn", two entries each: Cubuk
    et al. 2018 (https://arxiv.org/abs/1805.09501), tables 7 to 9, as autoaugment.csv has them."""
    text = (importlib.resources.files(__package__) / "autoaugment.csv").read_text()
    rows = [row[1:] for row in csv.reader(text.splitlines()) if row[0] == policy]
    return [
        tuple((name, float(p), int(bin_)) for name, p, bin_ in (row[:3], row[3:]))
        for row in rows
    ]


@dataclasses.dataclass(kw_only=True)
class AutoAugment(_Policy):
    """One of 25 pairs of operations, found by search (torchvision's AutoAugment).

    Cubuk et al. 2018, https://arxiv.org/abs/1805.09501.

    Attributes:
      policy: "imagenet", "cifar10" or "svhn": the dataset of the search.
    """

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        table = sub_policies(self.policy)
        names = sorted({name for pair in table for name, _, _ in pair})
        # [sub-policy, first or second].
        which = np.array([[names.index(n) for n, _, _ in pair] for pair in table])
        probability = np.array([[p for _, p, _ in pair] for pair in table], np.float32)
        levels = jnp.array([[b / 9 for _, _, b in pair] for pair in table], jnp.float32)
        space = rand_augment_space(height, width, levels)
        space["Invert"] = jnp.zeros_like(levels)
        magnitudes = jnp.stack([space[name] for name in names])
        operations = [functools.partial(self.operate, name) for name in names]

        def apply_pair(key: jax.Array, images: jax.Array) -> jax.Array:
            pair = jax.random.randint(key, (), 0, len(table))

            def apply_one(i: jax.Array, images: jax.Array) -> jax.Array:
                sign, whether = jax.random.split(jax.random.fold_in(key, i))
                index = jnp.asarray(which)[pair, i]
                magnitude = magnitudes[index, pair, i]
                changed = lax.switch(index, operations, sign, images, magnitude)
                p = jnp.asarray(probability)[pair, i]
                drawn = jax.random.bernoulli(whether, p, (len(images),))
                return jnp.where(per_image(drawn), changed, images)

            return lax.fori_loop(0, 2, apply_one, images)

        return drawn_by_rows(rng, images, [apply_pair])


def augmix_space(height: int, width: int, level: jax.Array) -> Magnitudes:
    """Returns AugMix's 13 operations with their magnitudes, as torchvision's.

    Args:
      height: of the images, pixels.
      width: of the images, pixels.
      level: float32, 0..1: the bin divided by 9. Its shape is the magnitudes'.
    """
    space = rand_augment_space(height, width, level) | {
        "TranslateX": width / 3 * level,
        "TranslateY": height / 3 * level,
        "Posterize": 4 - jnp.round(4 * level),
    }
    return {name: space[name] for name in space if name != "Identity"}


@dataclasses.dataclass(kw_only=True)
class AugMix(_Policy):
    """A random mixture of an image and several chains of operations on it (torchvision's AugMix).

    Hendrycks et al. 2020, https://arxiv.org/abs/1912.02781. Without the consistency loss of
    the paper, which needs three views of each image.

    Attributes:
      severity: strength, 1..10: each operation's bin of 10 is below it.
      width: chains, 1..100.
      depth: operations of a chain, 1..100, or -1: 1 to 3 of them, drawn for each chain.
      alpha: of the Dirichlet and Beta distributions of the weights, 0.001..1000.
    """

    interpolation: Interpolation = "bilinear"
    severity: Annotated[int, Interval(ge=1, le=10)] = 3
    width: _CountFromOne = 3
    depth: Literal[-1] | _CountFromOne = -1
    alpha: Annotated[float, Interval(ge=1e-3, le=1e3)] = 1.0

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        space = functools.partial(augmix_space, height, width)
        operations = self.random_operations(space, self.severity, 9)
        shortest, longest = (1, 3) if self.depth == -1 else (self.depth, self.depth)
        shares, how_much, lengths, chains = jax.random.split(rng, 4)
        alphas = jnp.full(self.width, self.alpha)
        weights = jax.random.dirichlet(shares, alphas, (batch,))
        mixed = jax.random.beta(how_much, self.alpha, self.alpha, (batch, 1, 1, 1))
        shape = self.width, batch
        depth = jax.random.randint(lengths, shape, shortest, longest + 1)

        def chain(index: jax.Array, total: jax.Array) -> jax.Array:
            key = jax.random.fold_in(chains, index)

            def link(position: jax.Array, chained: jax.Array) -> jax.Array:
                link_key = jax.random.fold_in(key, position)
                changed = one_operation_per_image(link_key, chained, operations)
                longer = per_image(position < depth[index])
                return jnp.where(longer, changed, chained)

            chained = lax.fori_loop(0, longest, link, images)
            return total + per_image(weights[:, index]) * chained

        total = lax.fori_loop(0, self.width, chain, jnp.zeros_like(images))
        # Truncated, as torchvision's; a sum of equal values may lie a rounding below.
        return jnp.floor(images * (1 - mixed) + total * mixed + 1e-3)


@dataclasses.dataclass(kw_only=True)
class ThreeAugment(RandomGreyLevelTransform):
    """Grey, solarised or blurred, each image one of the three (DeiT III's 3-Augment).

    Touvron et al. 2022, https://arxiv.org/abs/2204.07118, section 3.3: together with
    HorizontalFlip() and ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3).

    Attributes:
      sigma: least and greatest standard deviation of the blur in pixels, above 0, 100 at most.
    """

    sigma: Annotated[tuple[_BlurWidth, _BlurWidth], Ascending()] = (0.1, 2.0)

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        # Three standard deviations on either side.
        blur_size = 2 * int(np.ceil(3 * self.sigma[1])) + 1

        def blur(key: jax.Array, images: jax.Array) -> jax.Array:
            sigma = uniform(key, len(images), self.sigma)
            return pillow_color.gaussian_blur(images, blur_size, sigma)

        def grey(key: jax.Array, images: jax.Array) -> jax.Array:
            return pillow_color.grayscale(images)

        def solarize(key: jax.Array, images: jax.Array) -> jax.Array:
            return pillow_color.solarize(images, jnp.full(len(images), 128.0))

        return one_operation_per_image(rng, images, [grey, solarize, blur])
