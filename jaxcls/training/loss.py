"""What training makes small: a loss for each image, on soft targets."""

import dataclasses

import jax
import optax

from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2015, section 7,
    https://arxiv.org/abs/1512.00567).

    Attributes:
      label_smoothing: the part of each target spread evenly over all classes, 0..1. It is
        applied here, once, to whatever soft targets the augmentation has made.
    """

    label_smoothing: float = 0.0

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each image.

        Args:
          logits: float32 [batch, classes].
          targets: float32 [batch, classes], rows sum to 1.

        Returns:
          float32 [batch], 0 or more.
        """
        smoothed = optax.smooth_labels(targets, self.label_smoothing)
        return optax.softmax_cross_entropy(logits, smoothed)

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                "loss.label_smoothing must lie in 0..1, below 1, not "
                f"{self.label_smoothing}."
            )
