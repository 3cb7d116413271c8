"""What training makes small: a loss for each image, on soft targets.

A dataset with one label an image is trained with SoftmaxCrossEntropy, BinaryCrossEntropy or
Focal; one with any number of them with MultiLabelBinaryCrossEntropy or MultiLabelAsymmetric.
"""

import abc
import dataclasses
import math
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Loss(abc.ABC):
    """What the losses have in common.

    Attributes:
      label_smoothing: the part of each target that is taken away and spread evenly: over all
        classes, or over yes and no where an image has any number of labels; 0..1. It is
        applied here, once, to whatever soft targets the augmentation has made.
    """

    multi_label: ClassVar[bool] = False
    """Whether the loss is for images of any number of classes."""

    label_smoothing: float = 0.0

    @abc.abstractmethod
    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each image; what is "auto" must have been made numbers.

        Args:
          logits: float32 [batch, classes].
          targets: float32 [batch, classes] in 0..1. With one label an image, rows sum to 1,
            or to less where a part of the image is missing: only what there is counts, and a
            row of zeros has no loss.

        Returns:
          float32 [batch], 0 or more.
        """

    @property
    def needs_counts(self) -> bool:
        """Whether something is left to fitted()."""
        return False

    def fitted(self, counts: np.ndarray, num_images: int) -> Self:
        """Returns this loss with all that depends on the training labels made numbers.

        Args:
          counts: training images of each class, int [classes].
          num_images: all training images, 1 or more. With one label an image it is the sum
            of the counts.
        """
        return self

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                "loss.label_smoothing must lie in 0..1, below 1, not "
                f"{self.label_smoothing}."
            )

    def check_classes(self, num_classes: int) -> None:
        """Raises UserError if options do not fit `num_classes` classes, as numbers for more or
        fewer of them."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) != num_classes:
                raise UserError(
                    f"loss.{field.name} has {len(value)} numbers for the {num_classes} "
                    "classes of the training images: give one for each, in the order of the "
                    "class names."
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


# ------------------------------------------------------------------------- one label an image


@dataclasses.dataclass(kw_only=True)
class _SingleLabel(Loss):
    """What the losses of images with one label have in common.

    Attributes:
      class_weights: factors of the loss, one for each class of a target, 0 or more; "auto"
        weighs by the inverse of the number of training images of a class, so that their mean
        over the training images is 1; None weighs all classes alike.
    """

    class_weights: Literal["auto"] | tuple[float, ...] | None = None

    @property
    def needs_counts(self) -> bool:
        return self.class_weights == "auto"

    def fitted(self, counts: np.ndarray, num_images: int) -> Self:
        if self.class_weights != "auto":
            return self
        # A class without images is no target, but of smoothing.
        each = np.where(counts, num_images / np.maximum(counts, 1), 0)
        weights = each / np.count_nonzero(counts)
        return dataclasses.replace(self, class_weights=_as_tuple(weights))

    def validate(self) -> None:
        super().validate()
        _check_weights("class_weights", self.class_weights)


@dataclasses.dataclass(kw_only=True)
class SoftmaxCrossEntropy(_SingleLabel):
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2015, section 7,
    https://arxiv.org/abs/1512.00567).

    With class weights and smoothing it is torch.nn.CrossEntropyLoss, but for the division by
    the number of images and not by the sum of their weights.

    Attributes:
      logit_adjustment: in training, the logarithm of each class's share of the training images
        is added to its logit, times this (Menon et al. 2020, https://arxiv.org/abs/2007.07314,
        equation 10): the plain logits, by which is evaluated, then favour no frequent class.
        0 adds nothing; 1 is theirs.
      class_priors: these shares, one for each class, above 0; only their ratios matter. "auto"
        counts the training images, a class without any as one image.
    """

    logit_adjustment: float = 0.0
    class_priors: Literal["auto"] | tuple[float, ...] = "auto"

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.logit_adjustment:
            log_priors = np.log(np.array(self.class_priors, np.float64))
            logits += np.float32(self.logit_adjustment * log_priors)
        smoothed = _smoothed(targets, self.label_smoothing)
        if self.class_weights is not None:
            smoothed *= jnp.array(self.class_weights)
        return optax.softmax_cross_entropy(logits, smoothed)

    @property
    def _needs_priors(self) -> bool:
        return self.logit_adjustment != 0 and self.class_priors == "auto"

    @property
    def needs_counts(self) -> bool:
        return super().needs_counts or self._needs_priors

    def fitted(self, counts: np.ndarray, num_images: int) -> Self:
        fitted = super().fitted(counts, num_images)
        if not self._needs_priors:
            return fitted
        priors = np.maximum(counts, 1) / num_images
        return dataclasses.replace(fitted, class_priors=_as_tuple(priors))

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.logit_adjustment < math.inf:
            raise UserError(
                "loss.logit_adjustment must be 0 or more (0 adds nothing, 1 is usual), not "
                f"{self.logit_adjustment}."
            )
        priors = self.class_priors
        if isinstance(priors, tuple) and not (
            priors and all(0 < prior < math.inf for prior in priors)
        ):
            raise UserError(f"loss.class_priors must all be above 0, not {priors}.")
        if priors != "auto" and self.logit_adjustment == 0:
            raise UserError(
                "loss.class_priors are given, but loss.logit_adjustment is 0 and uses none: set "
                'it above 0 (1 is usual), or loss.class_priors to "auto".'
            )


@dataclasses.dataclass(kw_only=True)
class BinaryCrossEntropy(_SingleLabel):
    """Binary cross-entropy: each class is told from all others by itself, whether the image is
    of it or not (Wightman et al. 2021, "ResNet strikes back", section 2,
    https://arxiv.org/abs/2110.00476; timm's BinaryCrossEntropy).

    A mixed image is of all the classes that went into it. A class weight is a factor of all
    that an image of that class loses, at every class's output (as in Cui et al. 2019,
    https://arxiv.org/abs/1901.05555, equation 10).

    Attributes:
      target_threshold: targets above it become 1 and all others 0, after smoothing, 0..1; it
        tells the class of a whole image from the others. None leaves mixed targets soft.
      over_classes: whether an image's loss is the sum or the mean over the classes.
    """

    target_threshold: float | None = None
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
        return factors * _reduced(each, self.over_classes)

    def validate(self) -> None:
        super().validate()
        threshold = self.target_threshold
        if threshold is not None and not 0 <= threshold < 1:
            raise UserError(
                "loss.target_threshold must lie in 0..1, below 1, or be None, not "
                f"{threshold}."
            )

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
    """Softmax cross-entropy that cares less for classes which are predicted well already:
    -(1 - p)^gamma log(p) for the probability p of a target's class (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002, equations 4 and 5; the class weights are its alpha).

    Attributes:
      gamma: how much less, 0 or more; 0 is the cross-entropy.
    """

    gamma: float = 2.0

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        smoothed = _smoothed(targets, self.label_smoothing)
        if self.class_weights is not None:
            smoothed *= jnp.array(self.class_weights)
        log_probabilities = jax.nn.log_softmax(logits)
        # Of a p near 1 this keeps more digits of 1 - p than the difference.
        focus = _power(-jnp.expm1(log_probabilities), self.gamma)
        return -(smoothed * focus * log_probabilities).sum(-1)

    def validate(self) -> None:
        super().validate()
        _check_gamma("gamma", self.gamma)


# --------------------------------------------------------------- any number of labels an image


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

    positive_weights: Literal["auto"] | tuple[float, ...] | None = None
    over_classes: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        smoothed = (1 - self.label_smoothing) * targets + self.label_smoothing / 2
        if_yes, if_no = self._losses(logits)
        if self.positive_weights is not None:
            if_yes *= jnp.array(self.positive_weights)
        each = smoothed * if_yes + (1 - smoothed) * if_no
        return _reduced(each, self.over_classes)

    @abc.abstractmethod
    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each logit if the image has the label, and if it has not:
        float32 [batch, classes] both."""

    @property
    def needs_counts(self) -> bool:
        return self.positive_weights == "auto"

    def fitted(self, counts: np.ndarray, num_images: int) -> Self:
        if self.positive_weights != "auto":
            return self
        ratios = (num_images - counts) / np.maximum(counts, 1)
        weights = np.where((counts > 0) & (counts < num_images), ratios, 1)
        return dataclasses.replace(self, positive_weights=_as_tuple(weights))

    def validate(self) -> None:
        super().validate()
        _check_weights("positive_weights", self.positive_weights)


@dataclasses.dataclass(kw_only=True)
class MultiLabelBinaryCrossEntropy(_MultiLabel):
    """Binary cross-entropy for images of any number of classes, or none
    (torch.nn.BCEWithLogitsLoss, its pos_weight included)."""

    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)


@dataclasses.dataclass(kw_only=True)
class MultiLabelAsymmetric(_MultiLabel):
    """Binary cross-entropy that cares less for what is predicted well already, and most of all
    for the many labels that an image does not have (Ridnik et al. 2021, "Asymmetric loss for
    multi-label classification", https://arxiv.org/abs/2009.14119, equations 2, 5 and 7).

    Attributes:
      gamma_positive: how much less for labels that the image has, 0 or more.
      gamma_negative: how much less for those that it has not, 0 or more.
      margin: probability below which a label that it has not is no loss at all, 0..1.
    """

    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    margin: float = 0.05

    def _losses(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        yes, no = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        if_yes = -_power(no, self.gamma_positive) * jax.nn.log_sigmoid(logits)
        if self.margin == 0:
            log_no = jax.nn.log_sigmoid(
                -logits
            )  # it does not end where `yes` rounds to 1
        else:
            yes = jnp.maximum(yes - self.margin, 0)
            log_no = jnp.log1p(-yes)
        return if_yes, -_power(yes, self.gamma_negative) * log_no

    def validate(self) -> None:
        super().validate()
        _check_gamma("gamma_positive", self.gamma_positive)
        _check_gamma("gamma_negative", self.gamma_negative)
        if not 0 <= self.margin < 1:
            raise UserError(
                f"loss.margin must lie in 0..1, below 1, not {self.margin}."
            )


# ------------------------------------------------------------------------ beside the labels


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
    divergence = (jnp.exp(teacher) * (teacher - student)).sum(-1)
    return temperature**2 * divergence


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


def _smoothed(targets: jax.Array, smoothing: float) -> jax.Array:
    """Spreads a part of targets [batch, classes] over all classes; their sum stays."""
    even = smoothing / targets.shape[-1]
    return (1 - smoothing) * targets + even * targets.sum(-1, keepdims=True)


def _reduced(each: jax.Array, over_classes: str) -> jax.Array:
    """Returns the sum or the mean over the last axis."""
    return each.sum(-1) if over_classes == "sum" else each.mean(-1)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """Returns base ** exponent for a base of 0 or more.

    At 0 the slope of a power below 1 is infinite, and would make the gradient no number: there
    it is 0.
    """
    return jnp.maximum(base, jnp.finfo(base.dtype).tiny) ** exponent


def _as_tuple(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)


def _check_weights(
    name: str, weights: Literal["auto"] | tuple[float, ...] | None
) -> None:
    """Raises UserError for weights that are no factors of a loss."""
    if isinstance(weights, tuple) and not (
        all(0 <= weight < math.inf for weight in weights) and any(weights)
    ):
        raise UserError(
            f"loss.{name} must be 0 or more, and some above 0, not {weights}."
        )


def _check_gamma(name: str, gamma: float) -> None:
    """Raises UserError for an exponent out of range."""
    if not 0 <= gamma < math.inf:
        raise UserError(f"loss.{name} must be 0 or more, not {gamma}.")
