"""What is measured: sums over images on the device, divided when they are read.

Every image counts once; rows without an image, whose mask is False, never do.
"""

import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.losses import MultiLabelBinaryCrossEntropy, SoftmaxCrossEntropy, as_targets


def metric_names(multi_label: bool) -> list[str]:
    """Returns the names of the metrics that an evaluation of the raw weights logs. Those of the
    averaged weights end in "_ema". All lie in 0..1, and higher is better, except for the loss.
    `multi_label`: whether an image may have any number of labels."""
    if multi_label:
        return ["eval/top1", "eval/mAP", "eval/loss"]
    return ["eval/top1", "eval/top5", "eval/balanced_top1", "eval/loss"]


@flax.struct.dataclass
class Mean:
    """A mean over images: the sum of their values, a scalar of float32 (float64 where the values
    are), and their number, int32."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> "Mean":
        """Adds up values [batch], as float32 or wider, where mask [batch] is True."""
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        total = jnp.where(mask, values, 0).sum()
        return cls(total, jnp.where(mask, 1, 0).sum())

    def compute(self) -> Any:
        return self.total / self.count


@flax.struct.dataclass
class MeanRecall:
    """The share of each class's images that are right, averaged over the classes that occur.
    Holds the number of right images and of all images of each class, both int32 [classes]."""

    right: jax.Array
    images: jax.Array

    def compute(self) -> Any:
        """Returns the mean of the recalls, in float64; NaN where nothing was counted."""
        right, images = np.asarray(self.right), np.asarray(self.images)
        occurs = images > 0
        return np.sum(right[occurs] / images[occurs]) / np.sum(occurs)


@flax.struct.dataclass
class TrainMetrics:
    """Means over the images of an interval's finite steps, after augmentation: the smoothed loss,
    and the agreement with the strongest target (of any number of labels: with one of them)."""

    # How often sums were merged. Nothing reads it, but every checkpoint holds it.
    _reduction_counter: dict[str, jax.Array] = flax.struct.field(
        default_factory=lambda: {"value": jnp.int32(1)}, kw_only=True
    )
    loss: Mean
    top1: Mean

    @classmethod
    def empty(cls) -> "TrainMetrics":
        return cls(*(Mean(jnp.float32(0), jnp.int32(0)) for _ in range(2)))

    def merge(self, other: "TrainMetrics") -> "TrainMetrics":
        return jax.tree.map(operator.add, self, other)


@flax.struct.dataclass
class EvalMetrics:
    """Means over the images of a split.

    Attributes:
      loss: cross-entropy without smoothing; of any number of labels the binary one, averaged
        over the classes.
      top1: how often the strongest logit is that of the label, or of one of the labels.
      top5: how often the label is among the five strongest; None of any number of labels.
      balanced_top1: top1 of the images of each class, averaged over the classes (the balanced
        accuracy); None of any number of labels.
    """

    loss: Mean
    top1: Mean
    top5: Mean | None = None
    balanced_top1: MeanRecall | None = None


@flax.struct.dataclass
class EvalOutput:
    """What the eval step gives for one batch: sums over its images and, for images of any number
    of labels, the logits, float32 [batch, classes]: their average precision takes all of a
    split at once."""

    sums: EvalMetrics
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
      mask: bool [batch], False for rows without an image; all False in a bad step.
      multi_label: whether an image may have any number of labels.
    """
    strongest = logits.argmax(-1)
    is_among = _at(targets, strongest) > 0
    top1 = is_among if multi_label else strongest == targets.argmax(-1)
    return TrainMetrics(Mean.of(losses, mask), Mean.of(top1, mask))


def eval_output(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, multi_label: bool
) -> EvalOutput:
    """Returns what is measured of one batch of an evaluation.

    An image counts as wrong where the logit of its label is NaN or, with any number of labels,
    where any logit is.

    Args:
      logits: float32 [batch, classes].
      labels: int32 [batch]; with any number of labels ones and zeros [batch, classes].
      mask: bool [batch], False for rows without an image.
      multi_label: whether an image may have any number of labels.
    """
    targets = as_targets(labels, logits.shape[-1])
    if multi_label:
        strongest = logits.argmax(-1)  # the first that is NaN, if any is
        right = (_at(labels, strongest) > 0) & ~jnp.isnan(_at(logits, strongest))
        loss = Mean.of(MultiLabelBinaryCrossEntropy()(logits, targets), mask)
        return EvalOutput(EvalMetrics(loss, Mean.of(right, mask)), logits)
    rank = _rank(logits, labels)
    counted = (targets > 0) & mask[:, None]
    recall = MeanRecall((counted & (rank < 1)[:, None]).sum(0), counted.sum(0))
    loss = Mean.of(SoftmaxCrossEntropy()(logits, targets), mask)
    top1, top5 = Mean.of(rank < 1, mask), Mean.of(rank < 5, mask)
    return EvalOutput(EvalMetrics(loss, top1, top5, recall))


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the number of classes with a stronger logit than the label's, or an equal one
    that comes first: what argmax and a stable sort would say. Where the label's logit is NaN
    it is five more than there are classes."""
    classes = jnp.arange(logits.shape[-1])
    own = _at(logits, labels)[:, None]
    # Not "logits > own": a comparison with NaN is False, and NaN must not win.
    before = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    return jnp.where(jnp.isnan(own[:, 0]), logits.shape[-1] + 5, before.sum(-1))


def _at(values: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the value of one class in each row: [batch, classes], int [batch] -> [batch]."""
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the average precision of each class's logits over all images of a split, averaged
    over the classes that occur: scikit-learn's, in float64, 0..1. NaN where no class occurs,
    or a logit is not finite.

    Args:
      logits: float [images, classes].
      labels: ones and zeros [images, classes].
    """
    from sklearn.metrics import average_precision_score  # slow to import

    occurs = labels.any(axis=0)
    if not occurs.any() or not np.isfinite(logits).all():
        return float("nan")
    scores = np.asarray(logits, np.float64)
    return float(average_precision_score(labels[:, occurs], scores[:, occurs]))


def compute(collection: Any, prefix: str) -> dict[str, float]:
    """Divides sums and names them: {"eval/loss": ...}; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        return {
            f"{prefix}/{name}": float(sums.compute())
            for name, sums in vars(collection).items()
            if isinstance(sums, Mean | MeanRecall)
        }
