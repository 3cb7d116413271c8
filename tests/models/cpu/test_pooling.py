"""Maximum over windows and its gradient, against loops over every window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.cpu.pooling import adaptive_avg_pool, max_pool

# (height, width, window, stride, padding, ceil), and the size that torch.nn.MaxPool2d gives.
CASES = {
    "2x2": ((6, 4, 2, 2, 0, False), (3, 2)),
    "2x2, odd": ((7, 5, 2, 2, 0, False), (3, 2)),
    "2x2, odd, ceil": ((7, 5, 2, 2, 0, True), (4, 3)),
    "3x3, stride 2": ((9, 8, 3, 2, 0, False), (4, 3)),
    "3x3, stride 2, ceil": ((8, 6, 3, 2, 0, True), (4, 3)),
    "3x3, stride 2, padded": ((8, 7, 3, 2, 1, False), (4, 4)),
    "3x3, stride 1, padded, ceil": ((5, 4, 3, 1, 1, True), (5, 4)),
    "a last window that would begin outside": ((5, 5, 2, 4, 1, True), (2, 2)),
    "stride above window": ((7, 8, 2, 3, 0, False), (2, 3)),
    "one pixel": ((1, 1, 3, 2, 1, False), (1, 1)),
}


def images(height: int, width: int) -> np.ndarray:
    """Few different values, so that many windows have several maxima."""
    random = np.random.default_rng(0)
    return random.integers(-3, 3, size=(2, height, width, 3)).astype(np.float32)


def by_loops(
    x: np.ndarray, window: int, stride: int, padding: int, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maxima, as many as grad has, and the gradient: the first maximum's alone."""
    maxima, back = np.zeros_like(grad), np.zeros_like(x)
    for n, i, j, c in np.ndindex(*grad.shape):
        places = [
            (n, row, column, c)
            for row in range(i * stride - padding, i * stride - padding + window)
            for column in range(j * stride - padding, j * stride - padding + window)
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
        ]
        first = max(places, key=lambda place: x[place])  # the first of equals
        maxima[n, i, j, c] = x[first]
        back[first] += grad[n, i, j, c]
    return maxima, back


@pytest.mark.parametrize("name", CASES)
def test_maxima_and_gradients_are_those_of_loops(name: str) -> None:
    (height, width, window, stride, padding, ceil), size = CASES[name]
    x = images(height, width)
    grad = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    maxima, back = by_loops(x, window, stride, padding, grad)
    found, backward = jax.vjp(
        lambda x: max_pool(x, window, stride, padding=padding, ceil=ceil), x
    )
    assert found.shape == (2, *size, 3)
    np.testing.assert_array_equal(found, maxima)
    (of_x,) = backward(jnp.asarray(grad))
    np.testing.assert_allclose(of_x, back, rtol=0, atol=1e-6)


def test_the_gradient_is_written_out_for_cpus_alone() -> None:
    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: (max_pool(x, 3, 2) ** 2).sum())(x)

    traced = jax.jit(gradient).trace(images(9, 9))
    for platform, expected in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("select_and_scatter") == expected, platform
        assert ("optimization_barrier" in text) == (platform == "cpu")


def test_bfloat16_stays_bfloat16() -> None:
    x = images(8, 8).astype(jnp.bfloat16)
    found, backward = jax.vjp(lambda x: max_pool(x, 2, 2), x)
    assert found.dtype == backward(found)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(("side", "size"), [(13, 6), (4, 7), (7, 7), (5, 1)])
def test_adaptive_windows_are_torchs(side: int, size: int) -> None:
    x = images(side, side + 1)
    expected = np.zeros((2, size, size, 3), np.float32)
    for i in range(size):
        for j in range(size):
            top, bottom = i * side // size, -(-(i + 1) * side // size)
            left, right = j * (side + 1) // size, -(-(j + 1) * (side + 1) // size)
            expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    found = adaptive_avg_pool(jnp.asarray(x), size)
    np.testing.assert_allclose(found, expected, atol=1e-6)
