"""The preprocessing of published weights, against what torchvision made and against Pillow."""

import functools
import hashlib
import json
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcls.augment import apply
from jaxcls.augment.published import published_preprocess, published_transform
from jaxcls.errors import UserError
from tests.references.make_preprocessing import PATH, formula_image

CASES = json.loads(PATH.read_text())["cases"]
SMALL: dict[str, Any] = {
    "resize": 20,
    "size": 16,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}

each_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


def on_the_device(images: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
    """Applies the transform, compiled, to uint8 [batch, height, width, 3]."""
    call = jax.jit(functools.partial(apply, published_transform(**arguments)))
    result, _ = call(jax.random.key(0), images, np.zeros((len(images), 2), np.float32))
    return np.asarray(result)


def grey_levels(result: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
    """Undoes the normalisation; fails unless all but rounding are whole grey levels."""
    levels = 255 * (result.astype(np.float64) * arguments["std"] + arguments["mean"])
    whole = np.round(levels)
    np.testing.assert_allclose(levels, whole, rtol=0, atol=1e-3)
    return whole


@each_case
def test_the_host_makes_the_bits_that_torchvision_makes(case: dict[str, Any]) -> None:
    image = Image.fromarray(formula_image(*case["shape"]))
    result = published_preprocess(image, **case["arguments"])
    size = case["arguments"]["size"]
    assert result.dtype == np.float32
    assert result.shape == (size, size, 3)
    for row, column, *pixel in case["pixels"]:
        np.testing.assert_array_equal(result[row, column], np.float32(pixel))
    bits = result.astype("<f4").tobytes()
    assert hashlib.sha256(bits).hexdigest() == case["sha256"]


@each_case
def test_the_device_makes_the_grey_levels_of_the_host(case: dict[str, Any]) -> None:
    array, arguments = formula_image(*case["shape"]), case["arguments"]
    host = published_preprocess(Image.fromarray(array), **arguments)
    # An image of a batch does not depend on its neighbours.
    device, mirrored = on_the_device(np.stack([array, array[::-1]]), arguments)
    np.testing.assert_array_equal(
        grey_levels(device, arguments), grey_levels(host, arguments)
    )
    # Float32 rounds the normalisation, of values up to 2.7, in another way.
    np.testing.assert_allclose(device, host, rtol=0, atol=1e-6)
    assert (mirrored != device).any()


def test_tall_images_differ_by_a_grey_level_at_most_whatever_pillows_version() -> None:
    # Smooth, as photographs are: rounding after the first pass cannot be amplified.
    y, x = np.mgrid[:150, :60]
    waves = np.stack([np.sin(0.3 * y), np.cos(0.4 * x), np.sin(0.2 * x + 0.1 * y)], -1)
    array = np.round(127.5 * (1 + waves)).astype(np.uint8)
    host = published_preprocess(Image.fromarray(array), **SMALL)
    (device,) = on_the_device(array[None], SMALL)
    difference = grey_levels(device, SMALL) - grey_levels(host, SMALL)
    assert np.abs(difference).max() <= 1


def test_grey_images_have_three_equal_channels() -> None:
    levels = formula_image(30, 41)[..., 0]
    arguments = {**SMALL, "mean": (0.5,), "std": (0.25,)}
    expected = published_preprocess(
        Image.fromarray(np.stack([levels] * 3, -1)), **arguments
    )
    image = Image.fromarray(levels)
    assert image.mode == "L"
    result = published_preprocess(image, **arguments)
    assert result.shape == (16, 16, 3)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])
    black_and_white = image.convert("1")
    np.testing.assert_array_equal(
        published_preprocess(black_and_white, **arguments),
        published_preprocess(black_and_white.convert("L"), **arguments),
    )


def test_alpha_is_dropped_before_pixels_are_mixed() -> None:
    colours = formula_image(30, 41)
    alpha = formula_image(30, 41)[::-1, :, :1]
    image = Image.fromarray(np.concatenate([colours, alpha], -1))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(
        published_preprocess(image, **SMALL),
        published_preprocess(Image.fromarray(colours), **SMALL),
    )


def test_a_palette_is_looked_up_before_pixels_are_mixed() -> None:
    indices = formula_image(30, 41)[..., 0] % 16
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    np.testing.assert_array_equal(
        published_preprocess(image, **SMALL),
        published_preprocess(Image.fromarray(palette[indices]), **SMALL),
    )


def test_one_mean_and_std_serve_all_channels() -> None:
    image = Image.fromarray(formula_image(30, 41))
    one = {**SMALL, "mean": (0.5,), "std": (0.25,)}
    three = {**SMALL, "mean": [0.5] * 3, "std": [0.25] * 3}
    np.testing.assert_array_equal(
        published_preprocess(image, **one), published_preprocess(image, **three)
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resize": 0}, "Resize.size must lie in 1..16384, not 0"),
        ({"size": -1}, "CenterCrop.size must lie in 1..16384, not -1"),
        (
            {"interpolation": "lanczos"},
            "Resize.interpolation is 'lanczos', a str; expected 'nearest'",
        ),
        ({"mean": (123.7,)}, "Normalize.mean must lie in 0..1, .*, not 123.7"),
        ({"std": (0.0,)}, "Normalize.std must lie in 1e-06..1, .*, not 0.0"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, Any], said: str) -> None:
    arguments = {**SMALL, **wrong}
    with pytest.raises(UserError, match=said):
        published_transform(**arguments)
    with pytest.raises(UserError, match=said):
        published_preprocess(Image.new("RGB", (30, 30)), **arguments)


def test_a_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(UserError, match="2 values of std but the images have 3"):
        published_preprocess(Image.new("L", (9, 9)), **{**SMALL, "std": (0.2, 0.2)})


@pytest.mark.parametrize("image", ["cat.jpg", np.zeros((9, 9, 3), np.uint8)])
def test_what_is_not_an_image_is_named(image: object) -> None:
    said = f"takes a PIL.Image.Image, not {type(image).__name__}"
    with pytest.raises(UserError, match=said):
        published_preprocess(image, **SMALL)  # type: ignore[arg-type]
