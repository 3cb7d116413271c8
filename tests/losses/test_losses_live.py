"""The losses and their gradients beside PyTorch's and timm's, where they are installed.

pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31
python -m pytest -m torch tests/losses/test_losses_live.py
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.losses import (
    BinaryCrossEntropy,
    MultiLabelAsymmetric,
    MultiLabelBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    distillation_loss,
)

torch = pytest.importorskip("torch")
pytest.importorskip(
    "tests.references.torch_models"
)  # without it timm cannot be imported
timm_loss = pytest.importorskip("timm.loss")

pytestmark = pytest.mark.torch

WEIGHTS = (0.5, 1.0, 2.5, 0.1, 1.0, 3.0)
ROWS, CLASSES = 20, 6


def assert_same(
    loss: Callable[[Any, Any], Any],
    reference: Callable[[Any, Any], Any],
    targets: np.ndarray,
    given: np.ndarray | None = None,
) -> None:
    """Compares the mean over a batch, and its gradient.

    Args:
      loss: (logits, targets) -> one number an image.
      reference: (logits, targets) -> their mean, in PyTorch.
      targets: float32 [ROWS, CLASSES].
      given: the targets as the reference takes them, if otherwise.
    """
    logits = np.float32(np.random.default_rng(0).normal(size=(ROWS, CLASSES)) * 4)
    theirs = torch.from_numpy(np.float64(logits)).requires_grad_()
    expected = reference(theirs, torch.from_numpy(targets if given is None else given))
    expected.backward()
    found, slope = jax.value_and_grad(lambda x: loss(x, targets).mean())(logits)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    scale = np.abs(theirs.grad.numpy()).max()
    np.testing.assert_allclose(slope, theirs.grad.numpy(), atol=1e-5 * scale)


def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, CLASSES, ROWS)


def one_hot() -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels()]


def mixed() -> np.ndarray:
    share = np.float32(np.random.default_rng(2).random((ROWS, 1)))
    return share * one_hot() + (1 - share) * one_hot()[::-1]


def multi_hot() -> np.ndarray:
    return np.float32(np.random.default_rng(3).random((ROWS, CLASSES)) < 0.3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_softmax_cross_entropy(
    smoothing: float, weights: tuple[float, ...] | None
) -> None:
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing, class_weights=weights)
    reference = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        label_smoothing=smoothing,
        reduction="sum",  # its mean would divide by the weights of the labels
    )

    def mean(logits: Any, given: Any) -> Any:
        return reference(logits, given) / ROWS

    assert_same(loss, mean, one_hot(), labels())
    assert_same(loss, mean, mixed())


@pytest.mark.parametrize("over_classes", ["mean", "sum"])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy(over_classes: Any, threshold: float | None) -> None:
    loss = BinaryCrossEntropy(
        label_smoothing=0.1, target_threshold=threshold, over_classes=over_classes
    )
    reference = timm_loss.BinaryCrossEntropy(
        smoothing=0.1,
        target_threshold=threshold,
        sum_classes=over_classes == "sum",
    )
    # timm smooths labels here, and mixed ones where it mixes them.
    assert_same(loss, reference, one_hot(), labels())
    smoothed = 0.9 * np.float64(mixed()) + 0.1 / CLASSES
    assert_same(loss, reference, mixed(), smoothed)


@pytest.mark.parametrize("over_classes", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multi_label_binary_cross_entropy(over_classes: Any, smoothing: float) -> None:
    loss = MultiLabelBinaryCrossEntropy(
        label_smoothing=smoothing, positive_weights=WEIGHTS, over_classes=over_classes
    )
    reference = timm_loss.BinaryCrossEntropy(
        smoothing=smoothing,
        smooth_dense=True,
        sum_classes=over_classes == "sum",
        pos_weight=torch.tensor(WEIGHTS, dtype=torch.float64),
    )
    assert_same(loss, reference, multi_hot(), np.float64(multi_hot()))
    if smoothing == 0 and over_classes == "mean":
        plain = torch.nn.BCEWithLogitsLoss(
            pos_weight=torch.tensor(WEIGHTS, dtype=torch.float64)
        )
        assert_same(loss, plain, multi_hot(), np.float64(multi_hot()))


@pytest.mark.parametrize(
    "loss",
    [
        MultiLabelAsymmetric(),
        MultiLabelAsymmetric(gamma_positive=1.0, gamma_negative=2.5, margin=0.3),
        MultiLabelAsymmetric(gamma_positive=1.0, margin=0.0, positive_weights=WEIGHTS),
    ],
)
def test_multi_label_asymmetric(loss: MultiLabelAsymmetric) -> None:
    weights = loss.positive_weights
    reference = timm_loss.AsymmetricLossMultiLabel(
        gamma_pos=loss.gamma_positive,
        gamma_neg=loss.gamma_negative,
        clip=loss.margin,
        reduction="mean",
        pos_weight=None if weights is None else torch.tensor(weights),
    )
    assert_same(loss, reference, multi_hot())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation(temperature: float) -> None:
    teacher = np.float32(np.random.default_rng(4).normal(size=(ROWS, CLASSES)) * 3)

    def divergence(logits: Any, theirs: Any) -> Any:
        return temperature**2 * torch.nn.functional.kl_div(
            torch.log_softmax(logits / temperature, -1),
            torch.log_softmax(theirs / temperature, -1),
            reduction="batchmean",
            log_target=True,
        )

    def loss(logits: Any, theirs: Any) -> Any:
        return distillation_loss(logits, theirs, temperature)

    assert_same(loss, divergence, teacher, np.float64(teacher))
