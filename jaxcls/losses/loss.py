"""What the losses have in common: a loss for each image, on soft targets."""

import abc
import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import UserError
from jaxcls.options import ShareBelowOne, ZeroOrMore

Weights = Literal["auto"] | tuple[ZeroOrMore, ...] | None
"""Factors of a loss, one for each class; "auto" counts the training labels."""


@dataclasses.dataclass(kw_only=True)
class Loss(abc.ABC):
    """What the losses have in common.

    Attributes:
      label_smoothing: the part of each target that is taken away and spread evenly: over all
        classes, or over yes and no where an image has any number of labels; 0..1, below 1. The
        loss applies it, once, to whatever soft targets the augmentation has made.
    """

    multi_label: ClassVar[bool] = False
    """Whether the loss is for images of any number of classes."""

    label_smoothing: ShareBelowOne = 0.0

    @abc.abstractmethod
    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each image. fitted() must have replaced every "auto".

        Args:
          logits: float32 [batch, classes].
          targets: float32 [batch, classes] in 0..1. With one label an image, rows sum to 1,
            or to less where a part of the image is missing: only what there is counts, and a
            row of zeros has no loss.

        Returns:
          float32 [batch], 0 or more.
        """

    @property
    def automatic(self) -> frozenset[str]:
        """The options for which fitted() must count the training labels."""
        return frozenset(name for name, value in vars(self).items() if value == "auto")

    def fitted(self, counts: np.ndarray, num_images: int) -> Self:
        """Returns this loss with numbers, counted in the training labels, for every "auto".

        Args:
          counts: training images of each class, int [classes].
          num_images: all training images, 1 or more. With one label an image it is the sum
            of the counts.
        """
        found = self.from_counts(counts, num_images)
        numbers: Any = {name: tuple(found[name].tolist()) for name in self.automatic}
        return dataclasses.replace(self, **numbers)

    def from_counts(self, counts: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
        """Returns what "auto" stands for: option -> float64 [classes]. Takes what fitted()
        takes."""
        return {}

    def validate(self) -> None:
        """Raises UserError for weights that are all 0."""
        for name, numbers in self._numbers().items():
            if not any(numbers):
                raise UserError(
                    f"loss.{name} must be 0 or more, and some above 0, not {numbers}."
                )

    def _numbers(self) -> dict[str, tuple[float, ...]]:
        """Returns the options that hold a number for each class, by name."""
        return {name: v for name, v in vars(self).items() if isinstance(v, tuple)}

    def check_classes(self, num_classes: int) -> None:
        """Raises UserError if options do not fit `num_classes` classes, as numbers for more or
        fewer of them."""
        for name, numbers in self._numbers().items():
            if len(numbers) != num_classes:
                raise UserError(
                    f"loss.{name} has {len(numbers)} numbers for the {num_classes} classes of "
                    "the training images: give one for each, in the order of the class names."
                )

    def check_labels(self, labels: np.ndarray, source: str) -> None:
        """Raises UserError if labels are not of the kind that the loss is for.

        Args:
          labels: of a batch, int [n] or [n, classes] of ones and zeros.
          source: whose they are, for the message.
        """
        kind = type(self).__name__
        if labels.ndim == 2 and not self.multi_label:
            raise UserError(
                f"the images of {source} have any number of classes each, but the loss is "
                f"{kind}, for exactly one: use MultiLabelBinaryCrossEntropy as loss."
            )
        if labels.ndim == 1 and self.multi_label:
            raise UserError(
                f"the images of {source} have one class each, but the loss is {kind}, for any "
                "number of them: use SoftmaxCrossEntropy as loss (or data with several: "
                "data.multi_label=true of a Manifest, or records made of it)."
            )


def as_targets(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns labels as targets, float32 [batch, classes].

    Args:
      labels: int32 [batch], or [batch, classes] of ones and zeros for any number of labels
        an image.
      num_classes: length of the logits.
    """
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    return jax.nn.one_hot(labels, num_classes)


def reduced(each: jax.Array, over_classes: str) -> jax.Array:
    """Returns the sum or the mean over the last axis."""
    return each.sum(-1) if over_classes == "sum" else each.mean(-1)


def power(base: jax.Array, exponent: float) -> jax.Array:
    """Returns base ** exponent for a base of 0 or more.

    At 0 the slope of a power below 1 is infinite, and would make the gradient no number: there
    it is 0.
    """
    return jnp.maximum(base, jnp.finfo(base.dtype).tiny) ** exponent
