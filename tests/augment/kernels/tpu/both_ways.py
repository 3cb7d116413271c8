"""Moves of pixels, by the formulation for TPUs and by that for other platforms."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.augment.kernels import pillow_warp
from jaxcls.augment.kernels.resample import Interpolation


def assert_moved_alike(
    moves: Sequence[Callable[..., jax.Array]],
    images: np.ndarray,
    amounts: np.ndarray,
    kind: Interpolation,
    part: str,
    for_tpus: Callable[..., Any],
) -> None:
    """Moves images twice, in one program each, and compares all pixels.

    Args:
      moves: functions of pillow_warp.
      images: float32 [batch, height, width, channels].
      amounts: float32 [batch]: angles, slopes or pixels.
      kind: of interpolation.
      part: the name of what pillow_warp calls.
      for_tpus: what takes its place the second time.
    """

    def moved() -> list[np.ndarray]:
        # A function of its own each time, because a compiled one would be taken again.
        return jax.jit(
            lambda images, amounts: [move(images, amounts, kind, 7.0) for move in moves]
        )(images, amounts)

    expected = moved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pillow_warp, part, for_tpus)
        found = moved()
    for move, one, other in zip(moves, found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=move.__name__)
