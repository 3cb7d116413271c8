"""Pixels that move, against Pillow and NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from jaxcls.augment import (
    CenterCrop,
    HorizontalFlip,
    RandomCrop,
    Resize,
    Transform,
    resample,
)
from jaxcls.errors import UserError

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def run(transform: Transform, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Applies one transform, compiled, to images as the pipeline hands them over."""
    targets = jnp.zeros((len(images), 2))
    call = jax.jit(transform.__call__)
    return np.asarray(call(jax.random.key(seed), images.astype(np.float32), targets)[0])


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth_images(batch: int, height: int, width: int, channels: int) -> np.ndarray:
    """Waves of a few pixels' length, over the whole range of grey levels."""
    b, y, x, c = np.meshgrid(
        *(np.arange(size) for size in (batch, height, width, channels)), indexing="ij"
    )
    waves = (
        np.sin(0.21 * x + b) + np.cos(0.13 * y - 0.9 * c) + np.sin(0.07 * x * (b + 1))
    )
    return np.round(127.5 + 42.5 * waves).astype(np.uint8)


def pillow_resize(images: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((width, height), PILLOW[kind]))
            for image in images
        ]
    )


def assert_resize_is_pillows(
    images: np.ndarray, size: int, expected: tuple[int, int], interpolation: str
) -> None:
    resized = run(Resize(size=size, interpolation=interpolation), images)  # type: ignore[arg-type]
    assert resized.shape == (len(images), *expected, images.shape[-1])
    np.testing.assert_array_equal(
        resized, pillow_resize(images, *expected, interpolation)
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        # The longer side does not come out whole: 12 * 31 / 20 = 18.6, and is cut to 18.
        (20, 31, 12, (12, 18)),
        (31, 20, 45, (69, 45)),
        # The longer side has that size already, which does not count.
        (20, 31, 31, (31, 48)),
        (8, 8, 32, (32, 32)),
        (33, 33, 32, (32, 32)),
        (62, 31, 30, (60, 30)),
        (17, 150, 13, (13, 114)),
        (9, 1, 4, (36, 4)),
        (7, 5, 1, (1, 1)),
        # As much smaller as the bicubic kernel is exact.
        (48, 64, 3, (3, 4)),
    ],
)
def test_resize_is_pillows_to_the_last_bit(
    interpolation: str, height: int, width: int, size: int, expected: tuple[int, int]
) -> None:
    smooth = smooth_images(2, height, width, 3)
    noise = random_images(2, height, width, 3)
    # Black and white make the bicubic kernel overshoot on both sides, in both passes.
    images = np.concatenate([smooth, noise, noise // 128 * 255])
    assert_resize_is_pillows(images, size, expected, interpolation)


def test_resize_is_pillows_to_the_last_bit_at_a_32nd() -> None:
    images = random_images(3, 64, 96, 3)
    assert_resize_is_pillows(images, 2, (2, 3), "bilinear")


@pytest.mark.parametrize(("interpolation", "reach"), [("bilinear", 1), ("bicubic", 2)])
def test_float32_rounds_no_sum_of_resize(
    interpolation: resample.Interpolation, reach: int
) -> None:
    # A rounded sum would move one pixel of a million: no comparison of images finds it.
    for side, size in itertools.product(
        [1, 3, 20, 63, 224, 375, 500, 1024], [1, 2, 7, 32, 224, 256, 341]
    ):
        if 2 * reach * side > 64 * size:  # more pixels in one than resample promises
            continue
        weights = resample._weights(side, size, interpolation)
        coarse, fine = resample._split(weights)
        np.testing.assert_array_equal(coarse * 2**11 + fine, weights)
        for factors in (coarse, fine):
            assert 255 * np.abs(factors).sum(1).max() <= 2**24
        # The sum of both, and the half that rounds it, in int32.
        assert 255 * np.abs(weights).sum(1).max() + 2**21 < 2**31


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (90, 31, 20, (58, 20)),
        # 2 rows and 1 column less; then 3 rows, and the order changes.
        (60, 30, 29, (58, 29)),
        (61, 30, 29, (58, 29)),
        # Made larger, in the usual order.
        (31, 10, 15, (46, 15)),
    ],
)
def test_resize_of_tall_images_takes_pillows_order_of_passes(
    interpolation: str, height: int, width: int, size: int, expected: tuple[int, int]
) -> None:
    images = random_images(3, height, width, 3)
    # Before 13, Pillow always began with the rows.
    if int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip(f"Pillow {PIL.__version__} resizes tall images in another order")
    assert_resize_is_pillows(images, size, expected, interpolation)


# 14 and 30 of 4 pixels: Pillow's position, a sum of rounded steps, misses the middle between two.
@pytest.mark.parametrize(
    ("height", "width", "size"), [(20, 31, 7), (31, 20, 45), (4, 4, 14), (4, 5, 30)]
)
def test_nearest_resize_is_pillows(height: int, width: int, size: int) -> None:
    images = random_images(2, height, width, 3)
    shorter = min(height, width)
    expected = (size * height // shorter, size * width // shorter)
    assert_resize_is_pillows(images, size, expected, "nearest")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resized_images_are_whole_grey_levels(interpolation: str) -> None:
    # Hard edges make the bicubic kernel overshoot on both sides.
    images = random_images(4, 9, 9, 1) // 128 * 255
    resized = run(Resize(size=20, interpolation=interpolation), images)  # type: ignore[arg-type]
    np.testing.assert_array_equal(resized, np.round(resized))
    assert resized.min() == 0
    assert resized.max() == 255


def test_resize_leaves_images_of_that_size_alone() -> None:
    images = random_images(2, 16, 23, 3)
    np.testing.assert_array_equal(run(Resize(size=16), images), images)


# How many pixels torchvision cuts off (or adds, below 0) before and behind. Odd numbers are
# halved to an even number before when cut off, with the greater half behind when added.
@pytest.mark.parametrize(
    ("side", "size", "before", "behind"),
    [
        (8, 8, 0, 0),
        (8, 4, 2, 2),
        (9, 8, 0, 1),
        (11, 8, 2, 1),
        (13, 8, 2, 3),
        (15, 8, 4, 3),
        (8, 1, 4, 3),
        (8, 9, 0, -1),
        (8, 11, -1, -2),
        (8, 12, -2, -2),
        (1, 8, -3, -4),
    ],
)
def test_center_crop_cuts_and_adds_what_torchvision_does(
    side: int, size: int, before: int, behind: int
) -> None:
    images = random_images(2, side, size, 3)
    border = [(max(-before, 0), max(-behind, 0)), (0, 0)]
    expected = np.pad(images, [(0, 0), *border, (0, 0)])
    expected = expected[:, max(before, 0) : expected.shape[1] - max(behind, 0)]
    assert expected.shape == (2, size, size, 3)
    crop = CenterCrop(size=size)
    np.testing.assert_array_equal(run(crop, images), expected)
    # The same along the other side.
    images, expected = images.swapaxes(1, 2), expected.swapaxes(1, 2)
    np.testing.assert_array_equal(run(crop, images), expected)


def test_center_crop_may_cut_one_side_and_add_to_the_other() -> None:
    images = random_images(2, 4, 9, 3)
    expected = np.zeros((2, 7, 7, 3))
    expected[:, 1:5] = images[:, :, 1:8]
    np.testing.assert_array_equal(run(CenterCrop(size=7), images), expected)


def windows(images: np.ndarray, padding: int, **pad: object) -> np.ndarray:
    """All crops of padded images, [offset, batch, height, width, channels], row-major."""
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, border, **pad)  # type: ignore[call-overload]
    height, width = images.shape[1:3]
    places = itertools.product(range(2 * padding + 1), repeat=2)
    return np.stack([padded[:, y : y + height, x : x + width] for y, x in places])


def offsets(cropped: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The one offset that each image was cropped at; fails for none or several."""
    matches = (crops == cropped).all((2, 3, 4))
    np.testing.assert_array_equal(matches.sum(0), 1)
    return matches.argmax(0)


@pytest.mark.parametrize(
    ("mode", "fill", "pad"),
    [
        ("constant", 0.0, {"mode": "constant", "constant_values": 0}),
        ("constant", 200.0, {"mode": "constant", "constant_values": 200}),
        ("edge", 0.0, {"mode": "edge"}),
        ("reflect", 0.0, {"mode": "reflect"}),
    ],
)
def test_random_crop_is_a_window_of_the_padded_image(
    mode: str, fill: float, pad: dict[str, object]
) -> None:
    # Not square, so that exchanged axes do not pass.
    images = random_images(700, 7, 5, 2)
    transform = RandomCrop(padding=3, mode=mode, fill=fill)  # type: ignore[arg-type]
    found = offsets(run(transform, images), windows(images, 3, **pad))
    assert set(found) == set(range(49))  # corners included


def test_the_largest_mirror_reaches_the_far_border() -> None:
    images = random_images(500, 5, 5, 2)
    cropped = run(RandomCrop(padding=4, mode="reflect"), images)
    crops = windows(images, 4, mode="reflect")
    # Shifts of -4 and 4 show the same pixels, hence any and not one.
    assert (crops == cropped).all((2, 3, 4)).any(0).all()


def test_random_crop_draws_each_offset_equally_often_for_each_image() -> None:
    images = random_images(5000, 6, 5, 1)
    found = offsets(
        run(RandomCrop(padding=2), images), windows(images, 2, mode="constant")
    )
    counts = np.bincount(found, minlength=25)
    # 99.9 % of the chi-square distribution with 24 degrees of freedom lie below 51.2.
    assert ((counts - 200) ** 2 / 200).sum() < 51.2
    # Neighbours are independent: 1 of 25 share their offset (standard deviation 0.0028).
    assert abs((found[1:] == found[:-1]).mean() - 1 / 25) < 0.0085


def test_random_crop_depends_on_its_key_alone() -> None:
    images = random_images(32, 6, 5, 1)
    crop = RandomCrop(padding=2, mode="edge")
    first = run(crop, images, seed=1)
    np.testing.assert_array_equal(run(crop, images, seed=1), first)
    assert (run(crop, images, seed=2) != first).any()


def test_random_crop_without_padding_changes_nothing() -> None:
    images = random_images(8, 6, 5, 1)
    for mode in ("constant", "edge", "reflect"):
        cropped = run(RandomCrop(padding=0, mode=mode, fill=9.0), images)  # type: ignore[arg-type]
        np.testing.assert_array_equal(cropped, images)


def test_horizontal_flip_mirrors_columns() -> None:
    images = random_images(500, 3, 4, 2)
    flipped = run(HorizontalFlip(p=0.3), images)
    mirrored = np.stack([np.fliplr(image) for image in images])
    was_flipped = (flipped == mirrored).all((1, 2, 3))
    was_kept = (flipped == images).all((1, 2, 3))
    # Every image is whole: one or the other, never a mixture.
    np.testing.assert_array_equal(was_flipped, ~was_kept)
    # Three standard deviations of a binomial of 500 draws.
    assert abs(was_flipped.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 500)


def test_horizontal_flip_always_and_never() -> None:
    images = random_images(20, 3, 4, 1)
    np.testing.assert_array_equal(run(HorizontalFlip(p=0.0), images), images)
    np.testing.assert_array_equal(
        run(HorizontalFlip(p=1.0), images), images[:, :, ::-1]
    )


def test_random_says_which_transforms_use_their_key() -> None:
    images = random_images(32, 6, 6, 1)
    for transform in (
        Resize(size=5),
        CenterCrop(size=5),
        RandomCrop(padding=1),
        HorizontalFlip(),
    ):
        changes = (
            run(transform, images, seed=1) != run(transform, images, seed=2)
        ).any()
        assert changes == transform.random


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Resize(size=0), "Resize.size must be 1 or more, not 0"),
        (
            Resize(size=1, interpolation="cubic"),  # type: ignore[arg-type]
            "Resize.interpolation must be one of 'nearest', 'bilinear', 'bicubic', not "
            "'cubic'.",
        ),
        (CenterCrop(size=0), "CenterCrop.size must be 1 or more, not 0"),
        (RandomCrop(padding=-1), "RandomCrop.padding must be 0 or more, not -1"),
        *(
            (
                RandomCrop(padding=1, fill=fill),
                f"fill must be a whole grey level in 0..255, not {fill}.",
            )
            for fill in (256.0, -1.0, -0.5, 127.5, np.nan, np.inf)
        ),
        (HorizontalFlip(p=1.5), "HorizontalFlip.p must lie in 0..1, not 1.5"),
        (HorizontalFlip(p=-0.1), "HorizontalFlip.p must lie in 0..1, not -0.1"),
    ],
)
def test_values_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        transform.validate()
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        Resize(size=1),
        CenterCrop(size=1),
        RandomCrop(padding=0, fill=255.0),
        HorizontalFlip(p=0.0),
        HorizontalFlip(p=1.0),
    ],
)
def test_values_at_the_end_of_the_range_are_allowed(transform: Transform) -> None:
    transform.validate()


def test_a_mirror_larger_than_the_image_is_an_error() -> None:
    images = jax.ShapeDtypeStruct((1, 9, 5, 1), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with pytest.raises(UserError, match=r"padding=5.*9x5.*below 5"):
        jax.eval_shape(RandomCrop(padding=5, mode="reflect"), key, images, targets)
    # The other modes have no such bound.
    jax.eval_shape(RandomCrop(padding=5, mode="edge"), key, images, targets)
