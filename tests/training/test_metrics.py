"""Sums over images against NumPy, one image after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.training.metrics import (
    EvalMetrics,
    TrainMetrics,
    compute,
    train_metrics,
)
from jaxcls.training.metrics import eval_metrics as eager_eval_metrics

eval_metrics = jax.jit(eager_eval_metrics)


def reference(
    logits: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    losses, ranks = [], []
    for row, label in zip(np.float64(logits[mask]), labels[mask], strict=True):
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
        # Strongest first; of equals the first class wins, as for argmax.
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        ranks.append(order.index(label))
    return {
        "eval/loss": float(np.mean(losses)),
        "eval/top1": float(np.mean(np.array(ranks) < 1)),
        "eval/top5": float(np.mean(np.array(ranks) < 5)),
    }


def batch(
    size: int, classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    # Whole numbers of a small range: most rows hold ties.
    logits = np.float32(random.integers(-2, 3, (size, classes)))
    labels = random.integers(0, classes, size, dtype=np.int32)
    return logits, labels, random.random(size) < 0.7


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 40])
def test_eval_metrics_with_ties_and_masks(classes: int) -> None:
    logits, labels, mask = batch(300, classes)
    found = compute(eval_metrics(logits, labels, mask), "eval")
    assert found == pytest.approx(reference(logits, labels, mask), rel=1e-5)
    if classes > 5:
        assert 0 < found["eval/top1"] < found["eval/top5"] < 1
    else:
        # The label cannot miss five of at most five classes.
        assert found["eval/top5"] == 1


def test_equal_logits_are_no_free_hit() -> None:
    """A network that says nothing scores like argmax: it names class 0."""
    labels = jnp.arange(10, dtype=jnp.int32)
    found = compute(
        eval_metrics(jnp.zeros((10, 10)), labels, jnp.ones(10, bool)), "eval"
    )
    assert found["eval/top1"] == pytest.approx(0.1)
    assert found["eval/top5"] == pytest.approx(0.5)
    assert found["eval/loss"] == pytest.approx(np.log(10))


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_a_label_that_is_not_a_number_is_wrong(classes: int) -> None:
    """Even where five guesses name every class; images beside it count as before."""
    logits = np.zeros((4, classes), np.float32)
    logits[:, 0] = 1
    logits[0, 0] = np.nan  # the label's
    logits[1] = np.nan  # all
    logits[2, 1] = np.nan  # another class's: argmax names that one
    labels = np.zeros(4, np.int32)
    for image, (top1, top5) in enumerate([(0, 0), (0, 0), (0, 1), (1, 1)]):
        sums = eval_metrics(logits, labels, np.arange(4) == image)
        assert (sums.top1.total, sums.top5.total) == (top1, top5), image
        assert np.isnan(compute(sums, "eval")["eval/loss"]) == (image < 3)


def test_padding_never_counts() -> None:
    logits, labels, mask = batch(50, 7)
    padded = logits.copy()
    padded[~mask] = np.nan  # even where it is not a number
    found = eval_metrics(padded, labels, mask)
    assert compute(found, "eval") == pytest.approx(
        reference(logits, labels, mask), rel=1e-5
    )
    assert found.top1.count == mask.sum()
    nothing = eval_metrics(padded, labels, np.zeros(50, bool))
    for average in (nothing.loss, nothing.top1, nothing.top5):
        assert (average.total, average.count) == (0, 0)


def test_merged_batches_weigh_images_and_not_batches() -> None:
    logits, labels, mask = batch(90, 7)
    total = EvalMetrics.empty()
    for start, stop in ((0, 10), (10, 80), (80, 90)):
        rows = slice(start, stop)
        total = total.merge(eval_metrics(logits[rows], labels[rows], mask[rows]))
    assert compute(total, "eval") == pytest.approx(
        reference(logits, labels, mask), rel=1e-5
    )


def test_train_metrics_agree_with_the_strongest_target() -> None:
    random = np.random.default_rng(1)
    logits = np.float32(random.normal(size=(64, 5)))
    targets = np.float32(random.dirichlet(np.ones(5), size=64))
    losses = np.float32(random.random(64))
    mask = random.random(64) < 0.8
    losses[~mask] = np.nan  # what has no image never counts
    total = TrainMetrics.empty()
    for rows in (slice(0, 40), slice(40, 64)):
        total = total.merge(
            train_metrics(losses[rows], logits[rows], targets[rows], mask[rows])
        )
    agree = [
        row.argmax() == target.argmax()
        for row, target in zip(logits, targets, strict=True)
    ]
    assert compute(total, "train") == pytest.approx(
        {
            "train/loss": losses[mask].mean(),
            "train/top1": np.mean(np.array(agree)[mask]),
        },
        rel=1e-5,
    )


def test_a_step_that_is_not_finite_adds_nothing() -> None:
    broken = np.full(8, np.nan, np.float32)
    sums = jax.jit(train_metrics)(
        broken,
        np.zeros((8, 3), np.float32),
        np.eye(3, dtype=np.float32)[[0] * 8],
        np.zeros(8, bool),
    )
    for average in (sums.loss, sums.top1):
        assert (average.total, average.count) == (0, 0)
