"""Test-time augmentation, against Pillow, NumPy and averages by hand."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcls import options
from jaxcls.augment import Normalize
from jaxcls.augment.views import (
    AirbenchViews,
    FiveCrops,
    FlipViews,
    Scales,
    TenCrops,
    Views,
    averaged_logits,
)
from jaxcls.errors import UserError


def random_images(*shape: int) -> np.ndarray:
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return levels.astype(np.float32)


def seen(views: Views, images: np.ndarray) -> list[np.ndarray]:
    """The views, in one compiled program."""
    return list(jax.device_get(jax.jit(views.__call__)(images)))


def test_flip_views_are_the_image_and_its_mirror() -> None:
    images = random_images(2, 3, 4, 3)
    kept, mirrored = seen(FlipViews(), images)
    np.testing.assert_array_equal(kept, images)
    np.testing.assert_array_equal(mirrored, [np.fliplr(image) for image in images])


def pillow_crops(images: np.ndarray, size: int, middle: tuple[int, int]) -> np.ndarray:
    """The corners and the middle that Pillow cuts out, [5, batch, size, size, channels]."""
    height, width = images.shape[1:3]
    left, top = [0, width - size], [0, height - size]
    corners = [(x, y) for y, x in itertools.product(top, left)]
    return np.stack(
        [
            [
                np.asarray(
                    Image.fromarray(image.astype(np.uint8)).crop(
                        (x, y, x + size, y + size)
                    )
                )
                for image in images
            ]
            for x, y in [*corners, middle]
        ]
    )


def test_five_and_ten_crops_are_torchvisions() -> None:
    images = random_images(2, 9, 12, 3)
    # (12 - 7) / 2 = 2.5 is rounded to 2, as in torchvision's CenterCrop.
    expected = pillow_crops(images, 7, middle=(2, 1))
    np.testing.assert_array_equal(seen(FiveCrops(size=7), images), expected)
    crops = seen(TenCrops(size=7), images)
    np.testing.assert_array_equal(crops[:5], expected)
    mirrored = pillow_crops(images[:, :, ::-1], 7, middle=(2, 1))
    np.testing.assert_array_equal(crops[5:], mirrored)


def test_a_crop_may_be_the_whole_image() -> None:
    images = random_images(2, 5, 5, 1)
    for crop in seen(FiveCrops(size=5), images):
        np.testing.assert_array_equal(crop, images)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width", "size"), [(9, 12, 7), (16, 11, 8)])
def test_crops_beside_torchvision(height: int, width: int, size: int) -> None:
    import torch

    from tests.references.torch_models import torchvision

    images = random_images(2, height, width, 3)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    for kind, ours in (("FiveCrop", FiveCrops), ("TenCrop", TenCrops)):
        theirs = getattr(torchvision.transforms, kind)(size)(tensor)
        for crop, reference in zip(ours(size=size)(images), theirs, strict=True):
            np.testing.assert_array_equal(crop, reference.permute(0, 2, 3, 1).numpy())


def test_airbench_views_are_shifted_and_mirrored() -> None:
    images = random_images(2, 5, 7, 3)
    for shift in (1, 2):
        views = seen(AirbenchViews(shift=shift), images)
        border = [(0, 0), (shift, shift), (shift, shift), (0, 0)]
        padded = np.pad(images, border, mode="reflect")
        windows = [images, padded[:, :5, :7], padded[:, 2 * shift :, 2 * shift :]]
        expected = [view for window in windows for view in (window, window[:, :, ::-1])]
        np.testing.assert_array_equal(views, expected)
        # Up and left: the upper left pixel is the one that the mirror shows there.
        if shift == 1:
            np.testing.assert_array_equal(views[2][:, 0, 0], images[:, 1, 1])


def test_scales_are_pillows() -> None:
    images = random_images(2, 12, 18, 3)
    sizes = (8, 12, 15)
    for kind, pillows in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
    ):
        resized = seen(Scales(sizes=sizes, interpolation=kind), images)  # type: ignore[arg-type]
        for size, view in zip(sizes, resized, strict=True):
            width = size * 18 // 12
            expected = [
                Image.fromarray(image.astype(np.uint8)).resize((width, size), pillows)
                for image in images
            ]
            np.testing.assert_array_equal(view, np.stack(expected))


ALL = (
    FlipViews(),
    FiveCrops(size=6),
    TenCrops(size=6),
    Scales(sizes=(6, 8, 11), interpolation="bicubic"),
    AirbenchViews(),
    AirbenchViews(shift=2),
)


@pytest.mark.parametrize("views", ALL)
def test_there_is_a_weight_for_each_view(views: Views) -> None:
    batches = jax.eval_shape(views, jax.ShapeDtypeStruct((2, 8, 10, 3), jnp.float32))
    if views.weights is not None:
        assert len(batches) == len(views.weights)
        assert sum(views.weights) == pytest.approx(1, abs=1e-12)


def network(images: Any, xp: Any = jnp) -> Any:
    """Logits [batch, 4], not linear, and of any size of image.

    Args:
      images: [batch, height, width, 3].
      xp: the library that computes: jax.numpy or numpy.
    """
    weights = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    place = np.cos(np.arange(images.shape[2], dtype=np.float32))[:, None]
    features = xp.mean(images / 255 * place, axis=(1, 2))
    return xp.tanh(5 * features @ weights)


@pytest.mark.parametrize("views", ALL)
def test_logits_are_averaged_with_the_weights(views: Views) -> None:
    images = random_images(2, 8, 10, 3)
    averaged, batches = jax.device_get(
        jax.jit(
            lambda images: (averaged_logits(network, images, views), views(images))
        )(images)
    )
    weights = views.weights or [1 / len(batches)] * len(batches)
    expected = sum(
        weight * network(np.float64(batch), np)
        for batch, weight in zip(batches, weights, strict=True)
    )
    np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(averaged - network(images, np)).max() > 1e-3


def test_airbench_gives_the_unshifted_image_half_of_the_weight() -> None:
    images = random_images(3, 8, 10, 3)

    def mirrored(images: np.ndarray) -> np.ndarray:
        return (network(images, np) + network(images[:, :, ::-1], np)) / 2

    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    shifted = (mirrored(padded[:, :8, :10]) + mirrored(padded[:, 2:, 2:])) / 2
    expected = (mirrored(images) + shifted) / 2
    averaged = jax.jit(
        lambda images: averaged_logits(network, images, AirbenchViews())
    )(images)
    np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-6)


def test_views_of_one_shape_share_one_network() -> None:
    calls = []

    def counted(images: jax.Array) -> jax.Array:
        calls.append(images.shape)
        return network(images)

    images = jax.ShapeDtypeStruct((2, 8, 10, 3), jnp.float32)

    def trace(views: Views) -> None:
        jax.eval_shape(lambda images: averaged_logits(counted, images, views), images)

    trace(TenCrops(size=6))
    assert calls == [(2, 6, 6, 3)]
    calls.clear()
    trace(Scales(sizes=(8, 4)))
    assert calls == [(2, 8, 10, 3), (2, 4, 5, 3)]


@pytest.mark.parametrize("views", [v for v in ALL if not v.on_grey_levels])
def test_views_that_only_move_pixels_may_follow_normalize(views: Views) -> None:
    images = random_images(2, 8, 10, 3)
    normalize = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

    def normalized(images: jax.Array) -> jax.Array:
        return normalize(jax.random.key(0), images, jnp.zeros((2, 2)))[0]

    before, after = jax.device_get(
        jax.jit(
            lambda images: (
                views(normalized(images)),
                [normalized(view) for view in views(images)],
            )
        )(images)
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_scales_need_grey_levels() -> None:
    assert Scales(sizes=(8,)).on_grey_levels


@pytest.mark.parametrize(
    ("views", "said"),
    [
        (FiveCrops(size=0), "FiveCrops.size must lie in 1..16384, not 0"),
        (TenCrops(size=-1), "TenCrops.size must lie in 1..16384, not -1"),
        (Scales(sizes=()), "Scales.sizes must be not empty, not ()"),
        (Scales(sizes=(8, 0)), "Scales.sizes[1] must lie in 1..16384, not 0"),
        (
            Scales(sizes=(8, 10**9)),
            "Scales.sizes[1] must lie in 1..16384, not 1000000000",
        ),
        (
            Scales(sizes=(8,), interpolation="area"),  # type: ignore[arg-type]
            "is 'area', a str; expected 'nearest' or 'bilinear' or 'bicubic'",
        ),
        (AirbenchViews(shift=0), "AirbenchViews.shift must lie in 1..16384, not 0"),
    ],
)
def test_values_out_of_range_are_named(views: Views, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(views)
    assert said in str(error.value)


@pytest.mark.parametrize("views", ALL)
def test_values_in_range_are_allowed(views: Views) -> None:
    options.check(views)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        (FiveCrops(size=9), "crops of 9 pixels do not fit into images of 8x10"),
        (TenCrops(size=11), "crops of 11 pixels do not fit into images of 8x10"),
        (
            AirbenchViews(shift=8),
            "a shift of 8 pixels mirrors more than images of 8x10",
        ),
    ],
)
def test_images_too_small_are_an_error(views: Views, said: str) -> None:
    with pytest.raises(UserError, match=said):
        jax.eval_shape(views, jax.ShapeDtypeStruct((1, 8, 10, 3), jnp.float32))
