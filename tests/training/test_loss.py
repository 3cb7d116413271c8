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
