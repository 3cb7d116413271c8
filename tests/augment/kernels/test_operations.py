"""Every operation of every policy, at every magnitude, against Pillow on 8 bits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from jaxcls.augment.kernels.operations import apply_op
from jaxcls.augment.policies import SIGNED
from jaxcls.errors import UserError

HEIGHT, WIDTH, COUNT = 36, 46, 3
BINS = np.arange(31) / 30
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# The wide ranges of TrivialAugment and the narrower ones of RandAugment.
RANGES: dict[str, list[float]] = {
    "ShearX": [0.99, 0.3],
    "ShearY": [0.99, 0.3],
    "TranslateX": [32.0, 150 / 331 * WIDTH],
    "TranslateY": [32.0, 150 / 331 * HEIGHT],
    "Rotate": [135.0, 30.0],
    "Brightness": [0.99, 0.9],
    "Color": [0.99, 0.9],
    "Contrast": [0.99, 0.9],
    "Sharpness": [0.99, 0.9],
}
OTHERS: dict[str, Any] = {
    "Posterize": np.arange(9.0),
    "Solarize": np.append(255 - BINS * 255, 256.0),
    "AutoContrast": np.zeros(1),
    "Equalize": np.zeros(1),
    "Invert": np.zeros(1),
    "Identity": np.zeros(1),
}


@functools.cache
def pictures() -> dict[str, np.ndarray]:
    """uint8 [COUNT, HEIGHT, WIDTH, 3] of each kind."""
    random = np.random.default_rng(0)
    shape = (COUNT, HEIGHT, WIDTH, 3)
    photographs = [
        photograph[y : y + 4 * HEIGHT : 4, x : x + 4 * WIDTH : 4]
        for photograph in load_sample_images().images
        for y, x in ((10, 20), (200, 300))
    ]
    colours = random.integers(0, 256, (COUNT, 2, 1, 1, 3))
    which = random.integers(0, 2, (COUNT, HEIGHT, WIDTH, 1))
    return {
        "photographs": np.stack(photographs[:COUNT]),
        "random": random.integers(0, 256, shape).astype(np.uint8),
        "constant": np.broadcast_to(colours[:, 0], shape).astype(np.uint8),
        "two values": np.where(which, colours[:, 0], colours[:, 1]).astype(np.uint8),
    }


def magnitudes(name: str) -> np.ndarray:
    """All 31 of each range, with both signs where there are two."""
    if name not in RANGES:
        return np.asarray(OTHERS[name])
    each = np.concatenate([BINS * most for most in RANGES[name]])
    return np.concatenate([each, -each])


def by_pillow(
    name: str, image: np.ndarray, magnitude: float, interpolation: str
) -> np.ndarray:
    picture = Image.fromarray(image)
    resample = RESAMPLING[interpolation]
    whole = float(int(magnitude))  # towards zero
    affine = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -whole, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -whole),
    }
    enhancers: dict[str, Any] = {
        "Brightness": ImageEnhance.Brightness,
        "Color": ImageEnhance.Color,
        "Contrast": ImageEnhance.Contrast,
        "Sharpness": ImageEnhance.Sharpness,
    }
    if name in affine:
        transform = Image.Transform.AFFINE
        result = picture.transform(picture.size, transform, affine[name], resample)
    elif name in enhancers:
        result = enhancers[name](picture).enhance(1 + magnitude)
    elif name == "Rotate":
        result = picture.rotate(magnitude, resample)
    elif name == "Posterize":
        # Pillow 13 refuses to keep no bits at all.
        result = (
            ImageOps.posterize(picture, int(magnitude))
            if magnitude
            else Image.new("RGB", picture.size)
        )
    elif name == "Solarize":
        result = ImageOps.solarize(picture, magnitude)
    else:
        result = {
            "AutoContrast": ImageOps.autocontrast,
            "Equalize": ImageOps.equalize,
            "Invert": ImageOps.invert,
            "Identity": lambda picture: picture,
        }[name](picture)
    return np.asarray(result)


@functools.cache
def compiled(name: str, interpolation: str) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(apply_op, name, interpolation=interpolation))


def compare(
    name: str, interpolation: str, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns magnitudes, and for each the fractions of pixels that are equal and that are
    within one grey level."""
    values = magnitudes(name).astype(np.float32)
    batch = np.tile(images, (len(values), 1, 1, 1)).astype(np.float32)
    each = np.repeat(values, len(images))
    found = np.asarray(compiled(name, interpolation)(batch, each))
    assert found.dtype == np.float32 and (found == np.round(found)).all()
    expected = np.stack(
        [
            by_pillow(name, images[i % len(images)], float(magnitude), interpolation)
            for i, magnitude in enumerate(each)
        ]
    )
    apart = np.abs(found - expected).max(-1).reshape(len(values), -1)
    return values, (apart == 0).mean(1), (apart <= 1).mean(1)


@pytest.mark.parametrize("kind", ["photographs", "random", "constant", "two values"])
@pytest.mark.parametrize(
    "name", [n for n in {**RANGES, **OTHERS} if n not in ("Identity",)]
)
def test_every_operation_is_pillows(name: str, kind: str) -> None:
    values, equal, near = compare(name, "nearest", pictures()[kind])
    assert len(values) == {True: 124, False: len(values)}[name in SIGNED]
    moves = name in RANGES and name[:3] in ("She", "Tra", "Rot")
    # What is asked for at each magnitude; what is found besides is all of the pixels.
    assert (equal if moves else near).min() >= (0.995 if moves else 0.999)
    assert equal.mean() == 1


# The moves themselves are tested with all interpolations in test_pillow_warp.py.
@pytest.mark.parametrize(
    ("name", "interpolation"),
    [
        ("ShearX", "bilinear"),
        ("ShearY", "bicubic"),
        ("TranslateY", "bilinear"),
        ("Rotate", "bicubic"),
        pytest.param("ShearX", "bicubic", marks=pytest.mark.slow),
        pytest.param("ShearY", "bilinear", marks=pytest.mark.slow),
        pytest.param("TranslateY", "bicubic", marks=pytest.mark.slow),
        pytest.param("Rotate", "bilinear", marks=pytest.mark.slow),
    ],
)
def test_moves_with_interpolation_are_pillows(name: str, interpolation: str) -> None:
    for kind in ("photographs", "random"):
        _, equal, near = compare(name, interpolation, pictures()[kind][:1])
        assert near.min() >= 0.99 and equal.mean() > 0.98, kind


@pytest.mark.parametrize("name", [*RANGES, *OTHERS, "SolarizeAdd"])
def test_bytes_are_converted_first(name: str) -> None:
    images = pictures()["photographs"]
    magnitude = np.full(
        len(images), 3.0 if name in ("Posterize", "SolarizeAdd") else 0.5
    )

    def both(levels: jax.Array, floats: jax.Array) -> tuple[jax.Array, jax.Array]:
        return apply_op(name, levels, magnitude), apply_op(name, floats, magnitude)

    found, expected = jax.jit(both)(images, images.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("Posterize", 20.0, "whole numbers in 0..8, not 20"),
        ("Posterize", -3.0, "whole numbers in 0..8, not -3"),
        ("Posterize", 2.5, "whole numbers in 0..8, not 2.5"),
        ("Solarize", 999.0, "numbers in 0..256, not 999"),
        ("SolarizeAdd", -999.0, "whole numbers in 0..255, not -999"),
        ("SolarizeAdd", 1.5, "whole numbers in 0..255, not 1.5"),
        ("Brightness", -5.0, "numbers in -1..1000, not -5"),
        ("TranslateX", 1e20, "numbers in -1e+06..1e+06, not 1e+20"),
        ("Rotate", np.nan, "not nan"),
        ("ShearX", np.inf, "not inf"),
    ],
)
def test_a_magnitude_out_of_range_is_named(name: str, value: float, said: str) -> None:
    images = pictures()["constant"]
    # The last alone is at fault.
    magnitude = np.append(np.zeros(len(images) - 1), value)
    with pytest.raises(UserError) as error:
        apply_op(name, images, magnitude)
    assert str(error.value).startswith(f"{name} takes as magnitudes ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((2, 4, 4, 3), {"interpolation": "lanczos"}, "'bicubic', not 'lanczos'"),
        ((2, 4, 4, 3), {"fill": 999}, "fill must be a grey level in 0..255, not 999"),
        (
            (2, 4, 4, 3),
            {"fill": np.nan},
            "fill must be a grey level in 0..255, not nan",
        ),
        ((2, 4, 3), {}, "[batch, height, width, channels], uint8 or float32"),
        ((2, 4, 4, 2), {}, "images of 1 or 3 channels, not 2"),
        ((2, 4, 4, 4), {}, "images of 1 or 3 channels, not 4"),
    ],
)
def test_bad_arguments_are_named(
    shape: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        apply_op("Color", np.zeros(shape, np.uint8), np.zeros(2), **options)
    assert said in str(error.value)
