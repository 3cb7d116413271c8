"""What a transform is, and how a tuple of them is applied.

    transforms = (Resize(size=32), RandomCrop(padding=4), HorizontalFlip(), Normalize(...))
    images, targets = apply(transforms, rng, batch["image"], targets)

uint8 images go in and normalised floats come out. In between, images are float32 with whole
values 0..255, so that every transform can mean what it means on uint8.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclasses.dataclass(kw_only=True)
class Transform(abc.ABC):
    """A pure function of a whole batch; also the node of a config that describes it."""

    random: ClassVar[bool] = False
    """Whether the result depends on the random key: such transforms only train."""

    on_grey_levels: ClassVar[bool] = False
    """Whether the images must be grey levels 0..255, so that it comes before Normalize."""

    @abc.abstractmethod
    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Transforms a batch.

        Args:
          rng: a random key, used up by this transform.
          images: float32 [batch, height, width, channels] with whole values 0..255 (any
            floats after Normalize).
          targets: float32 [batch, classes], each row a distribution over the classes.

        Returns:
          images float32 [batch, new height, new width, channels], and targets.
        """

    def validate(self) -> None:  # noqa: B027 - a transform without options has nothing
        """Raises UserError for values out of range."""


def apply(
    transforms: Sequence[Transform],
    rng: jax.Array,
    images: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Applies the transforms in order, each with its own key.

    Args:
      transforms: applied first to last.
      rng: one random key for the whole global batch, so that the draws do not depend on how
        the batch is spread over devices.
      images: uint8 [batch, height, width, channels].
      targets: float32 [batch, classes].

    Returns:
      images float32 [batch, ...] and targets float32 [batch, classes].
    """
    images = images.astype(jnp.float32)
    for position, transform in enumerate(transforms):
        key = jax.random.fold_in(rng, position)
        images, targets = transform(key, images, targets)
    return images, targets
