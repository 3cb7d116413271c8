"""What is measured: sums over images on the device, divided when they are read.

Every image counts once; rows without an image, whose mask is False, never do.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from jaxcls.training.loss import SoftmaxCrossEntropy


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the images of the finite steps of an interval, of what training sees: the
    smoothed loss and the agreement with the strongest target, after augmentation."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Means over the images of a split: cross-entropy without smoothing, and how often the
    label is among the one or five strongest logits."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5: metrics.Average.from_output("top5")  # type: ignore[valid-type]


def train_metrics(
    losses: jax.Array, logits: jax.Array, targets: jax.Array, mask: jax.Array
) -> TrainMetrics:
    """Returns the sums of one training step.

    Args:
      losses: float32 [batch].
      logits: float32 [batch, classes].
      targets: float32 [batch, classes], after augmentation.
      mask: bool [batch], False for rows without an image, and for all of a step that is not
        finite.
    """
    top1 = logits.argmax(-1) == targets.argmax(-1)
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
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    # Not "logits > of_label": a comparison with NaN is False, and NaN must not win.
    before = ~(logits <= of_label) | (
        (logits == of_label) & (classes < labels[:, None])
    )
    rank = jnp.where(jnp.isnan(of_label[:, 0]), logits.shape[-1] + 5, before.sum(-1))
    return EvalMetrics.single_from_model_output(
        loss=SoftmaxCrossEntropy()(logits, targets),
        top1=(rank < 1).astype(jnp.float32),
        top5=(rank < 5).astype(jnp.float32),
        mask=mask,
    )


def compute(collection: Any, prefix: str) -> dict[str, float]:
    """Divides the sums of a collection and names them: {"eval/loss": ...}; NaN where nothing
    was counted."""
    with np.errstate(invalid="ignore"):
        means = collection.compute()
    return {f"{prefix}/{name}": float(value) for name, value in means.items()}
