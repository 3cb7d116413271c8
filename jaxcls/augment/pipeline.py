"""What a transform is, and how a tuple of them is applied.

    transforms = (Resize(size=32), RandomCrop(padding=4), HorizontalFlip(), Normalize(...))
    images, targets = apply(transforms, rng, batch["image"], targets)

uint8 images go in and normalised floats come out. In between, images are float32 with whole
values 0..255, so that every transform can mean what it means on uint8.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Interval, MultipleOf

from jaxcls.augment.kernels.images import check_images
from jaxcls.augment.kernels.pillow_warp import Interpolation, warp
from jaxcls.errors import UserError

LARGEST_SIDE = 16384
"""Pixels of a side, or added to one, at most: typing errors are refused, no image is."""

Side = Annotated[int, Interval(ge=1, le=LARGEST_SIDE)]
WholeGreyLevel = Annotated[float, Interval(ge=0, le=255), MultipleOf(1)]


Batch = tuple[jax.Array, jax.Array]
"""Images, float32 [batch, height, width, channels], and targets, float32 [batch, classes]."""

BatchFunction = Callable[[jax.Array, jax.Array, jax.Array], Batch]
"""(random key, images, targets) -> images and targets: what a transform does at a position."""

Maps = jax.Array
"""float32 [batch, 3, 3], projective: takes the pixel (x, y, 1) of a result, in pixels from the
upper left corner of the image, to its place in the original."""


@dataclasses.dataclass(frozen=True)
class RunPosition:
    """How far a run has come when a batch is transformed, for transforms that change on the way.

    Attributes:
      step: of the run, int32 scalar from 0, traced.
      steps_per_epoch: 1 or more.
      total_steps: length of the run, 1 or more.
    """

    step: jax.Array
    steps_per_epoch: int
    total_steps: int


@dataclasses.dataclass(kw_only=True)
class Transform(abc.ABC):
    """A pure function of a whole batch; also the node of a config that describes it.

    The ranges of its options stand in their annotations (jaxcls/options/). A method
    `validate` may check rules between options; it raises UserError.
    """

    random: ClassVar[bool] = False
    """Whether the result depends on the random key or on the position in the run: such
    transforms only train."""

    on_grey_levels: ClassVar[bool] = False
    """Whether the images must be grey levels 0..255, so that it comes before Normalize."""

    keeps_grey_levels: ClassVar[bool] = True
    """Whether whole grey levels 0..255 stay whole, so that a transform of grey levels may follow."""

    @abc.abstractmethod
    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        """Transforms a batch. Nothing is checked or converted here: by hand, call apply().

        Args:
          rng: a random key, used up by this transform.
          images: float32 [batch, height, width, channels] with whole values 0..255 (any
            floats after Normalize).
          targets: float32 [batch, classes], each row a distribution over the classes.

        Returns:
          images float32 [batch, new height, new width, channels], and targets.
        """

    def at(self, position: RunPosition) -> BatchFunction:
        """Returns what this transform does at a position in the run: itself, unless it changes."""
        return self


@dataclasses.dataclass(kw_only=True)
class ImageTransform(Transform):
    """A transform that leaves the targets as they are."""

    @abc.abstractmethod
    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        """Returns the images transformed. Takes the arguments of Transform.__call__."""

    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        return self.change(rng, images), targets


@dataclasses.dataclass(kw_only=True)
class RandomGreyLevelTransform(ImageTransform):
    """A transform that draws for each image, and works on grey levels."""

    random: ClassVar[bool] = True
    on_grey_levels: ClassVar[bool] = True


@dataclasses.dataclass(kw_only=True)
class Warp(RandomGreyLevelTransform):
    """A transform that moves pixels by a projective map. Neighbours in a pipeline that resample
    alike become one: their maps are multiplied and the pixels are sampled once.

    Attributes:
      interpolation: "nearest", "bilinear" or "bicubic" (Keys' with a = -1, as Pillow's
        transform).
      fill: whole grey level 0..255 outside of the image.
    """

    interpolation: Interpolation = "nearest"
    fill: WholeGreyLevel = 0.0

    @abc.abstractmethod
    def matrices(self, rng: jax.Array, batch: int, height: int, width: int) -> Maps:
        """Draws the map of each of `batch` images of height x width pixels."""

    def change(self, rng: jax.Array, images: jax.Array) -> jax.Array:
        maps = self.matrices(rng, *images.shape[:3])
        return warp(images, maps, self.interpolation, self.fill)


def _warp_once(
    warps: Sequence[Warp], rng: jax.Array, images: jax.Array, targets: jax.Array
) -> Batch:
    """Applies warps that resample alike, one after the other, as one."""
    maps = jnp.broadcast_to(jnp.eye(3), (len(images), 3, 3))
    for index, one in enumerate(warps):
        key = jax.random.fold_in(rng, index)
        # A pixel of the last result goes to its place in the result before, and so on.
        maps = product(maps, one.matrices(key, *images.shape[:3]))
    return warp(images, maps, warps[0].interpolation, warps[0].fill), targets


def product(first: Maps, second: Maps) -> Maps:
    """Returns the matrix products, in full precision on every device."""
    return jnp.matmul(first, second, precision="highest")


def merged(transforms: Sequence[BatchFunction]) -> list[BatchFunction]:
    """Returns the transforms with neighbouring warps that resample alike made one."""

    def sampling_of(transform: BatchFunction) -> tuple[Interpolation, float] | None:
        if not isinstance(transform, Warp):
            return None
        return transform.interpolation, transform.fill

    found: list[BatchFunction] = []
    for sampling, alike in itertools.groupby(transforms, sampling_of):
        parts: list[Any] = list(alike)
        warps = sampling is not None and len(parts) > 1
        found += [functools.partial(_warp_once, parts)] if warps else parts
    return found


def apply(
    transforms: Sequence[Transform],
    rng: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    position: RunPosition | None = None,
) -> Batch:
    """Applies the transforms in order, each with its own key.

    Args:
      transforms: applied first to last; neighbouring warps are sampled once.
      rng: one random key for the whole global batch, so that the draws do not depend on how
        the batch is spread over devices.
      images: uint8, or floats, [batch, height, width, channels], one image or more.
      targets: [batch, classes], each row a distribution over the classes.
      position: in the run, for transforms that change on the way; None leaves them as their
        options say.

    Returns:
      images float32 [batch, ...] and targets float32 [batch, classes].

    Raises:
      UserError: for arrays of other shapes or dtypes, or for no sequence of transforms.
    """
    if not isinstance(transforms, Sequence):
        raise UserError(
            "apply takes a tuple of transforms, even of a single one, not "
            f"{type(transforms).__name__}."
        )
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise UserError(f"apply takes transforms, not {transform!r}.")
    check_images("apply", images)
    if targets.ndim != 2 or len(targets) != len(images):
        raise UserError(
            f"apply takes targets [batch, classes], a row for each of {len(images)} images, "
            f"not {targets.dtype} of shape {targets.shape}: make class numbers rows with "
            "jax.nn.one_hot."
        )
    images, targets = images.astype(jnp.float32), targets.astype(jnp.float32)
    now = [t if position is None else t.at(position) for t in transforms]
    for index, change in enumerate(merged(now)):
        images, targets = change(jax.random.fold_in(rng, index), images, targets)
    return images, targets
