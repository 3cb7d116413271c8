"""What products pick and count, against NumPy and the formulations for other platforms."""

import jax
import numpy as np

from jaxcls.augment.kernels import pillow_color, pillow_warp
from jaxcls.augment.kernels.tpu import products
from tests.augment.kernels.test_pillow_warp import run
from tests.augment.kernels.tpu.both_ways import assert_moved_alike


def test_both_ways_to_pick_pixels_are_the_same() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 9, 7, 3)).astype(np.float32)
    columns = list(random.integers(0, 7, (2, 3, 5, 4)))
    rows = list(random.integers(0, 9, (3, 3, 5, 4)))
    image = np.arange(3)[:, None, None]
    expected = [[images[image, row, column] for column in columns] for row in rows]
    for way in (pillow_warp.pick_pixels, products.pick_pixels):
        np.testing.assert_array_equal(run(way, images, columns, rows), expected)  # type: ignore[arg-type]


def test_a_translation_by_products_is_that_by_gather() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 6, 9, 3)).astype(np.float32)
    pixels = np.arange(-20, 20).astype(np.float32)
    moves = (pillow_warp.translate_x, pillow_warp.translate_y)
    part, for_tpus = "shift_images", products.shift_images
    assert_moved_alike(moves, images, pixels, "nearest", part, for_tpus)


def test_equalize_counts_and_looks_up_alike_on_every_platform() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 700, 2))
    # More pixels of one level than 8 bits, or bfloat16, can count.
    levels[1, :600, 1] = 255
    expected = np.stack(
        [[np.bincount(column, minlength=256) for column in image.T] for image in levels]
    )
    for count in (pillow_color.histogram, products.histogram):
        counts = jax.jit(count)(np.int32(levels))
        np.testing.assert_array_equal(counts, expected)
    table = rng.permuted(np.tile(np.arange(256.0), (3, 2, 1)), axis=-1)
    found = np.stack(
        [
            [row[column] for row, column in zip(rows, image.T, strict=True)]
            for rows, image in zip(table, levels, strict=True)
        ]
    ).swapaxes(1, 2)
    for look_up in (pillow_color.look_up, products.look_up):
        looked_up = jax.jit(look_up)(np.float32(table), np.int32(levels))
        assert looked_up.dtype == np.float32
        np.testing.assert_array_equal(looked_up, found)
