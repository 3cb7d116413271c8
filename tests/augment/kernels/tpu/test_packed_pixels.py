"""Pixels as one number each, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.kernels.tpu.packed_pixels import move_packed, roll


@pytest.mark.parametrize("channels", range(1, 8))
def test_all_channels_of_a_pixel_move_together(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels))
    images[0, 0] = 255
    images[0, 1] = 0

    def move(packed: jax.Array) -> jax.Array:
        assert packed.dtype == jnp.int32
        # Packed pixels are exact in floats too.
        return packed.astype(jnp.float32).astype(jnp.int32)[:, ::-1, 1:]

    moved = jax.jit(lambda images: move_packed(move, images))(images.astype(np.float32))
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, images[:, ::-1, 1:])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("axis", [1, 2])
def test_lines_are_rolled_each_by_its_own_shift(axis: int, size: int) -> None:
    shape = (3, 31, 31)
    values = np.random.default_rng(0).integers(0, 1 << 24, shape)
    values = np.take(values, range(size), axis)
    shift = np.arange(-15, 16) * np.array([[1], [-1], [10**6]])
    rolled = jax.jit(roll, static_argnums=2)(values, shift, axis)
    lines, found = np.moveaxis(values, axis, -1), np.moveaxis(rolled, axis, -1)
    for i in range(3):
        for j in range(31):
            np.testing.assert_array_equal(
                found[i, j], np.roll(lines[i, j], -shift[i, j])
            )
