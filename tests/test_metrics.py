"""Sums over images against NumPy, one image after the other, and scikit-learn."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from jaxcls.metrics import (
    EvalMetrics,
    TrainMetrics,
    compute,
    eval_output,
    mean_average_precision,
    metric_names,
    train_metrics,
)


@jax.jit
def eval_metrics(logits: Any, labels: Any, mask: Any) -> EvalMetrics:
    return eval_output(logits, labels, mask, multi_label=False).sums


@jax.jit
def multi_label_eval_metrics(logits: Any, labels: Any, mask: Any) -> EvalMetrics:
    return eval_output(logits, labels, mask, multi_label=True).sums


def reference(
    logits: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    losses, ranks = [], []
    for row, label in zip(np.float64(logits[mask]), labels[mask], strict=True):
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
        # Strongest first; of equals the first class wins, as for argmax.
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        ranks.append(order.index(label))
    right = np.array(ranks) < 1
    recalls = [right[labels[mask] == label].mean() for label in set(labels[mask])]
    return {
        "eval/loss": float(np.mean(losses)),
        "eval/top1": float(np.mean(right)),
        "eval/top5": float(np.mean(np.array(ranks) < 5)),
        "eval/balanced_top1": float(np.mean(recalls)),
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
    assert found.keys() == set(metric_names(multi_label=False))
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
    assert not nothing.balanced_top1.images.any()
    assert np.isnan(list(compute(nothing, "eval").values())).all()


def test_merged_batches_weigh_images_and_not_batches() -> None:
    logits, labels, mask = batch(90, 7)
    parts = []
    for start, stop in ((0, 10), (10, 80), (80, 90)):
        rows = slice(start, stop)
        parts.append(eval_metrics(logits[rows], labels[rows], mask[rows]))
    total = jax.tree.map(lambda *sums: sum(sums), *parts)
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


# Classes of very different size


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    # Class 3 never occurs: it has no recall, though it is predicted.
    labels = np.int32(random.choice(6, 400, p=[0.7, 0.2, 0.05, 0, 0.03, 0.02]))
    logits = np.float32(random.normal(size=(400, 6)))
    logits[np.arange(400), labels] += random.random(400) * 3
    found = compute(eval_metrics(logits, labels, np.ones(400, bool)), "eval")
    with pytest.warns(UserWarning, match="not in y_true"):
        expected = balanced_accuracy_score(labels, logits.argmax(-1))
    assert found["eval/balanced_top1"] == pytest.approx(expected, rel=1e-12)
    assert abs(expected - found["eval/top1"]) > 0.01


def test_counts_of_classes_are_exact_beyond_what_float32_can_count() -> None:
    sums = eval_metrics(
        np.float32([[1, 0], [0, 1], [1, 0]]), np.int32([0, 0, 1]), np.ones(3, bool)
    )
    recall = sums.balanced_top1
    assert recall.right.dtype == recall.images.dtype == jnp.int32
    assert recall.right.tolist() == [1, 0] and recall.images.tolist() == [2, 1]
    many = jax.tree.map(lambda counts: counts + 2**24, recall)
    merged = jax.tree.map(operator.add, many, recall)
    assert merged.right.tolist() == [2**24 + 2, 2**24]
    assert merged.images.tolist() == [2**24 + 4, 2**24 + 2]


# Any number of labels


def multi_hot(size: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, _, mask = batch(size, classes, seed=4)
    labels = np.uint8(np.random.default_rng(5).random((size, classes)) < 0.3)
    labels[:3] = [[0], [1], [0]]
    return logits, labels, mask


def test_multi_label_metrics_with_ties_and_masks() -> None:
    logits, labels, mask = multi_hot(300, 7)
    logits[~mask] = np.nan
    losses, right = [], []
    for row, has in zip(np.float64(logits[mask]), labels[mask], strict=True):
        losses.append(np.where(has, np.log1p(np.exp(-row)), np.log1p(np.exp(row))))
        right.append(has[row.argmax()] == 1)
    found = compute(multi_label_eval_metrics(logits, labels, mask), "eval")
    expected = {"eval/loss": np.mean(losses), "eval/top1": np.mean(right)}
    assert found == pytest.approx(expected, rel=1e-5)
    assert {*found, "eval/mAP"} == set(metric_names(multi_label=True))


def test_a_logit_that_is_not_a_number_is_no_label() -> None:
    logits = np.float32([[np.nan, 1, 0], [0, np.nan, 1], [2, 1, 0]])
    labels = np.uint8([[1, 1, 1], [1, 0, 1], [1, 0, 0]])
    sums = multi_label_eval_metrics(logits, labels, np.ones(3, bool))
    assert (sums.top1.total, sums.top1.count) == (1, 3)


def test_logits_are_given_where_a_metric_needs_them() -> None:
    logits, labels, mask = multi_hot(20, 7)
    output = jax.jit(functools.partial(eval_output, multi_label=True))(
        logits, labels, mask
    )
    np.testing.assert_array_equal(output.logits, logits)
    assert output.sums == multi_label_eval_metrics(logits, labels, mask)
    single = jax.jit(functools.partial(eval_output, multi_label=False))(
        logits, np.int32(labels.argmax(-1)), mask
    )
    assert single.logits is None and single.sums.top5 is not None


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean precision at the rank of each image with the label; scores all differ."""
    by_score = labels[np.argsort(-scores)]
    precision = np.cumsum(by_score) / np.arange(1, len(by_score) + 1)
    return precision[by_score == 1].mean()


def test_mean_average_precision_by_its_definition() -> None:
    random = np.random.default_rng(6)
    labels = np.uint8(random.random((200, 5)) < 0.2)
    labels[:, 3] = 0  # no image has it: there is nothing to rank
    logits = np.float32(random.normal(size=(200, 5)) + labels)
    each = [average_precision(logits[:, k], labels[:, k]) for k in (0, 1, 2, 4)]
    found = mean_average_precision(logits, labels)
    assert found == pytest.approx(np.mean(each), rel=1e-12)
    assert mean_average_precision(labels * 2.0 - 1, labels) == 1


def test_mean_average_precision_with_ties_is_that_of_scikit_learn() -> None:
    logits, labels, _ = multi_hot(300, 7)
    found = mean_average_precision(logits, labels)
    expected = average_precision_score(labels, np.float64(logits), average="macro")
    assert found == pytest.approx(expected, rel=1e-12)


def test_mean_average_precision_of_nothing_is_not_a_number() -> None:
    logits, labels, _ = multi_hot(20, 7)
    assert np.isnan(mean_average_precision(logits, np.zeros_like(labels)))
    logits[4, 2] = np.nan
    assert np.isnan(mean_average_precision(logits, labels))


def test_train_metrics_of_any_number_of_labels() -> None:
    logits = np.float32([[3, 1, 2], [1, 2, 3], [3, 2, 1], [1, 3, 2], [9, 0, 0]])
    # Of a mixed image, labels of either are right; one that has none is wrong.
    targets = np.float32([[0.3, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    mask = np.array([True, True, True, True, False])
    found = jax.jit(functools.partial(train_metrics, multi_label=True))(
        np.ones(5, np.float32), logits, targets, mask
    )
    assert compute(found, "train") == {"train/loss": 1, "train/top1": 0.5}
