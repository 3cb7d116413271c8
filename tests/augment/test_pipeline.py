"""A whole pipeline: its contract, and that devices do not change or slow it."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxcls.augment import (
    ColorJitter,
    HorizontalFlip,
    MixUpOrCutMix,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Transform,
    apply,
)
from jaxcls.errors import UserError
from jaxcls.parallel import batch_sharded, make_mesh, replicated

GEOMETRY = (
    Resize(size=12, interpolation="bicubic"),
    RandomCrop(padding=2, mode="reflect"),
    RandomCrop(padding=1, fill=100.0),
    HorizontalFlip(),
)
NORMALIZE = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
WHOLE = (
    *GEOMETRY,
    RandomResizedCrop(size=10),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    RandAugment(),
    NORMALIZE,
    RandomErasing(),
    MixUpOrCutMix(),
)
TARGETS = np.eye(10, dtype=np.float32)[np.arange(64) % 10]


def batch_of_images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (64, 8, 9, 3), dtype=np.uint8)


def compiled(transforms: Sequence[Transform], mesh: Mesh) -> jax.stages.Compiled:
    """The pipeline as one program, its batches lying on a mesh as in training."""
    rows, whole = batch_sharded(mesh), replicated(mesh)
    return (
        jax.jit(
            functools.partial(apply, transforms),
            in_shardings=(whole, rows, rows),
            out_shardings=(rows, rows),
        )
        .lower(jax.random.key(0), batch_of_images(), TARGETS)
        .compile()
    )


@functools.cache
def whole_pipeline(devices: int) -> jax.stages.Compiled:
    return compiled(WHOLE, make_mesh(devices))


def run(
    program: jax.stages.Compiled, mesh: Mesh, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = batch_sharded(mesh)
    images, targets = program(
        jax.device_put(jax.random.key(7), replicated(mesh)),
        jax.device_put(images, rows),
        jax.device_put(TARGETS, rows),
    )
    return images, targets


def test_grey_levels_stay_whole_until_they_are_normalized() -> None:
    mesh = make_mesh(1)
    images = batch_of_images()
    levels, targets = run(compiled(GEOMETRY, mesh), mesh, images)
    assert levels.dtype == jnp.float32
    assert levels.shape == (64, 12, 13, 3)
    np.testing.assert_array_equal(levels, np.round(levels))
    assert np.min(levels) == 0  # bicubic overshoots, so that both ends are reached
    assert np.max(levels) == 255
    np.testing.assert_array_equal(targets, TARGETS)

    normalized, _ = run(compiled((*GEOMETRY, NORMALIZE), mesh), mesh, images)
    assert normalized.dtype == jnp.float32
    # Normalize draws nothing, so that both programs moved the pixels alike.
    reference = (
        np.asarray(levels, np.float64) / 255 - np.array(NORMALIZE.mean)
    ) / np.array(NORMALIZE.std)
    np.testing.assert_allclose(normalized, reference, rtol=1e-5, atol=1e-5)


def test_eight_devices_give_the_same_bits_as_one() -> None:
    images = batch_of_images()
    alone, _ = run(whole_pipeline(1), make_mesh(1), images)
    spread, _ = run(whole_pipeline(8), make_mesh(8), images)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(spread), np.asarray(alone))


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


def test_no_pixel_travels_between_devices() -> None:
    text = whole_pipeline(8).as_text()
    assert text is not None
    assert "num_partitions=8" in text  # or there would be nothing to find
    for collective in COLLECTIVES:
        assert collective not in text


def test_a_pixel_that_travels_would_be_seen() -> None:
    # The control of the test above: this transform needs the neighbour's image.
    class Swap(Transform):
        def __call__(
            self, rng: jax.Array, images: jax.Array, targets: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return jnp.roll(images, 1, axis=0), targets

    text = compiled((Swap(),), make_mesh(8)).as_text()
    assert text is not None
    assert any(collective in text for collective in COLLECTIVES)


def applied(
    transforms: Sequence[Transform], images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    call = jax.jit(functools.partial(apply, transforms))
    return jax.device_get(call(jax.random.key(0), images, TARGETS))


def test_each_transform_has_a_key_of_its_own() -> None:
    images = batch_of_images()
    twice, _ = applied((HorizontalFlip(), HorizontalFlip()), images)
    kept = (np.asarray(twice) == images).all((1, 2, 3))
    # One key for both would mirror every image back. Half of 64, three standard deviations.
    assert 20 <= kept.sum() <= 44


def test_transforms_are_applied_in_order() -> None:
    images = batch_of_images()
    for transforms in (
        (Normalize(mean=(0.0,), std=(1.0,)), RandomCrop(padding=8, fill=255.0)),
        (RandomCrop(padding=8, fill=255.0), Normalize(mean=(0.0,), std=(1.0,))),
    ):
        result, _ = applied(transforms, images)
        filled = 255.0 if isinstance(transforms[-1], RandomCrop) else 1.0
        assert np.max(result) == filled


def test_targets_may_change_on_the_way() -> None:
    class MixWithNext(Transform):
        def __call__(
            self, rng: jax.Array, images: jax.Array, targets: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return images, (targets + jnp.roll(targets, -1, axis=0)) / 2

    _, targets = applied(
        (MixWithNext(), HorizontalFlip(), MixWithNext()), batch_of_images()
    )
    reference = (
        TARGETS + 2 * np.roll(TARGETS, -1, axis=0) + np.roll(TARGETS, -2, axis=0)
    ) / 4
    np.testing.assert_array_equal(targets, reference)


def test_no_transforms_only_change_the_dtype() -> None:
    images = batch_of_images()
    result, _ = apply((), jax.random.key(0), images, TARGETS)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, images)


def test_a_transform_without_a_call_says_so() -> None:
    class Forgetful(Transform):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*__call__"):
        Forgetful()  # type: ignore[abstract]
    assert not Forgetful.random


BYTES, ROWS = np.zeros((4, 8, 8, 3), np.uint8), np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("transforms", "images", "targets", "said"),
    [
        (HorizontalFlip(), BYTES, ROWS, "a tuple of transforms, .* not HorizontalFlip"),
        (("flip",), BYTES, ROWS, "takes transforms, not 'flip'"),
        ((), BYTES[0], ROWS[0], r"not uint8 of shape \(8, 8, 3\)"),
        ((), BYTES[:0], ROWS[:0], r"one or more, not uint8 of shape \(0, 8, 8, 3\)"),
        ((), BYTES.astype(np.int32), ROWS, "uint8 or float32, .* not int32"),
        ((), BYTES, np.arange(4), r"\[batch, classes\], .* not int64 of shape \(4,\)"),
        ((), BYTES, ROWS[:3], r"each of 4 images, not float32 of shape \(3, 4\)"),
    ],
)
def test_arguments_that_apply_cannot_take_are_named(
    transforms: Sequence[Transform], images: np.ndarray, targets: np.ndarray, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        apply(transforms, jax.random.key(0), images, targets)


def test_targets_become_floats() -> None:
    _, targets = apply((), jax.random.key(0), BYTES, np.eye(4, dtype=np.int32))
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal(targets, ROWS)
