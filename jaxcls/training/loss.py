"""What training makes small: a loss for each image, on soft targets."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2015, section 7,
    https://arxiv.org/abs/1512.00567).

    Attributes:
      label_smoothing: the part of each target spread evenly over all classes, 0..1. It is
        applied here, once, to whatever soft targets the augmentation has made.
      class_weights: factors of the loss, one for each class of a target, 0 or more; "auto"
        weighs by the inverse of the number of training images of a class, so that their mean
        over the training images is 1; None weighs all classes alike.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["auto"] | tuple[float, ...] | None = None

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each image; "auto" weights must have been made numbers.

        Args:
          logits: float32 [batch, classes].
          targets: float32 [batch, classes], rows sum to 1, or to less where a part of the
            image is missing: only what there is is smoothed.

        Returns:
          float32 [batch], 0 or more.
        """
        even = self.label_smoothing / targets.shape[-1]
        whole = targets.sum(-1, keepdims=True)
        smoothed = (1 - self.label_smoothing) * targets + even * whole
        if self.class_weights is not None:
            smoothed *= jnp.array(self.class_weights)
        return optax.softmax_cross_entropy(logits, smoothed)

    def weighted(self, labels: np.ndarray, num_classes: int) -> "SoftmaxCrossEntropy":
        """Returns this loss with "auto" made numbers.

        Args:
          labels: of the training images, int [n], n >= 1.
          num_classes: length of the logits.
        """
        counts = np.bincount(labels, minlength=num_classes)
        # A class without images is no target, but of smoothing.
        each = np.where(counts, len(labels) / np.maximum(counts, 1), 0)
        weights = tuple(float(weight) for weight in each / np.count_nonzero(counts))
        return dataclasses.replace(self, class_weights=weights)

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                "loss.label_smoothing must lie in 0..1, below 1, not "
                f"{self.label_smoothing}."
            )
        if isinstance(self.class_weights, tuple) and not (
            all(0 <= weight < math.inf for weight in self.class_weights)
            and any(self.class_weights)
        ):
            raise UserError(
                "loss.class_weights must be 0 or more, and some above 0, not "
                f"{self.class_weights}."
            )
