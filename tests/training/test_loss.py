"""The loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import UserError
from jaxcls.training.loss import SoftmaxCrossEntropy


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = np.float64(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(targets * log_probabilities).sum(-1)


def soft_batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = np.float32(random.normal(size=(20, 6)) * 4)
    targets = random.dirichlet(np.full(6, 0.5), size=20)
    targets[:5] = np.eye(6)[:5]  # labels as they come without mixing
    return logits, np.float32(targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_of_soft_targets(smoothing: float) -> None:
    logits, targets = soft_batch()
    found = jax.jit(SoftmaxCrossEntropy(label_smoothing=smoothing).__call__)(
        logits, targets
    )
    assert found.shape == (20,)
    assert found.dtype == jnp.float32
    # Szegedy et al. 2015, section 7: smoothed once, also where targets are soft already.
    smoothed = (1 - smoothing) * targets + smoothing / 6
    np.testing.assert_allclose(found, cross_entropy(logits, smoothed), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_a_target_that_is_partly_missing_counts_in_part(smoothing: float) -> None:
    logits, targets = soft_batch()
    share = np.float32(np.linspace(0, 1, 20))[:, None]
    loss = jax.jit(SoftmaxCrossEntropy(label_smoothing=smoothing).__call__)
    found = loss(logits, share * targets)
    np.testing.assert_allclose(found, share[:, 0] * loss(logits, targets), rtol=1e-5)
    assert found[0] == 0


def test_class_weights_are_factors_of_the_targets() -> None:
    logits, targets = soft_batch()
    weights = (0.0, 1.0, 2.5, 0.1, 1.0, 3.0)
    loss = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=weights)
    smoothed = 0.9 * targets + 0.1 / 6
    np.testing.assert_allclose(
        jax.jit(loss.__call__)(logits, targets),
        cross_entropy(logits, smoothed * weights),
        rtol=1e-5,
    )


def test_automatic_weights_even_out_the_classes() -> None:
    labels = np.repeat([0, 1, 3], [10, 30, 60])
    loss = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights="auto")
    found = loss.weighted(labels, 5)
    weights = np.array(found.class_weights)
    assert found.label_smoothing == 0.1 and loss.class_weights == "auto"
    assert weights[labels].mean() == pytest.approx(1)
    # Each class that there is has the same part of the sum; the others have none.
    parts = weights * [10, 30, 0, 60, 0]
    np.testing.assert_allclose(parts, [100 / 3, 100 / 3, 0, 100 / 3, 0])
    found.validate()


@pytest.mark.parametrize(
    "weights", [(1.0, -0.1), (1.0, np.nan), (1.0, np.inf), (0.0, 0.0), ()]
)
def test_impossible_class_weights_are_named(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"loss\.class_weights must be 0 or more"):
        SoftmaxCrossEntropy(class_weights=weights).validate()
    SoftmaxCrossEntropy(class_weights=(0.0, 1.0)).validate()
    SoftmaxCrossEntropy(class_weights="auto").validate()


def test_the_gradient_is_probability_minus_target() -> None:
    logits, targets = soft_batch()
    loss = SoftmaxCrossEntropy(label_smoothing=0.2)
    found = jax.grad(lambda logits: loss(logits, targets).sum())(jnp.asarray(logits))
    exponentials = np.exp(np.float64(logits))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        found, probabilities - (0.8 * targets + 0.2 / 6), rtol=1e-4, atol=1e-6
    )


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.array([[1e4, -1e4, 0.0]])
    found = SoftmaxCrossEntropy()(logits, jnp.eye(3)[1:2])
    np.testing.assert_allclose(found, [2e4], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_smoothing_out_of_range_is_named(smoothing: float) -> None:
    with pytest.raises(UserError) as error:
        SoftmaxCrossEntropy(label_smoothing=smoothing).validate()
    assert "loss.label_smoothing must lie in 0..1" in str(error.value)
    assert str(smoothing) in str(error.value)
    SoftmaxCrossEntropy(label_smoothing=0.0).validate()
    SoftmaxCrossEntropy(label_smoothing=0.999).validate()
