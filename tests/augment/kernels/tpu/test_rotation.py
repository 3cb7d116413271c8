"""Rotations by products, against those by gather."""

import numpy as np
import pytest

from jaxcls.augment.kernels import pillow_warp
from jaxcls.augment.kernels.tpu import rotation
from tests.augment.kernels.tpu.both_ways import assert_moved_alike


@pytest.mark.parametrize(
    ("height", "width"), [(17, 12), (12, 17), (9, 31), (1, 5), (64, 64)]
)
def test_a_rotation_by_products_is_that_by_gather(height: int, width: int) -> None:
    """At every quarter and the angles between, where other pixels come twice."""
    random = np.random.default_rng(0)
    angles = np.concatenate(
        [
            np.linspace(-180, 360, 37),
            random.uniform(-400, 400, 50),
            [45, -45, 44.99, 135, 225.01],
        ]
    ).astype(np.float32)
    shape = (len(angles), height, width, 3)
    images = random.integers(0, 256, shape).astype(np.float32)
    moves, part = [pillow_warp.rotate], "copy_rotated"
    assert_moved_alike(moves, images, angles, "nearest", part, rotation.rotate)
