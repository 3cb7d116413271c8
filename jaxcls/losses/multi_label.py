"""Losses of images with any number of labels each."""

import abc
import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.losses.loss import Loss, Weights, power, reduced
from jaxcls.options import ShareBelowOne, ZeroOrMore


@dataclasses.dataclass(kw_only=True)
class _MultiLabel(Loss):
    """What the losses of images with any number of labels have in common.

    Attributes:
      positive_weights: factors of the loss of a label that the image has, one for each class, 0
        or more; "auto" takes the number of training images without the label for each one
        with it, and 1 for a label that all or none have; None takes 1.
      over_classes: whether an image's loss is the sum or the mean over the classes.
    """

    multi_label: ClassVar[bool] = True

    positive_weights: Weights = None
    over_classes: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        smoothed = (1 - self.label_smoothing) * targets + self.label_smoothing / 2
        if_yes, if_no = self._losses(logits)
        if self.positive_weights is not None:
            if_yes *= jnp.array(self.positive_weights)
        each = smoothed * if_yes + (1 - smoothed) * if_no
        return reduced(each, self.over_classes)

    @abc.abstractmethod
    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each logit if the image has the label, and if it does not have
        it, both float32 [batch, classes]."""

    def from_counts(self, counts: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
        ratios = (num_images - counts) / np.maximum(counts, 1)
        some = (counts > 0) & (counts < num_images)
        return {"positive_weights": np.where(some, ratios, 1)}


@dataclasses.dataclass(kw_only=True)
class MultiLabelBinaryCrossEntropy(_MultiLabel):
    """Binary cross-entropy for images of any number of classes, or none
    (torch.nn.BCEWithLogitsLoss, its pos_weight included)."""

    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)


@dataclasses.dataclass(kw_only=True)
class MultiLabelAsymmetric(_MultiLabel):
    """Binary cross-entropy that gives less weight to labels that are already predicted well,
    above all to the many labels that an image does not have (Ridnik et al. 2021, "Asymmetric
    loss for multi-label classification", https://arxiv.org/abs/2009.14119, equations 2, 5
    and 7).

    Attributes:
      gamma_positive: how much less, for labels that the image has, 0 or more.
      gamma_negative: how much less, for labels that the image does not have, 0 or more.
      margin: probability below which a label that the image does not have adds no loss, 0..1.
    """

    gamma_positive: ZeroOrMore = 0.0
    gamma_negative: ZeroOrMore = 4.0
    margin: ShareBelowOne = 0.05

    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        yes, no = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        if_yes = -power(no, self.gamma_positive) * jax.nn.log_sigmoid(logits)
        if self.margin == 0:
            # Unlike the logarithm below, this stays finite where `yes` rounds to 1.
            log_no = jax.nn.log_sigmoid(-logits)
        else:
            yes = jnp.maximum(yes - self.margin, 0)
            log_no = jnp.log1p(-yes)
        return if_yes, -power(yes, self.gamma_negative) * log_no
