"""Several views of each test image, whose logits are averaged (test-time augmentation).

logits = averaged_logits(lambda view: model.apply(variables, view), images, TenCrops(size=224))
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import MinLen

from jaxcls.augment.geometry import center_start
from jaxcls.augment.kernels.resample import Interpolation, resample, resized_shape
from jaxcls.augment.pipeline import Side
from jaxcls.errors import UserError

Batches = tuple[jax.Array, ...]
"""Views of a batch, each [batch, its height, its width, channels]."""


@dataclasses.dataclass(kw_only=True)
class Views(abc.ABC):
    """Which views of test images are averaged; also the node of a config that says so."""

    on_grey_levels: ClassVar[bool] = False
    """Whether the images must be grey levels 0..255. All others only move pixels, so that
    they may come before Normalize or behind it."""

    weights: ClassVar[tuple[float, ...] | None] = None
    """The weight of each view in the average; they sum to 1. None weighs all views alike."""

    @abc.abstractmethod
    def __call__(self, images: jax.Array) -> Batches:
        """Returns views of a batch.

        Args:
          images: float32 [batch, height, width, channels].
        """


@dataclasses.dataclass(kw_only=True)
class FlipViews(Views):
    """The image and its mirror image."""

    def __call__(self, images: jax.Array) -> Batches:
        return images, images[:, :, ::-1]


@dataclasses.dataclass(kw_only=True)
class FiveCrops(Views):
    """The four corners and the middle of images that are larger than the network's input:
    upper left, upper right, lower left, lower right, middle (torchvision's FiveCrop).

    Attributes:
      size: pixels of a side of each crop, 1..16384; no more than the images have.
    """

    size: Side

    def __call__(self, images: jax.Array) -> Batches:
        _, height, width, _ = images.shape
        size = self.size
        if size > min(height, width):
            raise UserError(
                f"crops of {size} pixels do not fit into images of {height}x{width}: use a "
                f"size of {min(height, width)} at most, or resize the images to more."
            )
        bottom, right = height - size, width - size
        places = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        places.append((center_start(height, size), center_start(width, size)))
        return tuple(images[:, y : y + size, x : x + size] for y, x in places)


@dataclasses.dataclass(kw_only=True)
class TenCrops(FiveCrops):
    """The four corners and the middle, of the image and then of its mirror image (AlexNet's
    ten, torchvision's TenCrop).

    Attributes:
      size: pixels of a side of each crop, 1..16384; no more than the images have.
    """

    def __call__(self, images: jax.Array) -> Batches:
        return super().__call__(images) + super().__call__(images[:, :, ::-1])


@dataclasses.dataclass(kw_only=True)
class Scales(Views):
    """The whole image at several sizes, for networks that take any. Resizes as Resize does.

    Attributes:
      sizes: pixels of the shorter side, each 1..16384; the size that images have leaves them.
      interpolation: "nearest", "bilinear" or "bicubic", as in Resize.
    """

    on_grey_levels: ClassVar[bool] = True

    sizes: Annotated[tuple[Side, ...], MinLen(1)]
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: jax.Array) -> Batches:
        _, height, width, _ = images.shape
        return tuple(
            resample(images, *resized_shape(height, width, size), self.interpolation)
            for size in self.sizes
        )


@dataclasses.dataclass(kw_only=True)
class AirbenchViews(Views):
    """The image, the windows `shift` pixels further up and left, then down and right, each
    followed by its mirror image: with one pixel, those of airbench94 (Jordan 2024, arXiv
    2404.00498).

    The image that is not shifted has half of the weight. What lies outside is mirrored at the
    border pixel, which is not repeated.

    Attributes:
      shift: pixels, 1..16384; less than the images have.
    """

    weights: ClassVar[tuple[float, ...] | None] = (1 / 4, 1 / 4, *(1 / 8,) * 4)

    shift: Side = 1

    def __call__(self, images: jax.Array) -> Batches:
        _, height, width, _ = images.shape
        shift = self.shift
        if shift >= min(height, width):
            raise UserError(
                f"a shift of {shift} pixels mirrors more than images of {height}x{width} "
                f"have: use less than {min(height, width)}."
            )
        border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = jnp.pad(images, border, mode="reflect")
        up_left = padded[:, :height, :width]
        down_right = padded[:, 2 * shift :, 2 * shift :]
        windows = images, up_left, down_right
        return tuple(view for window in windows for view in FlipViews()(window))


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
    batches = views(images)
    if len({batch.shape for batch in batches}) == 1:
        logits = jax.lax.map(apply_fn, jnp.stack(batches))
    else:
        logits = jnp.stack([apply_fn(batch) for batch in batches])
    weights = views.weights or (1 / len(batches),) * len(batches)
    share = jnp.array(weights, logits.dtype).reshape(-1, 1, 1)
    return jnp.sum(share * logits, axis=0)
