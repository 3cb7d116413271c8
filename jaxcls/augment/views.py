"""Several views of each test image, whose logits are averaged (test-time augmentation).

logits = averaged_logits(lambda view: model.apply(variables, view), images, TenCrops(size=224))
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, get_args

import jax
import jax.numpy as jnp

from jaxcls.augment.geometry import center_start
from jaxcls.augment.kernels.resample import Interpolation, resample, resized_shape
from jaxcls.augment.pipeline import LARGEST_SIDE
from jaxcls.errors import UserError

Batches = tuple[jax.Array, ...]
"""Views of a batch, each [batch, its height, its width, channels]."""


def flip_views(images: jax.Array) -> Batches:
    """Returns the images [batch, height, width, channels] and their mirror images."""
    return images, images[:, :, ::-1]


def five_crops(images: jax.Array, size: int) -> Batches:
    """Cuts out the four corners and the middle, in torchvision's order (FiveCrop).

    Args:
      images: [batch, height, width, channels].
      size: pixels of a side of each square, 1 or more.

    Returns:
      Upper left, upper right, lower left, lower right and the middle: 5 x [batch, size, size,
      channels].

    Raises:
      UserError: if the images are smaller.
    """
    _, height, width, _ = images.shape
    if size > min(height, width):
        raise UserError(
            f"crops of {size} pixels do not fit into images of {height}x{width}: use a size "
            f"of {min(height, width)} at most, or resize the images to more."
        )
    bottom, right = height - size, width - size
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    places.append((center_start(height, size), center_start(width, size)))
    return tuple(images[:, y : y + size, x : x + size] for y, x in places)


def ten_crops(images: jax.Array, size: int) -> Batches:
    """Returns five_crops() of the images, then of their mirror images (torchvision's TenCrop)."""
    return five_crops(images, size) + five_crops(images[:, :, ::-1], size)


def scales(
    images: jax.Array, sizes: Sequence[int], interpolation: Interpolation = "bilinear"
) -> Batches:
    """Resizes the shorter side to each of several sizes, as Resize does.

    Args:
      images: float32 [batch, height, width, channels], whole grey levels 0..255.
      sizes: pixels of the shorter side, 1 or more; the size that images have leaves them.
      interpolation: as of Resize.

    Returns:
      A batch of whole grey levels for each size, all of different shapes.
    """
    _, height, width, _ = images.shape
    return tuple(
        resample(images, *resized_shape(height, width, size), interpolation)
        for size in sizes
    )


def airbench_views(images: jax.Array, shift: int = 1) -> Batches:
    """Returns the images, then the windows `shift` pixels further up and left, then down and
    right, each followed by its mirror image: 6 x the shape of the images.

    What lies outside is mirrored at the border pixel, which is not repeated. With one pixel
    these are the views of Keller Jordan's airbench94 (arXiv 2404.00498).

    Raises:
      UserError: if the images have no more than `shift` pixels along a side.
    """
    _, height, width, _ = images.shape
    if shift >= min(height, width):
        raise UserError(
            f"a shift of {shift} pixels mirrors more than images of {height}x{width} have: "
            f"use less than {min(height, width)}."
        )
    border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = jnp.pad(images, border, mode="reflect")
    up_left = padded[:, :height, :width]
    down_right = padded[:, 2 * shift :, 2 * shift :]
    return flip_views(images) + flip_views(up_left) + flip_views(down_right)


@dataclasses.dataclass(kw_only=True)
class Views(abc.ABC):
    """Which views of test images are averaged; also the node of a config that says so."""

    on_grey_levels: ClassVar[bool] = False
    """Whether the images must be grey levels 0..255. All others only move pixels, so that
    they may come before Normalize or behind it."""

    @abc.abstractmethod
    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        """Returns views of a batch, and the weight of each in the average, which sum to 1.

        Args:
          images: float32 [batch, height, width, channels].
        """

    def validate(self) -> None:  # noqa: B027 - views without options have nothing
        """Raises UserError for values out of range."""


def _evenly(views: Batches) -> tuple[Batches, tuple[float, ...]]:
    """Gives every view the same weight."""
    return views, (1 / len(views),) * len(views)


@dataclasses.dataclass(kw_only=True)
class FlipViews(Views):
    """The image and its mirror image."""

    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        return _evenly(flip_views(images))


@dataclasses.dataclass(kw_only=True)
class FiveCrops(Views):
    """The four corners and the middle of images that are larger than the network's input.

    Attributes:
      size: pixels of a side of each crop, 1..16384.
    """

    size: int

    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        return _evenly(five_crops(images, self.size))

    def validate(self) -> None:
        _check_side(self, "size", self.size)


@dataclasses.dataclass(kw_only=True)
class TenCrops(Views):
    """The four corners and the middle, of the image and its mirror image (AlexNet's ten).

    Attributes:
      size: pixels of a side of each crop, 1..16384.
    """

    size: int

    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        return _evenly(ten_crops(images, self.size))

    def validate(self) -> None:
        _check_side(self, "size", self.size)


@dataclasses.dataclass(kw_only=True)
class Scales(Views):
    """The whole image at several sizes, for networks that take any.

    Attributes:
      sizes: pixels of the shorter side, each 1..16384.
      interpolation: "nearest", "bilinear" or "bicubic", as of Resize.
    """

    on_grey_levels: ClassVar[bool] = True

    sizes: tuple[int, ...]
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        return _evenly(scales(images, self.sizes, self.interpolation))

    def validate(self) -> None:
        if not self.sizes:
            raise UserError("Scales.sizes is empty: give at least one size.")
        for size in self.sizes:
            _check_side(self, "sizes", size)
        known = get_args(Interpolation)
        if self.interpolation not in known:
            raise UserError(
                f"Scales.interpolation must be one of {', '.join(map(repr, known))}, not "
                f"{self.interpolation!r}."
            )


@dataclasses.dataclass(kw_only=True)
class AirbenchViews(Views):
    """The image, and it shifted up-left and down-right, and their mirror images (airbench94).

    The image that is not shifted has half of the weight.

    Attributes:
      shift: pixels, 1..16384; less than the image has.
    """

    shift: int = 1

    def __call__(self, images: jax.Array) -> tuple[Batches, tuple[float, ...]]:
        weights = (1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8)
        return airbench_views(images, self.shift), weights

    def validate(self) -> None:
        _check_side(self, "shift", self.shift)


def averaged_logits(
    apply_fn: Callable[[jax.Array], jax.Array], images: jax.Array, views: Views
) -> jax.Array:
    """Returns the weighted mean of a network's logits over views of the images.

    Logits are averaged, not probabilities. One view after the other is computed, so that
    memory does not grow with their number; views of one shape share one compiled network.

    Args:
      apply_fn: takes a view of a batch, [batch, its height, its width, channels], to logits,
        float [batch, classes].
      images: float32 [batch, height, width, channels].
      views: of the images.

    Returns:
      Logits [batch, classes].
    """
    batches, weights = views(images)
    if len({batch.shape for batch in batches}) == 1:
        logits = jax.lax.map(apply_fn, jnp.stack(batches))
    else:
        logits = jnp.stack([apply_fn(batch) for batch in batches])
    share = jnp.array(weights, logits.dtype).reshape(-1, 1, 1)
    return jnp.sum(share * logits, axis=0)


def _check_side(node: Views, name: str, value: int) -> None:
    if not 1 <= value <= LARGEST_SIDE:
        raise UserError(
            f"{type(node).__name__}.{name} must lie in 1..{LARGEST_SIDE}, not {value}."
        )
