"""Pixels as one number each, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.kernels import pillow_warp
from jaxcls.augment.kernels.resample import Interpolation
from jaxcls.augment.kernels.tpu import packed_pixels
from jaxcls.augment.kernels.tpu.packed_pixels import move_packed, roll
from tests.augment.kernels.test_pillow_warp import KINDS, magnitudes, run
from tests.augment.kernels.tpu.both_ways import assert_moved_alike


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
    lines = np.moveaxis(values, axis, -1)
    found = np.moveaxis(np.asarray(rolled), axis, -1)
    for i in range(3):
        for j in range(31):
            np.testing.assert_array_equal(
                found[i, j], np.roll(lines[i, j], -shift[i, j])
            )


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9])
def test_both_ways_to_shift_rows_are_the_same(width: int) -> None:
    shift = np.arange(-20, 21)[None] * np.array([[1], [-1], [10**6]])
    images = np.random.default_rng(0).integers(0, 256, (3, 41, width, 2))
    images = images.astype(np.float32)
    rows = shift[:, :, None] + np.arange(width)
    inside = (rows >= 0) & (rows < width)
    expected = np.take_along_axis(images, (rows % width)[..., None], axis=2)
    assert inside[:2].any(axis=2).sum() == 2 * (2 * width - 1)
    for way in (pillow_warp.shift_rows, packed_pixels.shift_rows):
        shifted = run(way, images, shift)
        np.testing.assert_array_equal(shifted[inside], expected[inside])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (5, 1)])
def test_a_shear_by_selects_is_that_by_gather(
    height: int, width: int, kind: Interpolation
) -> None:
    """At the borders too, of which the selects know nothing."""
    factors = np.concatenate([np.linspace(-2, 2, 81), magnitudes("shear_x", 0, 0)])
    factors = factors.astype(np.float32)
    images = np.random.default_rng(0).integers(0, 256, (len(factors), height, width, 3))
    images = images.astype(np.float32)
    moves = (pillow_warp.shear_x, pillow_warp.shear_y)
    part, for_tpus = "_shift_rows", packed_pixels.shift_rows
    assert_moved_alike(moves, images, factors, kind, part, for_tpus)
