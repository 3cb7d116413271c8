"""Losses of images with one label each, and that of a student beside its teacher."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import MinLen

from jaxcls.errors import UserError
from jaxcls.losses.loss import Loss, Weights, power, reduced
from jaxcls.options import AboveZero, ShareBelowOne, ZeroOrMore


@dataclasses.dataclass(kw_only=True)
class _SingleLabel(Loss):
    """What the losses of images with one label have in common.

    Attributes:
      class_weights: factors of the loss, one for each class of a target, 0 or more; "auto"
        weighs by the inverse of the number of training images of a class, so that their mean
        over the training images is 1; None weighs all classes alike.
    """

    class_weights: Weights = None

    def from_counts(self, counts: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
        # A class without images is a target only through smoothing.
        each = np.where(counts, num_images / np.maximum(counts, 1), 0)
        return {"class_weights": each / np.count_nonzero(counts)}


@dataclasses.dataclass(kw_only=True)
class SoftmaxCrossEntropy(_SingleLabel):
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2015, section 7,
    https://arxiv.org/abs/1512.00567).

    With class weights and smoothing it is torch.nn.CrossEntropyLoss, except that the sum is
    divided by the number of images, not by the sum of their weights.

    Attributes:
      logit_adjustment: in training, the logarithm of each class's share of the training images
        is added to its logit, times this (Menon et al. 2020, https://arxiv.org/abs/2007.07314,
        equation 10): the plain logits, which evaluation takes, then favour no frequent class.
        0 adds nothing; the paper takes 1.
      class_priors: these shares, one for each class, above 0; only their ratios matter. "auto"
        counts the training images, a class without any as one image.
    """

    logit_adjustment: ZeroOrMore = 0.0
    class_priors: Literal["auto"] | Annotated[tuple[AboveZero, ...], MinLen(1)] = "auto"

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.logit_adjustment:
            log_priors = np.log(np.array(self.class_priors, np.float64))
            logits = logits + np.float32(self.logit_adjustment * log_priors)
        smoothed = _smoothed(targets, self.label_smoothing)
        if self.class_weights is not None:
            smoothed *= jnp.array(self.class_weights)
        return optax.softmax_cross_entropy(logits, smoothed)

    @property
    def automatic(self) -> frozenset[str]:
        unused = () if self.logit_adjustment else ("class_priors",)
        return super().automatic.difference(unused)

    def from_counts(self, counts: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
        priors = np.maximum(counts, 1) / num_images
        return {**super().from_counts(counts, num_images), "class_priors": priors}

    def validate(self) -> None:
        """Raises UserError for weights that are all 0, and for priors that nothing uses."""
        super().validate()
        if self.class_priors != "auto" and self.logit_adjustment == 0:
            raise UserError(
                "loss.class_priors are given, but loss.logit_adjustment is 0 and uses none: set "
                'it above 0 (1 is usual), or loss.class_priors to "auto".'
            )


@dataclasses.dataclass(kw_only=True)
class BinaryCrossEntropy(_SingleLabel):
    """Binary cross-entropy: each class says, independently, whether the image belongs to it
    (Wightman et al. 2021, "ResNet strikes back", section 2, https://arxiv.org/abs/2110.00476;
    timm's BinaryCrossEntropy).

    A mixed image counts as one of all the classes that went into it. A class weight is a factor
    of all that an image of that class loses, at every class's output (as in Cui et al. 2019,
    https://arxiv.org/abs/1901.05555, equation 10).

    Attributes:
      target_threshold: targets above it become 1 and all others 0, after smoothing, 0..1; it
        tells the class of a whole image from the others. None leaves mixed targets soft.
      over_classes: whether an image's loss is the sum or the mean over the classes.
    """

    target_threshold: ShareBelowOne | None = None
    over_classes: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        # What there is of an image counts in part, as if it were a whole one.
        share = targets.sum(-1, keepdims=True)
        whole = targets / jnp.where(share > 0, share, 1)
        smoothed = _smoothed(whole, self.label_smoothing)
        if self.target_threshold is not None:
            smoothed = (smoothed > self.target_threshold).astype(jnp.float32)
        each = optax.sigmoid_binary_cross_entropy(logits, smoothed)
        factors = share[:, 0]
        if self.class_weights is not None:
            factors = (targets * jnp.array(self.class_weights)).sum(-1)
        return factors * reduced(each, self.over_classes)

    def check_classes(self, num_classes: int) -> None:
        super().check_classes(num_classes)
        threshold = self.target_threshold
        if threshold is None or num_classes < 2:
            return
        smoothed = _smoothed(jnp.eye(1, num_classes), self.label_smoothing)[0]
        own, other = float(smoothed[0]), float(smoothed[1])
        if not other <= np.float32(threshold) < own:
            raise UserError(
                f"loss.target_threshold {threshold} makes all targets alike: with "
                f"loss.label_smoothing {self.label_smoothing} and {num_classes} classes a whole "
                f"image's own class has the target {own:.4g} and the others {other:.4g}. Choose "
                "a threshold between them, or smooth less."
            )


@dataclasses.dataclass(kw_only=True)
class Focal(_SingleLabel):
    """Softmax cross-entropy that gives less weight to classes that are already predicted well:
    -(1 - p)^gamma log(p) for the probability p of a target's class (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002, equations 4 and 5; the class weights are its alpha).

    Attributes:
      gamma: how much less, 0 or more; 0 is the cross-entropy.
    """

    gamma: ZeroOrMore = 2.0

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        smoothed = _smoothed(targets, self.label_smoothing)
        if self.class_weights is not None:
            smoothed *= jnp.array(self.class_weights)
        log_probabilities = jax.nn.log_softmax(logits)
        # Of a p near 1 this keeps more digits of 1 - p than the difference.
        focus = power(-jnp.expm1(log_probabilities), self.gamma)
        return -(smoothed * focus * log_probabilities).sum(-1)


def distillation_loss(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """Returns how far the predictions of a student are from those of its teacher.

    The divergence KL(teacher || student) of the softmax probabilities of logits / temperature,
    times temperature^2, so that gradients keep their size whatever it is (Hinton et al. 2015,
    section 2, https://arxiv.org/abs/1503.02531).

    Args:
      logits: of the student, float32 [batch, classes].
      teacher_logits: float32 [batch, classes].
      temperature: above 0.

    Returns:
      float32 [batch], 0 or more.
    """
    student = jax.nn.log_softmax(logits / temperature)
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(
        student, teacher
    )


def _smoothed(targets: jax.Array, smoothing: float) -> jax.Array:
    """Spreads a part of targets [batch, classes] over all classes; their sum stays."""
    even = smoothing / targets.shape[-1]
    return (1 - smoothing) * targets + even * targets.sum(-1, keepdims=True)
