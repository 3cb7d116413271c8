"""Pixels that move, against Pillow and NumPy."""

import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from jaxcls import options
from jaxcls.augment import CenterCrop, HorizontalFlip, RandomCrop, Resize, Transform
from jaxcls.augment.geometry import (
    AlternatingFlip,
    RandomAffine,
    RandomPerspective,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
    VerticalFlip,
    rectangle_from,
)
from jaxcls.augment.kernels import resample
from jaxcls.augment.pipeline import RunPosition, Warp, apply
from jaxcls.errors import UserError

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def run(transform: Transform, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Applies one transform, compiled, to images as the pipeline hands them over."""
    targets = np.zeros((len(images), 2), np.float32)
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
    images = random_images(32, 6, 5, 1).astype(np.float32)
    targets = np.zeros((32, 2), np.float32)
    crop = jax.jit(RandomCrop(padding=2, mode="edge").__call__)
    first, again, other = (
        np.asarray(crop(jax.random.key(seed), images, targets)[0]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(again, first)
    assert (other != first).any()


def test_random_crop_without_padding_changes_nothing() -> None:
    images = random_images(8, 6, 5, 1).astype(np.float32)
    targets = np.zeros((8, 2), np.float32)
    modes: tuple[Literal["constant", "edge", "reflect"], ...]
    modes = ("constant", "edge", "reflect")
    crops = [RandomCrop(padding=0, mode=mode, fill=9.0) for mode in modes]
    call = jax.jit(lambda key: [crop(key, images, targets)[0] for crop in crops])
    for mode, cropped in zip(modes, call(jax.random.key(0)), strict=True):
        np.testing.assert_array_equal(cropped, images, err_msg=mode)


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
    images = random_images(32, 6, 6, 1).astype(np.float32)
    targets = np.zeros((32, 2), np.float32)
    transforms = (
        Resize(size=5),
        CenterCrop(size=5),
        RandomCrop(padding=1),
        HorizontalFlip(),
    )
    call = jax.jit(lambda key: [each(key, images, targets)[0] for each in transforms])
    first, second = (jax.device_get(call(jax.random.key(seed))) for seed in (1, 2))
    for transform, one, other in zip(transforms, first, second, strict=True):
        assert (one != other).any() == transform.random, transform


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Resize(size=0), "Resize.size must lie in 1..16384, not 0"),
        (Resize(size=3 * 10**9), "Resize.size must lie in 1..16384, not 3000000000"),
        (
            Resize(size=1, interpolation="cubic"),  # type: ignore[arg-type]
            "Resize.interpolation is 'cubic', a str; expected 'nearest' or 'bilinear' or "
            "'bicubic'.",
        ),
        (CenterCrop(size=0), "CenterCrop.size must lie in 1..16384, not 0"),
        (CenterCrop(size=16385), "CenterCrop.size must lie in 1..16384, not 16385"),
        (RandomCrop(padding=-1), "RandomCrop.padding must lie in 0..16384, not -1"),
        (RandomCrop(padding=2**31 - 1), "must lie in 0..16384, not 2147483647"),
        (
            RandomCrop(padding=1, mode=4),  # type: ignore[arg-type]
            "RandomCrop.mode is 4, a int; expected 'constant' or 'edge' or 'reflect'.",
        ),
        *(
            (
                RandomCrop(padding=1, fill=fill),
                f"fill must {wanted}, not {fill}.",
            )
            for fill, wanted in (
                (256.0, "lie in 0..255, whole"),
                (-1.0, "lie in 0..255, whole"),
                (-0.5, "lie in 0..255, whole"),
                (127.5, "lie in 0..255, whole"),
                (np.nan, "be a number of sensible size"),
                (np.inf, "be a number of sensible size"),
            )
        ),
        (HorizontalFlip(p=1.5), "HorizontalFlip.p must lie in 0..1, not 1.5"),
        (HorizontalFlip(p=-0.1), "HorizontalFlip.p must lie in 0..1, not -0.1"),
    ],
)
def test_values_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        Resize(size=1),
        Resize(size=16384),
        CenterCrop(size=1),
        CenterCrop(size=16384),
        RandomCrop(padding=0, fill=255.0),
        RandomCrop(padding=16384),
        HorizontalFlip(p=0.0),
        HorizontalFlip(p=1.0),
    ],
)
def test_values_at_the_end_of_the_range_are_allowed(transform: Transform) -> None:
    options.check(transform)


def test_a_mirror_larger_than_the_image_is_an_error() -> None:
    images = jax.ShapeDtypeStruct((1, 9, 5, 1), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with pytest.raises(UserError, match=r"padding=5.*9x5.*below 5"):
        jax.eval_shape(RandomCrop(padding=5, mode="reflect"), key, images, targets)
    # The other modes have no such bound.
    jax.eval_shape(RandomCrop(padding=5, mode="edge"), key, images, targets)


def test_vertical_flip_mirrors_rows() -> None:
    images = random_images(500, 3, 4, 2)
    flipped = run(VerticalFlip(p=0.3), images)
    mirrored = np.stack([np.flipud(image) for image in images])
    was_flipped = (flipped == mirrored).all((1, 2, 3))
    was_kept = (flipped == images).all((1, 2, 3))
    np.testing.assert_array_equal(was_flipped, ~was_kept)
    assert abs(was_flipped.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 500)
    np.testing.assert_array_equal(run(VerticalFlip(p=0.0), images), images)
    np.testing.assert_array_equal(run(VerticalFlip(p=1.0), images), images[:, ::-1])


def in_an_epoch(*transforms: Transform) -> Callable[[int, np.ndarray], np.ndarray]:
    """Returns a function that applies transforms to uint8 images in the last step of an epoch
    of 7, compiled once."""

    @jax.jit
    def call(images: jax.Array, step: jax.Array) -> jax.Array:
        position = RunPosition(step=step, steps_per_epoch=7, total_steps=70)
        key = jax.random.fold_in(jax.random.key(0), step)
        return apply(transforms, key, images, jnp.zeros((len(images), 2)), position)[0]

    return lambda epoch, images: np.asarray(call(images, np.int32(7 * epoch + 6)))


def test_alternating_flip_shows_each_image_and_its_mirror_in_turn() -> None:
    # Images that differ in a single level of a single pixel, too.
    images = random_images(1000, 4, 5, 3)
    images[500:] = images[0]
    images[500:, 1, 2, 0] = np.arange(500) % 256
    images[756:, 1, 2, 1] ^= 1
    flip = AlternatingFlip()
    in_epoch = in_an_epoch(flip)
    mirrored = images[:, :, ::-1]
    both = images.astype(int) + mirrored
    first = in_epoch(0, images)
    was_flipped = (first == mirrored).all((1, 2, 3))
    np.testing.assert_array_equal(was_flipped, ~(first == images).all((1, 2, 3)))
    for half in (was_flipped[:500], was_flipped[500:]):
        assert abs(half.mean() - 0.5) < 3 * np.sqrt(0.25 / 500)
    # Neighbours are independent.
    assert (
        abs((was_flipped[1:] == was_flipped[:-1]).mean() - 0.5)
        < 3 * (0.25 / 999) ** 0.5
    )
    for epoch in (1, 2, 3):
        now = in_epoch(epoch, images)
        np.testing.assert_array_equal(now, both - in_epoch(epoch - 1, images))
    np.testing.assert_array_equal(in_epoch(2, images), first)
    # The places of the pixels count: a mirror image decides anew.
    mirror_flipped = (in_epoch(0, mirrored) == images).all((1, 2, 3))
    agree = (mirror_flipped == was_flipped)[:500].mean()
    assert abs(agree - 0.5) < 3 * np.sqrt(0.25 / 500)
    # Each image decides for itself, wherever it is in whichever batch.
    order = np.random.default_rng(1).permutation(len(images))
    np.testing.assert_array_equal(in_epoch(0, images[order]), first[order])
    np.testing.assert_array_equal(run(flip, images), first)


def angles(maps: np.ndarray) -> np.ndarray:
    """By how many degrees maps turn an image counter-clockwise."""
    return np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))


def matrices(
    warp: Warp, batch: int, height: int, width: int, seed: int = 5
) -> np.ndarray:
    call = jax.jit(warp.matrices, static_argnums=(1, 2, 3))
    return np.asarray(call(jax.random.key(seed), batch, height, width))


@pytest.mark.parametrize(
    ("degrees", "low", "high"), [(30.0, -30, 30), ((10.0, 80.0), 10, 80)]
)
def test_rotations_are_uniform(
    degrees: float | tuple[float, float], low: float, high: float
) -> None:
    found = angles(matrices(RandomRotation(degrees=degrees), 5000, 8, 9))
    assert_uniform(found, low, high)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """By the test of Kolmogorov and Smirnov, which fails one of 1000 uniform samples."""
    assert values.min() >= low - 1e-4
    assert values.max() <= high + 1e-4
    places = np.sort((values - low) / (high - low))
    steps = np.arange(len(values)) / len(values)
    assert np.abs(places - steps).max() < 1.95 / np.sqrt(len(values)) + 1 / len(values)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_random_rotation_is_pillows_rotate(interpolation: str) -> None:
    images = np.concatenate([random_images(5, 20, 31, 3), smooth_images(5, 20, 31, 3)])
    kind = PILLOW[interpolation]
    for angle in (90.0, -17.0):
        rotation = RandomRotation(
            degrees=(angle, angle),
            interpolation=interpolation,  # type: ignore[arg-type]
            fill=9.0,
        )
        expected = [
            np.asarray(Image.fromarray(image).rotate(angle, kind, fillcolor=(9,) * 3))
            for image in images
        ]
        error = np.abs(run(rotation, images) - np.stack(expected))
        assert error.max() <= (0 if interpolation == "nearest" else 1)
        assert (error > 0).mean() < 0.002


def test_random_rotation_turns_each_image_by_its_own_matrix() -> None:
    images = random_images(8, 20, 31, 3)
    rotation = RandomRotation(degrees=180.0)
    maps = matrices(rotation, 8, 20, 31, seed=0)
    assert_warped(run(rotation, images), images, maps, "nearest")


def assert_warped(
    warped: np.ndarray, images: np.ndarray, maps: np.ndarray, interpolation: str
) -> None:
    """Compares with Pillow's transforms, up to one level and few pixels on the border."""
    expected = []
    for image, matrix in zip(images, maps.astype(np.float64), strict=True):
        height, width = image.shape[:2]
        affine = (matrix[2] == [0, 0, 1]).all()
        method = Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE
        moved = Image.fromarray(image).transform(
            (width, height),
            method,
            (matrix / matrix[2, 2]).ravel()[: 6 if affine else 8].tolist(),
            PILLOW[interpolation],
        )
        expected.append(np.asarray(moved))
    error = np.abs(warped - np.stack(expected))
    assert (error > 1).mean() < 2e-3
    assert (error > 0).mean() < 5e-3


def elementary(
    angle: float, move: tuple[float, float], scale: float, shear: tuple[float, float]
) -> np.ndarray:
    """The map of a place in a 20x31 image to its place in the result, as a product of
    torchvision's steps, in double precision."""
    turn, (shear_x, shear_y) = np.radians(angle), np.radians(shear)
    cos, sin = np.cos(turn), np.sin(turn)
    steps = [
        [[1, 0, 15.5 + move[0]], [0, 1, 10 + move[1]], [0, 0, 1]],
        [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
        [[scale, 0, 0], [0, scale, 0], [0, 0, 1]],
        [[1, 0, 0], [-np.tan(shear_y), 1, 0], [0, 0, 1]],
        [[1, -np.tan(shear_x), 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, -15.5], [0, 1, -10], [0, 0, 1]],
    ]
    return np.linalg.multi_dot([np.array(step, np.float64) for step in steps])


def test_random_affine_is_torchvisions_product() -> None:
    affine = RandomAffine(
        degrees=(20.0, 20.0), scale=(1.3, 1.3), shear=(10.0, 10.0, -25.0, -25.0)
    )
    maps = matrices(affine, 3, 20, 31)
    expected = np.linalg.inv(elementary(20, (0, 0), 1.3, (10, -25)))
    np.testing.assert_allclose(maps, np.stack([expected] * 3), rtol=1e-5, atol=1e-5)
    # Two numbers, or one, are for x alone.
    affine = RandomAffine(degrees=0.0, shear=(12.0, 12.0))
    expected = np.linalg.inv(elementary(0, (0, 0), 1, (12, 0)))
    np.testing.assert_allclose(matrices(affine, 1, 20, 31)[0], expected, atol=1e-5)
    # Nothing asked, nothing done.
    np.testing.assert_array_equal(
        matrices(RandomAffine(degrees=0.0), 2, 20, 31), np.stack([np.eye(3)] * 2)
    )


def test_random_affine_moves_by_whole_pixels_after_all_else() -> None:
    affine = RandomAffine(degrees=(40.0, 40.0), translate=(0.2, 0.1), scale=(0.7, 0.7))
    maps = matrices(affine, 4000, 20, 31)
    # What is left of the forward maps when the part without a move is taken off.
    still = elementary(40, (0, 0), 0.7, (0, 0))
    moves = (np.linalg.inv(maps.astype(np.float64)) - still)[:, :2, 2]
    whole = np.round(moves)
    np.testing.assert_allclose(moves, whole, atol=1e-4)
    for axis, reach in ((0, 6), (1, 2)):
        values, counts = np.unique(whole[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-reach, reach + 1))
        # Whole numbers from -6.2 to 6.2 and -2 to 2: the outermost are rarer.
        ends = 0.5 + {6: 0.2, 2: 0.0}[reach]
        shares = np.array([ends, *[1.0] * (2 * reach - 1), ends])
        expected = 4000 * shares / shares.sum()
        # Fewer than 1 of 1000 samples lie above, for 12 and 4 degrees of freedom.
        assert ((counts - expected) ** 2 / expected).sum() < {6: 32.9, 2: 18.5}[reach]


def test_random_affine_draws_uniformly() -> None:
    scales = matrices(RandomAffine(degrees=0.0, scale=(0.5, 2.0)), 4000, 8, 9)
    assert_uniform(1 / scales[:, 0, 0], 0.5, 2.0)
    shears = matrices(RandomAffine(degrees=0.0, shear=25.0), 4000, 8, 9)
    assert_uniform(np.degrees(np.arctan(shears[:, 0, 1])), -25, 25)
    affine = RandomAffine(degrees=(5.0, 30.0), shear=(0.0, 0.0, -10.0, 40.0))
    maps = matrices(affine, 4000, 8, 9)
    # Without a shear along x, the second column of the forward map is only turned.
    forward = np.linalg.inv(maps.astype(np.float64))
    turned = np.degrees(np.arctan2(-forward[:, 0, 1], forward[:, 1, 1]))
    assert_uniform(turned, 5, 30)
    cos, sin = np.cos(np.radians(turned)), np.sin(np.radians(turned))
    # Turned back, the first column is 1 and minus the tangent.
    tangent = forward[:, 0, 0] * sin - forward[:, 1, 0] * cos
    assert_uniform(np.degrees(np.arctan(tangent)), -10, 40)


def corners_of(height: int, width: int) -> np.ndarray:
    last_x, last_y = width - 1, height - 1
    return np.array([[0, 0], [last_x, 0], [last_x, last_y], [0, last_y]])


def test_perspective_maps_are_torchvisions() -> None:
    random = np.random.default_rng(0)
    corners = corners_of(20, 31) + random.integers(-7, 8, (50, 4, 2))
    corners[0] = corners_of(20, 31)
    call = jax.jit(rectangle_from, static_argnums=(1, 2))
    maps = np.asarray(call(corners.astype(np.float32), 20, 31))
    np.testing.assert_array_equal(maps[0], np.eye(3))
    for found, places in zip(maps, corners, strict=True):
        # torchvision solves for the eight coefficients.
        rows, values = [], []
        for (x, y), (u, v) in zip(places, corners_of(20, 31), strict=True):
            rows += [
                [x, y, 1, 0, 0, 0, -u * x, -u * y],
                [0, 0, 0, x, y, 1, -v * x, -v * y],
            ]
            values += [u, v]
        expected = np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_random_perspective_moves_corners_inwards_by_whole_pixels() -> None:
    perspective = RandomPerspective(distortion_scale=0.5, p=0.6)
    count, height, width = 4000, 21, 30
    maps = matrices(perspective, count, height, width).astype(np.float64)
    used = (maps != np.eye(3)).any((1, 2))
    # One of 8^4 * 6^4 stays as it is by chance.
    assert abs(used.mean() - 0.6) < 3 * np.sqrt(0.24 / count)
    starts = np.concatenate([corners_of(height, width), np.ones((4, 1))], 1)
    ends = np.einsum("bij,cj->bci", np.linalg.inv(maps[used]), starts)
    ends = ends[..., :2] / ends[..., 2:]
    inwards = (ends - corners_of(height, width)) * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    np.testing.assert_allclose(inwards, np.round(inwards), atol=0.01)
    moves = np.round(inwards).astype(int)
    # int(0.5 * 15) and int(0.5 * 10) at most, each equally often, at each corner.
    for axis, most in ((0, 7), (1, 5)):
        for corner in range(4):
            counts = np.bincount(moves[:, corner, axis])
            assert len(counts) == most + 1
            expected = len(moves) / (most + 1)
            # Fewer than 1 of 10000 samples lie above, for 7 and 5 degrees of freedom.
            assert ((counts - expected) ** 2 / expected).sum() < {7: 29.9, 5: 25.7}[
                most
            ]


@pytest.mark.parametrize(
    "warp",
    [
        RandomAffine(degrees=60.0, translate=(0.2, 0.3), scale=(0.6, 1.5), shear=20.0),
        RandomPerspective(p=0.8, interpolation="nearest"),
        RandomPerspective(),
    ],
)
def test_warps_sample_as_pillow_by_their_matrices(warp: Warp) -> None:
    images = np.concatenate(
        [random_images(10, 20, 31, 3), smooth_images(10, 20, 31, 3)]
    )
    maps = matrices(warp, 20, 20, 31, seed=0)
    assert len(np.unique(maps, axis=0)) > 5
    assert_warped(run(warp, images), images, maps, warp.interpolation)


def test_neighbouring_warps_are_one_warp_of_the_product() -> None:
    images = np.concatenate([random_images(5, 20, 31, 3), smooth_images(5, 20, 31, 3)])
    transforms = (
        RandomAffine(degrees=(20.0, 20.0), scale=(1.3, 1.3), interpolation="bilinear"),
        RandomRotation(degrees=(70.0, 70.0), interpolation="bilinear"),
    )
    found = in_an_epoch(*transforms)(0, images)
    # First the one, then, counter-clockwise, the other.
    both = elementary(-70, (0, 0), 1, (0, 0)) @ elementary(20, (0, 0), 1.3, (0, 0))
    maps = np.stack([np.linalg.inv(both)] * 10)
    maps[:, 2] = [0, 0, 1]
    assert_warped(found, images, maps, "bilinear")


PADS = {"reflect": "symmetric", "nearest": "edge", "constant": "constant"}


@pytest.mark.parametrize("fill_mode", PADS)
def test_random_translation_moves_down_and_right(fill_mode: str) -> None:
    images = random_images(4, 10, 8, 3)
    translation = RandomTranslation(
        height_factor=(0.3, 0.3),
        width_factor=(-0.25, -0.25),
        fill_mode=fill_mode,  # type: ignore[arg-type]
    )
    border = ((0, 0), (9, 9), (9, 9), (0, 0))
    wide = np.pad(images, border, PADS[fill_mode])  # type: ignore[call-overload]
    # 3 pixels down, 2 to the left.
    expected = wide[:, 9 - 3 : 19 - 3, 9 + 2 : 17 + 2]
    np.testing.assert_array_equal(run(translation, images), expected)


@pytest.mark.parametrize("fill_mode", PADS)
@pytest.mark.parametrize(("tall", "wide"), [(0.5, None), (-0.4, 0.2)])
def test_random_zoom_is_pillows_transform_about_the_middle(
    tall: float, wide: float | None, fill_mode: str
) -> None:
    images = np.concatenate([random_images(3, 10, 13, 3), smooth_images(3, 10, 13, 3)])
    zoom = RandomZoom(
        height_factor=(tall, tall),
        width_factor=None if wide is None else (wide, wide),
        fill_mode=fill_mode,  # type: ignore[arg-type]
    )
    # Keras: pixel j of the result shows (width - 1) / 2 * (1 - zoom) + zoom * j.
    scale_y, scale_x = 1 + tall, 1 + (tall if wide is None else wide)
    border = 0 if fill_mode == "constant" else 20
    expected = []
    for image in images:
        padded = np.pad(image, ((border,) * 2, (border,) * 2, (0, 0)), PADS[fill_mode])  # type: ignore[call-overload]
        moved = Image.fromarray(padded).transform(
            (13, 10),
            Image.Transform.AFFINE,
            (
                *(scale_x, 0, 6 * (1 - scale_x) + border + 0.5 - 0.5 * scale_x),
                *(0, scale_y, 4.5 * (1 - scale_y) + border + 0.5 - 0.5 * scale_y),
            ),
            Image.Resampling.BILINEAR,
        )
        expected.append(np.asarray(moved))
    error = np.abs(run(zoom, images) - np.stack(expected))
    assert error.max() <= 1
    # Multiples of a half and a tenth meet whole levels, from which float32 may fall short.
    assert (error > 0).mean() < 0.05


def test_random_zoom_and_translation_draw_for_each_image_and_side() -> None:
    # A slope of 1 across and of 4 down shows the place of the middle and the scales.
    y, x = np.mgrid[:21, :21]
    images = np.repeat((2 * x + 8 * y)[None, ..., None], 2000, axis=0)
    zoom = RandomZoom(height_factor=0.5, width_factor=(-0.3, 0.4), fill_mode="nearest")
    found = run(zoom, images)[..., 0]
    down, right = found[:, 12, 10] - found[:, 8, 10], found[:, 10, 12] - found[:, 10, 8]
    # Within rounding: a level is 1/32 of the one scale and 1/8 of the other.
    assert abs(down.min() / 32 - 0.5) < 0.05
    assert abs(down.max() / 32 - 1.5) < 0.05
    assert abs(right.min() / 8 - 0.7) < 0.15
    assert abs(right.max() / 8 - 1.4) < 0.15
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.08
    kept = run(RandomZoom(height_factor=0.5, fill_mode="nearest"), images)[..., 0]
    down, right = kept[:, 12, 10] - kept[:, 8, 10], kept[:, 10, 12] - kept[:, 10, 8]
    assert np.corrcoef(down, right)[0, 1] > 0.95
    moved = run(RandomTranslation(height_factor=(0.0, 0.2), width_factor=0.1), images)[
        ..., 0
    ]
    level = moved[:, 10, 10] - images[0, 10, 10, 0]
    # Up to 4.2 pixels down, where it is darker, and 2.1 to either side.
    assert -8 * 4.2 - 2 * 2.1 - 1 <= level.min() < -30
    assert 0 < level.max() <= 2 * 2.1


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (VerticalFlip(p=1.5), "VerticalFlip.p must lie in 0..1, not 1.5"),
        (
            VerticalFlip(p=np.nan),
            "VerticalFlip.p must be a number of sensible size, not nan",
        ),
        (
            RandomRotation(degrees=-1.0),
            "RandomRotation.degrees must be 0 or more, not -1.0",
        ),
        (
            RandomRotation(degrees=(9.0, 3.0)),
            "RandomRotation.degrees must be in ascending order, not (9.0, 3.0)",
        ),
        (
            RandomRotation(degrees=np.nan),
            "RandomRotation.degrees must be a number of sensible size, not nan",
        ),
        (
            RandomRotation(degrees=(0.0, np.inf)),
            "RandomRotation.degrees must be a number of sensible size, not inf",
        ),
        (
            RandomRotation(degrees=9.0, fill=0.5),
            "RandomRotation.fill must lie in 0..255, whole, not 0.5",
        ),
        (
            RandomRotation(degrees=9.0, interpolation="box"),  # type: ignore[arg-type]
            "RandomRotation.interpolation is 'box', a str; expected 'nearest' or 'bilinear' "
            "or 'bicubic'",
        ),
        (
            RandomAffine(degrees=(2.0, 1.0)),
            "RandomAffine.degrees must be in ascending order, not (2.0, 1.0)",
        ),
        (
            RandomAffine(degrees=1.0, translate=(0.1, 1.1)),
            "RandomAffine.translate[1] must lie in 0..1, not 1.1",
        ),
        (
            RandomAffine(degrees=1.0, translate=(np.nan, 0.1)),
            "RandomAffine.translate must be a number of sensible size, not nan",
        ),
        (
            RandomAffine(degrees=1.0, scale=(0.0, 1.0)),
            "RandomAffine.scale[0] must be above 0, not 0.0",
        ),
        (
            RandomAffine(degrees=1.0, scale=(1.2, 1.0)),
            "RandomAffine.scale must be in ascending order, not (1.2, 1.0)",
        ),
        (
            RandomAffine(degrees=1.0, shear=90.0),
            "RandomAffine.shear must lie in 0..90, below 90, not 90.0",
        ),
        (
            RandomAffine(degrees=1.0, shear=-5.0),
            "RandomAffine.shear must lie in 0..90, below 90, not -5.0",
        ),
        (
            RandomAffine(degrees=1.0, shear=(1.0, np.nan)),
            "shear must be a number of sensible size, not nan",
        ),
        (
            RandomAffine(degrees=1.0, shear=(-90.0, 1.0)),
            "RandomAffine.shear[0] must lie in -90..90, above -90, below 90, not -90.0",
        ),
        (
            RandomAffine(degrees=1.0, shear=(2.0, 1.0)),
            "RandomAffine.shear must be in ascending order, not (2.0, 1.0)",
        ),
        (RandomAffine(degrees=1.0, shear=(0.0, 1.0, 3.0, 2.0)), "(0.0, 1.0, 3.0, 2.0)"),
        (RandomPerspective(p=-0.5), "RandomPerspective.p must lie in 0..1, not -0.5"),
        (
            RandomPerspective(distortion_scale=1.5),
            "RandomPerspective.distortion_scale must lie in 0..1, not 1.5",
        ),
        (
            RandomPerspective(fill=256.0),
            "RandomPerspective.fill must lie in 0..255, whole, not 256.0",
        ),
        (
            RandomZoom(height_factor=1.5),
            "RandomZoom.height_factor must lie in 0..1, below 1, not 1.5",
        ),
        (RandomZoom(height_factor=1.0), "must lie in 0..1, below 1, not 1.0"),
        (
            RandomZoom(height_factor=(-1.0, 0.0)),
            "[0] must lie in -1..1, above -1, not -1.0",
        ),
        (
            RandomZoom(height_factor=0.1, width_factor=(-0.2, 1.2)),
            "RandomZoom.width_factor[1] must lie in -1..1, above -1, not 1.2",
        ),
        (
            RandomZoom(height_factor=0.1, fill_mode="wrap"),  # type: ignore[arg-type]
            "fill_mode is 'wrap', a str; expected 'constant' or 'nearest' or 'reflect'",
        ),
        (
            RandomTranslation(height_factor=0.1, width_factor=np.nan),
            "RandomTranslation.width_factor must be a number of sensible size, not nan",
        ),
        (
            RandomTranslation(height_factor=-0.1, width_factor=0.1),
            "RandomTranslation.height_factor must lie in 0..1, not -0.1",
        ),
    ],
)
def test_values_out_of_the_range_of_warps_are_named(
    transform: Transform, said: str
) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        RandomRotation(degrees=0.0),
        RandomAffine(degrees=0.0),
        RandomAffine(
            degrees=(-5.0, -5.0),
            translate=(0.0, 1.0),
            scale=(0.5, 0.5),
            shear=(-89.0, 0.0, 0.0, 89.0),
        ),
        RandomPerspective(distortion_scale=1.0, p=1.0),
        RandomZoom(height_factor=(-0.9, 1.0)),
        RandomTranslation(height_factor=1.0, width_factor=(-1.0, -1.0)),
        AlternatingFlip(),
    ],
)
def test_values_at_the_end_of_the_range_of_warps_are_allowed(
    transform: Transform,
) -> None:
    options.check(transform)
    assert transform.random


@pytest.mark.parametrize(
    ("whole", "fraction"),
    [
        (HorizontalFlip(p=1), HorizontalFlip(p=1.0)),
        (VerticalFlip(p=1), VerticalFlip(p=1.0)),
        (RandomPerspective(p=1), RandomPerspective(p=1.0)),
    ],
)
def test_a_probability_may_be_a_whole_number(
    whole: Transform, fraction: Transform
) -> None:
    images = random_images(4, 8, 8, 3).astype(np.float32)
    targets = np.zeros((4, 2), np.float32)
    found, expected = jax.jit(
        lambda key: [each(key, images, targets)[0] for each in (whole, fraction)]
    )(jax.random.key(0))
    np.testing.assert_array_equal(found, expected)
