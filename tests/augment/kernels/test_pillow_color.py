"""Grey levels, against Pillow and torchvision's formulas, bit for bit."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxcls.augment.kernels import pillow_color
from jaxcls.augment.kernels.tpu import products
from jaxcls.errors import UserError

HEIGHT, WIDTH = 24, 31

Change = Callable[..., jax.Array]


def example_images(channels: int) -> np.ndarray:
    """Images of every character, uint8 [8, 24, 31, channels]."""
    rng = np.random.default_rng(0)
    shape = HEIGHT, WIDTH, channels
    y, x, c = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    # As in photographs: soft, noisy, in part too dark or too bright.
    wave = np.sin(0.1 * x * (c + 1)) * np.cos(0.07 * y + c)
    photographs = [
        middle + reach * wave + rng.normal(0, 8, shape)
        for middle, reach in ((127, 100), (60, 90), (220, 80), (100, 20))
    ]
    two = np.array([[20, 31, 2], [190, 218, 93]])[:, :channels]
    images = [
        *photographs,
        rng.integers(0, 256, shape),
        np.where(rng.random(shape) < 0.3, two[0], two[1]),
        np.full(shape, 77),
        np.where(x + y > 30, 255, 0),
    ]
    return np.stack(images).clip(0, 255).astype(np.uint8)


def run(change: Change, images: np.ndarray, *amounts: np.ndarray) -> np.ndarray:
    """Changes uint8 images, compiled; fails unless whole grey levels 0..255 come out."""
    arrays = [jnp.asarray(amount) for amount in amounts]
    changed = jax.jit(change)(images.astype(np.float32), *arrays)
    assert changed.dtype == jnp.float32
    levels = np.asarray(changed).astype(np.uint8)
    np.testing.assert_array_equal(levels, changed)
    return levels


def each(
    change: Callable[..., Image.Image], images: np.ndarray, *amounts: np.ndarray
) -> np.ndarray:
    """Changes the images one after the other with Pillow."""
    changed = [
        np.asarray(change(to_pillow(image), *amount))
        for image, *amount in zip(images, *amounts, strict=True)
    ]
    return np.stack(changed).reshape(images.shape)


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def with_amounts(
    images: np.ndarray, amounts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns every image with every amount, as one batch."""
    return np.repeat(images, len(amounts), 0), np.tile(amounts, len(images))


# Steps of 0.03, as AutoAugment has them: many products are a hair beside a whole grey level.
FACTORS = np.float32(1 + 0.03 * np.arange(-33, 34))
FACTORS = np.append(
    FACTORS, np.float32([0, 1e-8, 0.5, 0.99999994, 1.0000001, 7.3, 300])
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("change", "enhance"),
    [
        (pillow_color.brightness, ImageEnhance.Brightness),
        (pillow_color.saturation, ImageEnhance.Color),
        (pillow_color.contrast, ImageEnhance.Contrast),
        (pillow_color.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows_to_the_last_bit(
    change: Change, enhance: type[ImageEnhance.Brightness], channels: int
) -> None:
    images, factors = with_amounts(example_images(channels), FACTORS)
    expected = each(lambda image, by: enhance(image).enhance(by), images, factors)
    np.testing.assert_array_equal(run(change, images, factors), expected)


def test_the_mean_for_contrast_is_rounded_half_up() -> None:
    # 3 grey levels on 2 pixels, 5 on 2 and 4 on 3: means of 1.5, 2.5 and 1.333.
    for levels in ([1, 2], [2, 3], [1, 1, 2]):
        images = np.uint8(levels).reshape(1, 1, -1, 1)
        expected = each(lambda image: ImageEnhance.Contrast(image).enhance(0), images)
        np.testing.assert_array_equal(
            run(pillow_color.contrast, images, np.zeros(1)), expected
        )


def test_sharpness_leaves_images_without_an_inside_alone() -> None:
    images = example_images(3)
    for part in (images[:, :2], images[:, :, :2], images[:, :1, :1]):
        factors = np.full(len(part), 0.3)
        np.testing.assert_array_equal(run(pillow_color.sharpness, part, factors), part)
        expected = each(
            lambda image, by: ImageEnhance.Sharpness(image).enhance(by), part, factors
        )
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("change", "pillow"),
    [
        (pillow_color.autocontrast, ImageOps.autocontrast),
        (pillow_color.equalize, ImageOps.equalize),
        (pillow_color.invert, ImageOps.invert),
        (
            pillow_color.grayscale,
            lambda image: image.convert("L").convert(image.mode),
        ),
    ],
)
def test_changes_without_amount_are_pillows_to_the_last_bit(
    change: Change, pillow: Callable[[Image.Image], Image.Image], channels: int
) -> None:
    images = example_images(channels)
    np.testing.assert_array_equal(run(change, images), each(pillow, images))


def test_grayscale_is_pillows_for_every_colour() -> None:
    colours = some_colours()
    expected = each(lambda image: image.convert("L").convert("RGB"), colours)
    np.testing.assert_array_equal(run(pillow_color.grayscale, colours), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_is_pillows_at_every_threshold(channels: int) -> None:
    thresholds = np.append(np.arange(257), [0.5, 127.5, 254.9]).astype(np.float32)
    images, thresholds = with_amounts(example_images(channels)[[0, 4]], thresholds)
    expected = each(ImageOps.solarize, images, thresholds)
    np.testing.assert_array_equal(
        run(pillow_color.solarize, images, thresholds), expected
    )


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_posterize_is_pillows_at_every_number_of_bits(kind: type) -> None:
    images, bits = with_amounts(example_images(3), np.arange(1, 9))
    expected = each(lambda image, by: ImageOps.posterize(image, int(by)), images, bits)
    np.testing.assert_array_equal(
        run(pillow_color.posterize, images, bits.astype(kind)), expected
    )
    # Pillow since 13 refuses 0 bits; before, they made black.
    assert not run(pillow_color.posterize, images, np.zeros(len(images), kind)).any()


# Every fourth pair has nearly every level as its least, and as its greatest.
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_autocontrast_is_pillows_for_every_least_and_greatest_level(step: int) -> None:
    low, high = (levels[::step] for levels in np.triu_indices(256, 1))
    assert len(np.unique(low)) > 250 and len(np.unique(high)) > 250
    levels = np.arange(256)[None]
    images = np.clip(levels, low[:, None], high[:, None]).astype(np.uint8)
    images = images.reshape(-1, 16, 16, 1)
    expected = each(ImageOps.autocontrast, images)
    np.testing.assert_array_equal(run(pillow_color.autocontrast, images), expected)
    # Pillow loses one level of white that often: not a rare case.
    assert (expected.max((1, 2, 3)) == 254).mean() > 0.1


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2),  # fewer pixels than levels
        (15, 17),  # 255 pixels: one to a step if the greatest level has none
        (16, 16),
        (40, 40),
    ],
)
def test_equalize_is_pillows_for_lopsided_histograms(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    spread = rng.random((12, *shape, 3))
    power = np.array([0.01, 0.1, 0.5, 1, 2, 4, 8, 16, 50, 99, 200, 400])
    images = np.uint8(255 * spread ** power[:, None, None, None])
    np.testing.assert_array_equal(
        run(pillow_color.equalize, images), each(ImageOps.equalize, images)
    )


def test_pixels_and_lines_are_smoothed_and_stretched_alike() -> None:
    images = example_images(3)
    smooth = each(lambda image: image.filter(ImageFilter.SMOOTH), images)
    stretched = each(ImageOps.autocontrast, images)
    # As on CPUs, three columns to a pixel, and as elsewhere.
    for shape, step in ((3 * WIDTH, 1), 3), ((WIDTH, 3), 1):
        levels = images.reshape(len(images), HEIGHT, *shape)
        found = run(functools.partial(pillow_color._smooth_inside, step=step), levels)
        np.testing.assert_array_equal(found.reshape(images.shape), smooth)
        low, high = (
            np.broadcast_to(most(images, axis=(1, 2), keepdims=True), images.shape)
            .reshape(levels.shape)[:, :1]
            .astype(np.float32)
            for most in (np.min, np.max)
        )
        found = run(pillow_color._stretch, levels, low, high)
        np.testing.assert_array_equal(found.reshape(images.shape), stretched)


def some_colours() -> np.ndarray:
    """All reds and greens with each seventh blue, uint8 [37, 256, 256, 3]."""
    colours = np.stack(
        np.meshgrid(
            np.arange(0, 256, 7), np.arange(256), np.arange(256), indexing="ij"
        ),
        -1,
    )
    return colours[..., ::-1].astype(np.uint8)


def turn_hue(image: Image.Image, factor: float) -> Image.Image:
    """torchvision's rule: the hue is a byte that runs over."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(factor * 255)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def test_hue_is_pillows_for_all_kinds_of_colours() -> None:
    colours = some_colours()
    factors = np.float32(np.linspace(-0.5, 0.5, len(colours)))
    expected = each(turn_hue, colours, factors)
    np.testing.assert_array_equal(run(pillow_color.hue, colours, factors), expected)


def test_hue_saturation_value_is_pillows() -> None:
    # Blue in steps of 7 hides no rule of rounding: all three take all places.
    colours = np.concatenate([np.roll(some_colours()[::6], by, -1) for by in range(3)])
    converted = run(
        lambda images: jnp.stack(pillow_color._hue_saturation_value(images), -1),
        colours,
    )
    expected = each(lambda image: image.convert("HSV"), colours)
    np.testing.assert_array_equal(converted, expected)
    back = run(
        lambda images: pillow_color._red_green_blue(
            *(images[..., i] for i in range(3))
        ),
        colours,
    )
    expected = np.stack(
        [np.asarray(Image.fromarray(c, "HSV").convert("RGB")) for c in colours]
    )
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_is_torchvisions_at_every_turn(channels: int) -> None:
    factors = np.float32(np.append(np.linspace(-0.5, 0.5, 41), [0.1, 0.2, -0.4]))
    images, factors = with_amounts(example_images(channels), factors)
    np.testing.assert_array_equal(
        run(pillow_color.hue, images, factors), each(turn_hue, images, factors)
    )


def gamma_levels(exponent: float) -> np.ndarray:
    """What torchvision makes of each grey level, before it cuts off the decimals."""
    return 255.999 * (np.arange(256) / 255) ** float(exponent)


def test_gamma_is_torchvisions() -> None:
    exponents = np.float32(np.concatenate([np.arange(0, 4, 0.01), [10, 77]]))
    images = np.tile(
        np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (402, 1, 1, 1)
    )
    reference = np.stack([gamma_levels(exponent) for exponent in exponents])
    changed = run(pillow_color.gamma, images, exponents).reshape(reference.shape)
    other = changed != np.floor(reference)
    assert other.mean() < 1e-3
    # Where it is another level, then for a rounding error.
    np.testing.assert_allclose(changed[other], reference[other] - 0.5, atol=0.5002)
    np.testing.assert_array_equal(changed[100], np.arange(256))  # exponent 1


def blurred(image: np.ndarray, kernel_size: int, sigma: float) -> np.ndarray:
    """torchvision's blur in double precision, not yet rounded."""
    reach = kernel_size // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, (0, 1))
    return np.einsum("hwcij,ij->hwc", windows, kernel)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 23, 47])
def test_gaussian_blur_is_torchvisions(kernel_size: int, channels: int) -> None:
    images = example_images(channels)
    sigmas = np.float32([0.1, 0.31, 0.5, 1, 2, 5, 0.77, 20])
    reference = np.stack(
        [
            blurred(image, kernel_size, float(sigma))
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    changed = run(
        lambda images, sigma: pillow_color.gaussian_blur(images, kernel_size, sigma),
        images,
        sigmas,
    )
    assert (changed == np.round(reference)).mean() > 0.999
    np.testing.assert_allclose(changed, reference, atol=0.5001)


def test_a_kernel_beyond_the_mirrored_image_is_an_error() -> None:
    images = jax.ShapeDtypeStruct((1, 9, 5, 1), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1,), jnp.float32)

    def blur(size: int) -> jax.Array:
        return jax.eval_shape(
            lambda images, sigma: pillow_color.gaussian_blur(images, size, sigma),
            images,
            sigma,
        )

    with pytest.raises(UserError, match=r"kernel_size=11 .* 9x5 .* below 10"):
        blur(11)
    assert blur(9).shape == images.shape


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


def test_no_image_leaves_its_device() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32, sharding=spread)
    amounts = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=spread)

    def everything(images: jax.Array, amounts: jax.Array) -> jax.Array:
        images = pillow_color.brightness(images, amounts)
        images = pillow_color.saturation(images, amounts)
        images = pillow_color.contrast(images, amounts)
        images = pillow_color.sharpness(images, amounts)
        images = pillow_color.posterize(images, 8 * amounts)
        images = pillow_color.solarize(images, 255 * amounts)
        images = pillow_color.autocontrast(images)
        images = pillow_color.equalize(images)
        images = pillow_color.hue(pillow_color.invert(images), amounts)
        images = pillow_color.gamma(images, amounts)
        images = pillow_color.gaussian_blur(images, 3, amounts)
        levels = images.astype(jnp.int32).reshape(4, -1, 3)
        counts = products.histogram(levels)
        table = (counts % 256).astype(jnp.float32)
        return pillow_color.grayscale(images) + products.look_up(table, levels).reshape(
            images.shape
        )

    program = jax.jit(everything, out_shardings=spread).lower(images, amounts)
    text = program.compile().as_text()
    assert text is not None
    assert "num_partitions=2" in text  # or there would be nothing to find
    assert not [collective for collective in COLLECTIVES if collective in text]


@pytest.mark.torch
@pytest.mark.parametrize("channels", [1, 3])
def test_the_references_here_are_torchvisions(channels: int) -> None:
    from tests.references.torch_models import torchvision

    functional = torchvision.transforms.functional
    for image in example_images(channels):
        pillow = to_pillow(image)
        for factor in (-0.5, -0.31, -0.05, 0.0, 0.02, 0.2, 0.5):
            np.testing.assert_array_equal(
                functional.adjust_hue(pillow, factor), turn_hue(pillow, factor)
            )
        for exponent in (0.0, 0.3, 1.0, 2.2, 5.0):
            expected = np.floor(gamma_levels(exponent))[image]
            changed = np.asarray(functional.adjust_gamma(pillow, exponent))
            np.testing.assert_array_equal(changed.reshape(image.shape), expected)
        for kernel_size, sigma in ((3, 0.1), (5, 1.1), (23, 2.0), (23, 9.0)):
            changed = np.asarray(
                functional.gaussian_blur(pillow, kernel_size, sigma)
            ).reshape(image.shape)
            reference = blurred(image, kernel_size, sigma)
            np.testing.assert_allclose(changed, reference, atol=0.5001)
