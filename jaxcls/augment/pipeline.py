"""What a transform is, and how a tuple of them is applied.

    transforms = (Resize(size=32), RandomCrop(padding=4), HorizontalFlip(), Normalize(...))
    images, targets = apply(transforms, rng, batch["image"], targets)

uint8 images go in and normalised floats come out. In between, images are float32 with whole
values 0..255, so that every transform can mean what it means on uint8.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.kernels.pillow_warp import Interpolation, warp
from jaxcls.errors import UserError

LARGEST_SIDE = 16384
"""Pixels of a side, or added to one, at most: typing errors are refused, no image is."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When in a run a batch is transformed, for transforms that change on the way.

    Attributes:
      step: of the run, int32 scalar from 0, traced.
      steps_per_epoch: 1 or more.
      total_steps: length of the run, 1 or more.
    """

    step: jax.Array
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> jax.Array:
        """Epochs completed, int32 scalar."""
        return self.step // self.steps_per_epoch


@dataclasses.dataclass(kw_only=True)
class Transform(abc.ABC):
    """A pure function of a whole batch; also the node of a config that describes it."""

    random: ClassVar[bool] = False
    """Whether the result depends on the random key or the moment: such transforms only train."""

    on_grey_levels: ClassVar[bool] = False
    """Whether the images must be grey levels 0..255, so that it comes before Normalize."""

    keeps_grey_levels: ClassVar[bool] = True
    """Whether whole grey levels 0..255 become such, so that what works on them may follow."""

    @abc.abstractmethod
    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Transforms a batch. Nothing is checked or converted here: by hand, call apply().

        Args:
          rng: a random key, used up by this transform.
          images: float32 [batch, height, width, channels] with whole values 0..255 (any
            floats after Normalize).
          targets: float32 [batch, classes], each row a distribution over the classes.

        Returns:
          images float32 [batch, new height, new width, channels], and targets.
        """

    def at(self, moment: Moment) -> "Transform":
        """Returns what this transform is at a moment of the run: itself, unless it changes."""
        del moment
        return self

    def validate(self) -> None:  # noqa: B027 - a transform without options has nothing
        """Raises UserError for values out of range."""


@dataclasses.dataclass(kw_only=True)
class Warp(Transform):
    """A transform that moves pixels by a projective map. Neighbours in a pipeline that resample
    alike become one: their maps are multiplied and the pixels are sampled once.

    Attributes:
      interpolation: "nearest", "bilinear" or "bicubic" (Keys' with a = -1, as Pillow's
        transform).
      fill: grey level 0..255 outside of the image.
    """

    random: ClassVar[bool] = True
    on_grey_levels: ClassVar[bool] = True

    interpolation: Interpolation = "nearest"
    fill: float = 0.0

    @abc.abstractmethod
    def matrices(
        self, rng: jax.Array, batch: int, height: int, width: int
    ) -> jax.Array:
        """Returns float32 [batch, 3, 3]: takes the pixel (x, y, 1) of a result, in pixels
        from the upper left corner of the image, to its place in the original."""

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        maps = self.matrices(rng, *images.shape[:3])
        return warp(images, maps, self.interpolation, self.fill), targets

    def merges_with(self, following: Transform) -> bool:
        """Whether both can be sampled at once."""
        return (
            isinstance(following, Warp)
            and following.interpolation == self.interpolation
            and following.fill == self.fill
        )


@dataclasses.dataclass(kw_only=True)
class _Merged(Warp):
    """Warps one after the other, as one."""

    parts: tuple[Warp, ...]

    def matrices(
        self, rng: jax.Array, batch: int, height: int, width: int
    ) -> jax.Array:
        total = jnp.broadcast_to(jnp.eye(3), (batch, 3, 3))
        for position, part in enumerate(self.parts):
            key = jax.random.fold_in(rng, position)
            # A pixel of the last result goes to its place in the result before, and so on.
            total = jnp.matmul(
                total,
                part.matrices(key, batch, height, width),
                precision=jax.lax.Precision.HIGHEST,
            )
        return total


def merged(transforms: Sequence[Transform]) -> list[Transform]:
    """Returns the transforms with neighbouring warps that resample alike made one."""
    found: list[Transform] = []
    for transform in transforms:
        if found and isinstance(found[-1], Warp) and found[-1].merges_with(transform):
            assert isinstance(transform, Warp)
            last = found[-1]
            parts = last.parts if isinstance(last, _Merged) else (last,)
            found[-1] = _Merged(
                interpolation=transform.interpolation,
                fill=transform.fill,
                parts=(*parts, transform),
            )
        else:
            found.append(transform)
    return found


def apply(
    transforms: Sequence[Transform],
    rng: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    moment: Moment | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the transforms in order, each with its own key.

    Args:
      transforms: applied first to last; neighbouring warps are sampled once.
      rng: one random key for the whole global batch, so that the draws do not depend on how
        the batch is spread over devices.
      images: uint8, or floats, [batch, height, width, channels], one image or more.
      targets: [batch, classes], each row a distribution over the classes.
      moment: when in the run, for transforms that change on the way; None leaves them as
        their options say.

    Returns:
      images float32 [batch, ...] and targets float32 [batch, classes].

    Raises:
      UserError: for arrays of other shapes or dtypes, or what is no sequence of transforms.
    """
    _check_arguments(transforms, images, targets)
    images, targets = images.astype(jnp.float32), targets.astype(jnp.float32)
    now = [t if moment is None else t.at(moment) for t in transforms]
    for position, transform in enumerate(merged(now)):
        key = jax.random.fold_in(rng, position)
        images, targets = transform(key, images, targets)
    return images, targets


def _check_arguments(
    transforms: Sequence[Transform], images: jax.Array, targets: jax.Array
) -> None:
    """Raises UserError unless apply() can take these; see there."""
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


def check_images(function: str, images: jax.Array) -> None:
    """Raises UserError, naming the function, unless images are uint8 or floats [batch, height,
    width, channels] with at least one image."""
    levels = images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
    if not levels or images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"{function} takes images [batch, height, width, channels], uint8 or float32, one "
            f"or more, not {images.dtype} of shape {tuple(images.shape)}."
        )


def sometimes(
    rng: jax.Array, p: float, changed: jax.Array, images: jax.Array
) -> jax.Array:
    """Returns for each image the changed one with probability p, else the one as it was.

    Args:
      rng: a random key.
      p: 0..1; at 1 nothing is drawn.
      changed: [batch, ...].
      images: of the same shape.
    """
    if p == 1:
        return changed
    drawn = jax.random.bernoulli(rng, jnp.float32(p), (len(images),))
    return jnp.where(drawn.reshape(-1, *(1,) * (images.ndim - 1)), changed, images)


def check_range(node: Transform, name: str, low: float, high: float) -> None:
    """Raises UserError unless low <= node.name <= high."""
    value = getattr(node, name)
    if not low <= value <= high:
        raise UserError(
            f"{type(node).__name__}.{name} must lie in {low:g}..{high:g}, not {value}."
        )


def check_amount(node: Transform, name: str) -> None:
    """Raises UserError unless 0 <= node.name and it is finite."""
    value = getattr(node, name)
    if not 0 <= value < math.inf:
        raise UserError(
            f"{type(node).__name__}.{name} must be 0 or more, and finite, not {value}."
        )
