"""Transforms of pixel values."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxcls.augment.pipeline import Transform
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Normalize(Transform):
    """(pixel / 255 - mean) / std, as torchvision's ToTensor and Normalize.

    Attributes:
      mean: a value for each channel in 0..1, or one for all.
      std: a value for each channel in 0..1, above 0, or one for all.
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
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values:
                raise UserError(f"Normalize.{name} is empty: give a value a channel.")
            for value in values:
                if not 0 <= value <= 1 or (name == "std" and value == 0):
                    above = ", above 0" if name == "std" else ""
                    raise UserError(
                        f"Normalize.{name} must lie in 0..1{above}, where 1 stands for grey "
                        f"level 255, not {value}."
                    )
