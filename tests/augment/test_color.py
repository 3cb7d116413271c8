"""Pixel values, against Pillow and NumPy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from jaxcls import options
from jaxcls.augment import Normalize, ThreeAugment, Transform
from jaxcls.augment.color import (
    ColorJitter,
    GaussianBlur,
    RandomAutoContrast,
    RandomContrast,
    RandomEqualize,
    RandomGamma,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSharpness,
    RandomSolarize,
)
from jaxcls.augment.kernels import pillow_color, platforms
from jaxcls.errors import UserError

FINITE = "a number of sensible size"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,)), (MEAN, (0.25,))]
)
def test_normalize_is_to_tensor_and_normalize(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    # Every grey level in every channel, in a different order in each.
    levels = np.arange(256.0)
    images = np.stack([levels, levels[::-1], np.roll(levels, 100)], -1)
    images = images.reshape(4, 8, 8, 3)
    targets = np.eye(4, dtype=np.float32)
    normalized, kept = jax.jit(Normalize(mean=mean, std=std).__call__)(
        jax.random.key(0), np.float32(images), targets
    )
    assert normalized.dtype == jnp.float32
    reference = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalized, reference, rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(kept, targets)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5, 0.5), (0.5,), "2 values of mean but the images have 3 channels"),
        ((0.5,), (0.5, 0.5), "2 values of std but the images have 3 channels"),
        ((), (0.5,), "0 values of mean but the images have 3 channels"),
    ],
)
def test_a_wrong_number_of_channels_is_named(
    mean: tuple[float, ...], std: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Normalize(mean=mean, std=std)(
            jax.random.key(0), np.zeros((1, 2, 2, 3)), np.zeros((1, 2))
        )


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (0.0,), r"Normalize.std must lie in 1e-06..1, .*, not 0.0."),
        ((0.5,), (0.2, -0.1, 0.2), r"Normalize.std must lie in .*, not -0.1."),
        ((0.5,), (1e-45,), r"Normalize.std must lie in 1e-06..1, .*, not 1e-45."),
        (
            (0.5,),
            (np.nan,),
            r"Normalize.std must be a number of sensible size, not nan.",
        ),
        (
            (0.5,),
            (np.inf,),
            r"Normalize.std must be a number of sensible size, not inf.",
        ),
        # The way out of the commonest mistake: numbers for grey levels 0..255.
        (
            (0.5,),
            (0.2, 58.4),
            r"Normalize.std .* 1 stands for grey level 255, not 58.4",
        ),
        (
            (0.5, 123.7),
            (0.2,),
            r"Normalize.mean must lie in 0..1, where .*, not 123.7.",
        ),
        ((-0.1,), (0.2,), r"Normalize.mean must lie in 0..1, where .*, not -0.1."),
        (
            (np.nan,),
            (0.2,),
            r"Normalize.mean must be a number of sensible size, not nan.",
        ),
        ((), (0.2,), r"Normalize.mean must be not empty, not \(\)."),
        ((0.5,), (), r"Normalize.std must be not empty, not \(\)."),
    ],
)
def test_values_out_of_range_are_named(
    mean: tuple[float, ...], std: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        options.check(Normalize(mean=mean, std=std))


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    options.check(Normalize(mean=(0.0, 1.0), std=(1e-6, 1.0)))
    options.check(Normalize(mean=(0.5,), std=(0.2, 0.1, 0.2)))


def run(transform: Transform, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Applies one transform, compiled, to images as the pipeline hands them over."""
    targets = np.zeros((len(images), 2), np.float32)
    call = jax.jit(transform.__call__)
    changed = call(jax.random.key(seed), images.astype(np.float32), targets)[0]
    assert changed.dtype == jnp.float32
    return np.asarray(changed)


def colourful_images(batch: int) -> np.ndarray:
    """Dull, so that they can be stretched; uint8 [batch, 16, 17, 3]."""
    rng = np.random.default_rng(0)
    return rng.integers(20, 200, (batch, 16, 17, 3), dtype=np.uint8)


def assert_uniform(draws: np.ndarray, low: float, high: float) -> None:
    """Kolmogorov and Smirnov's test, at 99.9 %."""
    share = np.sort((draws - low) / (high - low))
    assert 0 <= share[0]
    assert share[-1] <= 1
    steps = np.arange(len(draws) + 1) / len(draws)
    distance = max(np.abs(share - steps[1:]).max(), np.abs(share - steps[:-1]).max())
    assert distance < 1.95 / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("transform", "pillow"),
    [
        (RandomGrayscale(p=0.3), lambda image: image.convert("L").convert("RGB")),
        (
            RandomSolarize(threshold=100.0, p=0.3),
            lambda image: ImageOps.solarize(image, 100),
        ),
        (RandomPosterize(bits=3, p=0.3), lambda image: ImageOps.posterize(image, 3)),
        (RandomEqualize(p=0.3), ImageOps.equalize),
        (RandomAutoContrast(p=0.3), ImageOps.autocontrast),
        (RandomInvert(p=0.3), ImageOps.invert),
        (
            RandomSharpness(factor=1.7, p=0.3),
            lambda image: ImageEnhance.Sharpness(image).enhance(1.7),
        ),
    ],
)
def test_some_images_are_changed_as_pillow_does(
    transform: Transform, pillow: Callable[[Image.Image], Image.Image]
) -> None:
    images = colourful_images(500)
    changed = run(transform, images)
    expected = np.stack([pillow(Image.fromarray(image)) for image in images])
    was_changed = (changed == expected).all((1, 2, 3))
    was_kept = (changed == images).all((1, 2, 3))
    # Every image is whole: one or the other, never a mixture.
    np.testing.assert_array_equal(was_changed, ~was_kept)
    # Three standard deviations of a binomial of 500 draws.
    assert abs(was_changed.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 500)


@pytest.mark.parametrize(
    ("transform", "p"),
    [
        (ColorJitter(brightness=0.5), 1.0),
        (RandomGrayscale(), 0.1),
        (GaussianBlur(kernel_size=3, sigma=(1.0, 2.0)), 1.0),
        (RandomSolarize(), 0.5),
        (RandomPosterize(bits=2), 0.5),
        (RandomEqualize(), 0.5),
        (RandomAutoContrast(), 0.5),
        (RandomInvert(), 0.5),
        (RandomSharpness(factor=2.0), 0.5),
        (RandomGamma(gamma=(2.0, 3.0)), 1.0),
    ],
)
def test_images_are_changed_as_often_as_by_default(
    transform: Transform, p: float
) -> None:
    images = colourful_images(1) * np.ones((500, 1, 1, 1), np.uint8)
    was_changed = (run(transform, images) != images).any((1, 2, 3))
    # A drawn brightness may be the image's own.
    allowed = 3 * np.sqrt(p * (1 - p) / 500) + 0.01
    assert abs(was_changed.mean() - p) < allowed


def drawn(
    monkeypatch: pytest.MonkeyPatch, name: str, transform: Transform, batch: int = 2000
) -> np.ndarray:
    """The amounts that a transform hands to a function of pillow_color, [batch]."""
    images = np.zeros((batch, 1, 1, 1))

    def amounts_as_images(images: jax.Array, *amounts: jax.Array) -> jax.Array:
        return images + amounts[-1].reshape(-1, 1, 1, 1)

    monkeypatch.setattr(pillow_color, name, amounts_as_images)
    monkeypatch.setattr(platforms, "LEVELS", jnp.float32)  # amounts are no grey levels
    return run(transform, images).reshape(batch)


@pytest.mark.parametrize(
    ("name", "transform", "low", "high"),
    [
        ("brightness", ColorJitter(brightness=0.4), 0.6, 1.4),
        ("brightness", ColorJitter(brightness=1.5), 0.0, 2.5),
        ("contrast", ColorJitter(contrast=0.4), 0.6, 1.4),
        ("contrast", ColorJitter(contrast=3.0), 0.0, 4.0),
        ("saturation", ColorJitter(saturation=0.2), 0.8, 1.2),
        ("hue", ColorJitter(hue=0.5), -0.5, 0.5),
        ("hue", ColorJitter(hue=0.1), -0.1, 0.1),
        ("gaussian_blur", GaussianBlur(kernel_size=3), 0.1, 2.0),
        ("gaussian_blur", GaussianBlur(kernel_size=3, sigma=(1.0, 1.5)), 1.0, 1.5),
        ("gamma", RandomGamma(gamma=(0.5, 3.0)), 0.5, 3.0),
    ],
)
def test_each_image_has_an_amount_of_its_own_from_the_whole_range(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    transform: Transform,
    low: float,
    high: float,
) -> None:
    amounts = drawn(monkeypatch, name, transform)
    assert_uniform(amounts, low, high)
    # Neighbours are independent: the correlation's standard deviation is 0.022.
    assert abs(np.corrcoef(amounts[1:], amounts[:-1])[0, 1]) < 0.08


def test_the_amounts_of_color_jitter_are_independent() -> None:
    # Two changes whose amounts can be told apart afterwards, in either order.
    levels = np.tile(np.uint8([[40, 120, 120, 200]]), (2000, 1)).reshape(-1, 2, 2, 1)
    changed = run(ColorJitter(brightness=0.2, contrast=0.2), levels).reshape(-1, 4)
    brightness = changed.mean(1)
    contrast = (changed[:, 3] - changed[:, 0]) / changed.mean(1)
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.08
    assert brightness.std() > 10
    assert contrast.std() > 0.1


def test_color_jitter_draws_each_order_equally_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each change leaves a digit behind.
    monkeypatch.setattr(platforms, "LEVELS", jnp.float32)  # beyond 255
    names = "brightness", "contrast", "saturation", "hue"
    for digit, name in enumerate(names, 1):
        monkeypatch.setattr(
            pillow_color, name, lambda images, _, digit=digit: 10 * images + digit
        )
    transform = ColorJitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.1)
    images, targets = np.zeros((2, 1, 1, 1), np.float32), np.zeros((2, 2))
    call = jax.jit(
        lambda keys: jax.lax.map(lambda key: transform(key, images, targets)[0], keys)
    )
    orders = np.asarray(call(jax.random.split(jax.random.key(0), 1200)))
    orders = orders.reshape(1200, 2)
    np.testing.assert_array_equal(orders[:, 0], orders[:, 1])  # one for the batch
    found, counts = np.unique(orders[:, 0], return_counts=True)
    assert all(sorted(str(int(order))) == list("1234") for order in found)
    assert len(found) == 24
    # 99.9 % of the chi-square distribution with 23 degrees of freedom lie below 49.7.
    assert ((counts - 50) ** 2 / 50).sum() < 49.7


def test_color_jitter_is_pillows() -> None:
    # With one change alone, every image is Pillow's for some factor.
    images = colourful_images(20)
    factors = np.arange(0.7, 1.3, 0.0005)
    for name, enhance in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        changed = run(ColorJitter(**{name: 0.3}), images)  # type: ignore[arg-type]
        for image, result in zip(images, changed, strict=True):
            enhancer = enhance(Image.fromarray(image))
            # The total brightness, contrast or colour grows with the factor: halve.
            low, high = 0, len(factors) - 1
            spread = result.std() if name != "brightness" else result.mean()
            while low < high:
                middle = (low + high) // 2
                candidate = np.asarray(enhancer.enhance(factors[middle]))
                reached = candidate.std() if name != "brightness" else candidate.mean()
                low, high = (middle + 1, high) if reached < spread else (low, middle)
            nearest = np.asarray(enhancer.enhance(factors[low])).astype(int)
            assert np.abs(nearest - result).max() <= 1


def test_random_contrast_is_keras() -> None:
    rng = np.random.default_rng(0)
    # Means that differ by channel, and levels that are not clipped at twice the contrast.
    images = rng.integers(0, 80, (2000, 8, 8, 3)) + np.array([50, 60, 90])
    changed = run(RandomContrast(factor=0.5), images)
    mean = images.mean((1, 2), keepdims=True)
    away = images - mean
    factors = (changed * away).sum((1, 2, 3)) / (away**2).sum((1, 2, 3))
    # Rounding hides a factor's last digits: one nearby makes every pixel of the image.
    for image, nearly in zip(range(100), factors, strict=False):
        nearby = nearly + np.arange(-0.02, 0.02, 1e-4).reshape(-1, 1, 1, 1)
        distance = np.abs(mean[image] + nearby * away[image] - changed[image])
        assert distance.max((1, 2, 3)).min() < 0.51
    np.testing.assert_array_equal(changed, np.round(changed))
    assert_uniform(factors, 0.49, 1.51)  # as exactly as they are known


def test_random_contrast_stays_within_the_grey_levels() -> None:
    images = np.tile(np.float32([0, 0, 255, 255]).reshape(1, 2, 2, 1), (200, 1, 1, 1))
    changed = run(RandomContrast(factor=1.0), images)
    assert changed.min() == 0
    assert changed.max() == 255
    assert (changed[:, 0, 0, 0] > 100).any()  # nearly flat


@pytest.mark.parametrize(
    "transform",
    [
        ColorJitter(),
        ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, p=0.0),
        RandomContrast(factor=0.0),
        RandomGrayscale(p=0.0),
        GaussianBlur(kernel_size=9, p=0.0),
        GaussianBlur(kernel_size=1),
        RandomSolarize(p=0.0),
        RandomSolarize(threshold=256.0, p=1.0),
        RandomPosterize(bits=1, p=0.0),
        RandomPosterize(bits=8, p=1.0),
        RandomEqualize(p=0.0),
        RandomAutoContrast(p=0.0),
        RandomInvert(p=0.0),
        RandomSharpness(factor=0.0, p=0.0),
        RandomSharpness(factor=1.0, p=1.0),
        RandomGamma(gamma=(0.0, 9.0), p=0.0),
        RandomGamma(gamma=(1.0, 1.0)),
    ],
)
def test_what_changes_nothing_costs_nothing(transform: Transform) -> None:
    options.check(transform)
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 16, 17, 3), jnp.float32)
    targets = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    program = jax.make_jaxpr(transform.__call__)(key, images, targets).jaxpr
    # What is not part of a result is not computed.
    assert program.outvars[0] is program.invars[1]


EVERY = (
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
    RandomContrast(factor=0.3),
    RandomGrayscale(p=0.5),
    GaussianBlur(kernel_size=5),
    RandomSolarize(),
    RandomPosterize(bits=4),
    RandomEqualize(),
    RandomAutoContrast(),
    RandomInvert(),
    RandomSharpness(factor=2.0),
    RandomGamma(gamma=(0.5, 2.0)),
)


@pytest.mark.parametrize("transform", EVERY, ids=lambda node: type(node).__name__)
def test_the_key_and_the_targets(transform: Transform) -> None:
    assert transform.random
    assert transform.on_grey_levels
    options.check(transform)
    images = np.float32(colourful_images(16))
    targets = np.eye(16, dtype=np.float32)
    call = jax.jit(transform.__call__)
    first, again, other = (
        jax.device_get(call(jax.random.key(seed), images, targets))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(again[0], first[0])
    assert (other[0] != first[0]).any()
    np.testing.assert_array_equal(first[0], np.round(first[0]))
    np.testing.assert_array_equal(first[1], targets)


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


def test_two_devices_give_the_same_bits_as_one_and_exchange_none() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def every(rng: jax.Array, images: jax.Array) -> jax.Array:
        targets = jnp.zeros((len(images), 2))
        for position, transform in enumerate(EVERY):
            key = jax.random.fold_in(rng, position)
            images = transform(key, images, targets)[0]
        return images

    images = np.float32(colourful_images(4))
    rng = jax.random.key(0)
    compiled = (
        jax.jit(every, in_shardings=(everywhere, spread), out_shardings=spread)
        .lower(rng, images)
        .compile()
    )
    text = compiled.as_text()
    assert text is not None
    assert "num_partitions=2" in text  # or there would be nothing to find
    assert not [collective for collective in COLLECTIVES if collective in text]
    both = compiled(jax.device_put(rng, everywhere), jax.device_put(images, spread))
    np.testing.assert_array_equal(both, jax.jit(every)(rng, images))


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        *(
            (
                ColorJitter(**{name: value}),  # type: ignore[arg-type]
                f"ColorJitter.{name} must be {wanted}, not {value}.",
            )
            for name in ("brightness", "contrast", "saturation")
            for value, wanted in (
                (-0.1, "0 or more"),
                (np.nan, FINITE),
                (np.inf, FINITE),
            )
        ),
        (ColorJitter(hue=0.6), "ColorJitter.hue must lie in 0..0.5, not 0.6."),
        (ColorJitter(hue=-0.1), "ColorJitter.hue must lie in 0..0.5, not -0.1."),
        (
            ColorJitter(hue=np.nan),
            "ColorJitter.hue must be a number of sensible size, not nan.",
        ),
        (RandomContrast(factor=1.1), "RandomContrast.factor must lie in 0..1, not 1.1"),
        (
            RandomContrast(factor=np.nan),
            "factor must be a number of sensible size, not nan.",
        ),
        (GaussianBlur(kernel_size=4), "GaussianBlur.kernel_size must be an odd number"),
        (GaussianBlur(kernel_size=-1), "of pixels, 1 or more, not -1."),
        *(
            (
                GaussianBlur(kernel_size=3, sigma=sigma),
                f"GaussianBlur.sigma{said}.",
            )
            for sigma, said in (
                ((0.0, 1.0), "[0] must be above 0, not 0.0"),
                ((2.0, 1.0), " must be in ascending order, not (2.0, 1.0)"),
                ((np.nan, 1.0), f" must be {FINITE}, not nan"),
                ((1.0, np.inf), f" must be {FINITE}, not inf"),
            )
        ),
        (RandomSolarize(threshold=257.0), "threshold must lie in 0..256, not 257.0."),
        (RandomSolarize(threshold=-1.0), "threshold must lie in 0..256, not -1.0."),
        (RandomPosterize(bits=0), "RandomPosterize.bits must lie in 1..8, not 0."),
        (RandomPosterize(bits=9), "RandomPosterize.bits must lie in 1..8, not 9."),
        (RandomSharpness(factor=-1.0), "factor must be 0 or more, not -1.0"),
        *(
            (
                RandomGamma(gamma=gamma),
                f"RandomGamma.gamma{said}.",
            )
            for gamma, said in (
                ((-0.1, 1.0), "[0] must be 0 or more, not -0.1"),
                ((2.0, 1.0), " must be in ascending order, not (2.0, 1.0)"),
                ((1.0, np.nan), f" must be {FINITE}, not nan"),
                ((1.0, np.inf), f" must be {FINITE}, not inf"),
            )
        ),
        *(
            (transform, f"{type(transform).__name__}.p must {wanted}, not {p}.")
            for p, wanted in (
                (-0.1, "lie in 0..1"),
                (1.1, "lie in 0..1"),
                (np.nan, f"be {FINITE}"),
            )
            for transform in (
                ColorJitter(p=p),
                RandomGrayscale(p=p),
                GaussianBlur(kernel_size=3, p=p),
                RandomSolarize(p=p),
                RandomPosterize(bits=1, p=p),
                RandomEqualize(p=p),
                RandomAutoContrast(p=p),
                RandomInvert(p=p),
                RandomSharpness(factor=1.0, p=p),
                RandomGamma(gamma=(1.0, 1.0), p=p),
            )
        ),
    ],
)
def test_options_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize(
    "transform",
    [
        ColorJitter(contrast=0.5),
        ColorJitter(saturation=0.5),
        ColorJitter(hue=0.5),
        RandomGrayscale(p=1.0),
        ThreeAugment(),
    ],
    ids=repr,
)
def test_colours_have_1_or_3_channels(transform: Transform, channels: int) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, 8, 8, channels), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    with pytest.raises(UserError, match=f"1 or 3 channels, not {channels}"):
        jax.eval_shape(transform, key, images, targets)
