"""What is measured: sums over images on the device, divided when they are read.

Every image counts once; rows without an image, whose mask is False, never do.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from jaxcls.losses import (
    MultiLabelBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    as_targets,
)


def metric_names(multi_label: bool) -> list[str]:
    """Returns the names under which an evaluation logs what it measures, the raw weights'; of
    the averaged weights' each ends in "_ema". All lie in 0..1 and are better the higher they
    are, but for the loss.

    Args:
      multi_label: whether an image may have any number of labels.
    """
    if multi_label:
        return ["eval/top1", "eval/mAP", "eval/loss"]
    return ["eval/top1", "eval/top5", "eval/balanced_top1", "eval/loss"]


@flax.struct.dataclass
class MeanRecall(metrics.Metric):
    """The share of a class's images that are right, averaged over the classes that occur.

    Attributes:
      right: right images of each class, int32 [classes] (0 of all as a scalar, before there is
        any).
      images: images of each class, likewise.
    """

    right: jax.Array
    images: jax.Array

    @classmethod
    def empty(cls) -> "MeanRecall":
        return cls(jnp.int32(0), jnp.int32(0))

    @classmethod
    def from_model_output(
        cls, *, is_class: jax.Array, top1: jax.Array, mask: jax.Array, **_: Any
    ) -> "MeanRecall":
        """Counts a batch.

        Args:
          is_class: whether an image is of a class, bool [batch, classes].
          top1: 1 where it is right, else 0, [batch].
          mask: bool [batch], False for rows without an image.
        """
        counted = is_class & mask[:, None]
        return cls((counted & (top1 > 0)[:, None]).sum(0), counted.sum(0))

    def merge(self, other: "MeanRecall") -> "MeanRecall":
        return MeanRecall(self.right + other.right, self.images + other.images)

    def compute(self) -> Any:
        """Returns the mean of the recalls, in float64; NaN where nothing was counted."""
        right, images = np.atleast_1d(self.right), np.atleast_1d(self.images)
        occurs = images > 0
        return np.sum(right[occurs] / images[occurs]) / np.sum(occurs)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the images of the finite steps of an interval, of what training sees: the
    smoothed loss and the agreement with the strongest target (of any number of labels: with
    one of them), after augmentation."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Means over the images of a split: cross-entropy without smoothing, and how often the
    label is among the one or five strongest logits; the first of these also as the mean over
    the classes of the share of a class's images, its recall (the balanced accuracy)."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5: metrics.Average.from_output("top5")  # type: ignore[valid-type]
    balanced_top1: MeanRecall


@flax.struct.dataclass
class MultiLabelEvalMetrics(metrics.Collection):
    """Means over the images of a split, each of any number of classes: binary cross-entropy
    without smoothing, the mean over the classes, and how often the strongest logit is that of
    one of the labels. An image without labels counts as wrong."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]


@flax.struct.dataclass
class EvalOutput:
    """What the eval step gives for one batch.

    Attributes:
      sums: over its images.
      logits: float32 [batch, classes] for images of any number of labels, whose average
        precision takes all of a split at once; None for others.
    """

    sums: EvalMetrics | MultiLabelEvalMetrics
    logits: jax.Array | None = None


def train_metrics(
    losses: jax.Array,
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    multi_label: bool = False,
) -> TrainMetrics:
    """Returns the sums of one training step.

    Args:
      losses: float32 [batch].
      logits: float32 [batch, classes].
      targets: float32 [batch, classes], after augmentation.
      mask: bool [batch], False for rows without an image, and for all of a step that is not
        finite.
      multi_label: whether an image may have any number of labels.
    """
    strongest = logits.argmax(-1)
    if multi_label:
        top1 = _at(targets, strongest) > 0
    else:
        top1 = strongest == targets.argmax(-1)
    return TrainMetrics.single_from_model_output(
        loss=losses,
        top1=top1.astype(jnp.float32),
        mask=mask,
    )


def eval_metrics(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalMetrics:
    """Returns the sums of one batch of an evaluation.

    A label's rank is the number of classes with a stronger logit, or an equal one that comes
    first: what argmax and a stable sort would say. Where the label's logit is NaN the image
    counts as wrong.

    Args:
      logits: float32 [batch, classes].
      labels: int32 [batch].
      mask: bool [batch], False for rows without an image.
    """
    classes = jnp.arange(logits.shape[-1])
    targets = as_targets(labels, logits.shape[-1])
    of_label = _at(logits, labels)[:, None]
    # Not "logits > of_label": a comparison with NaN is False, and NaN must not win.
    before = ~(logits <= of_label) | (
        (logits == of_label) & (classes < labels[:, None])
    )
    rank = jnp.where(jnp.isnan(of_label[:, 0]), logits.shape[-1] + 5, before.sum(-1))
    return EvalMetrics.single_from_model_output(
        loss=SoftmaxCrossEntropy()(logits, targets),
        top1=(rank < 1).astype(jnp.float32),
        top5=(rank < 5).astype(jnp.float32),
        is_class=targets > 0,
        mask=mask,
    )


def multi_label_eval_metrics(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> MultiLabelEvalMetrics:
    """Returns the sums of one batch of an evaluation with any number of labels an image.

    Args:
      logits: float32 [batch, classes].
      labels: ones and zeros [batch, classes].
      mask: bool [batch], False for rows without an image.
    """
    strongest = logits.argmax(-1)  # the first that is NaN, if any is
    right = (_at(labels, strongest) > 0) & ~jnp.isnan(_at(logits, strongest))
    targets = as_targets(labels, logits.shape[-1])
    return MultiLabelEvalMetrics.single_from_model_output(
        loss=MultiLabelBinaryCrossEntropy()(logits, targets),
        top1=right.astype(jnp.float32),
        mask=mask,
    )


def eval_output(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, multi_label: bool
) -> EvalOutput:
    """Returns what is measured of one batch, by the kind of its labels; arguments as those of
    the two functions above."""
    if multi_label:
        return EvalOutput(multi_label_eval_metrics(logits, labels, mask), logits)
    return EvalOutput(eval_metrics(logits, labels, mask))


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the average precision of each class's logits over all images of a split, averaged
    over the classes that occur: scikit-learn's, in float64, 0..1.

    NaN where no class occurs, or a logit is not finite.

    Args:
      logits: float [images, classes].
      labels: ones and zeros [images, classes].
    """
    from sklearn.metrics import average_precision_score  # slow to import

    occurs = labels.any(axis=0)
    if not occurs.any() or not np.isfinite(logits).all():
        return float("nan")
    scores = np.asarray(logits, np.float64)
    each = [
        average_precision_score(labels[:, index], scores[:, index])
        for index in np.flatnonzero(occurs)
    ]
    return float(np.mean(each))


def compute(collection: Any, prefix: str) -> dict[str, float]:
    """Divides the sums of a collection and names them: {"eval/loss": ...}; NaN where nothing
    was counted."""
    with np.errstate(invalid="ignore"):
        means = collection.compute()
    return {f"{prefix}/{name}": float(value) for name, value in means.items()}


def _at(values: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the value of one class in each row: [batch, classes], int [batch] -> [batch]."""
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]
