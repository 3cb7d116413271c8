"""Boxes of random size, against Pillow and the published procedure in NumPy."""

import functools
import math

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcls import options
from jaxcls.augment import crop
from jaxcls.augment.crop import RandomResizedCrop
from jaxcls.augment.kernels.resample import Interpolation
from jaxcls.errors import UserError

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
HEIGHT, WIDTH = 40, 50


def pictures(height: int, width: int) -> np.ndarray:
    """12 images: noise, smooth, and one grey."""
    noise = np.random.default_rng(0).integers(
        0, 256, (6, height, width, 3), dtype=np.uint8
    )
    b, y, x, c = np.meshgrid(
        *(np.arange(size) for size in (5, height, width, 3)), indexing="ij"
    )
    waves = np.sin(0.21 * x + b) + np.cos(0.13 * y - 0.9 * c)
    smooth = np.round(127.5 + 63 * waves).astype(np.uint8)
    return np.concatenate([noise, smooth, np.full_like(noise[:1], 201)])


def drawn(
    count: int, height: int, width: int, transform: RandomResizedCrop
) -> dict[str, np.ndarray]:
    draw = jax.jit(lambda key: vars(transform.boxes(key, count, height, width)))
    return {name: np.asarray(value) for name, value in draw(jax.random.key(3)).items()}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def compiled(
    images: jax.Array,
    boxes: dict[str, jax.Array],
    size: int,
    interpolation: Interpolation,
    antialiased: bool,
) -> jax.Array:
    transform = RandomResizedCrop(
        size=size, interpolation=interpolation, antialiased=antialiased
    )
    return transform.resized(images, crop.Boxes(**boxes))


def resized(
    images: np.ndarray,
    boxes: dict[str, np.ndarray],
    size: int,
    interpolation: Interpolation,
    antialiased: bool = True,
) -> np.ndarray:
    levels = images.astype(np.float32)
    return np.asarray(compiled(levels, boxes, size, interpolation, antialiased))


def pillow_resized(
    images: np.ndarray, boxes: dict[str, np.ndarray], size: int, interpolation: str
) -> np.ndarray:
    found = []
    for i, image in enumerate(images):
        top, left, height, width = (
            int(boxes[name][i]) for name in ("top", "left", "height", "width")
        )
        cut = Image.fromarray(image[top : top + height, left : left + width])
        # Columns first, whatever the version of Pillow prefers.
        columns = cut.resize((size, height), PILLOW[interpolation])
        found.append(np.asarray(columns.resize((size, size), PILLOW[interpolation])))
    return np.stack(found).astype(np.float32)


@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_boxes_are_cut_out_and_resized_as_pillow_does(
    interpolation: Interpolation, size: int
) -> None:
    images = pictures(HEIGHT, WIDTH)
    transform = RandomResizedCrop(size=size, scale=(0.01, 1.0))
    boxes = drawn(len(images), HEIGHT, WIDTH, transform)
    found = resized(images, boxes, size, interpolation)
    expected = pillow_resized(images, boxes, size, interpolation)
    np.testing.assert_array_equal(found, np.round(found))
    error = np.abs(found - expected)
    if interpolation == "nearest":
        np.testing.assert_array_equal(found, expected)
    assert error.max() <= 1
    # float32 puts what lies half-way between two levels on the other side at times.
    assert (error > 0).mean() < 0.02
    assert (found[-1] == 201).all()


def test_boxes_of_every_length_copy_pillows_nearest_pixels() -> None:
    # Where the exact place lies between two pixels, Pillow's sum of steps decides.
    lengths = np.arange(1, WIDTH + 1)
    images = np.broadcast_to(
        np.arange(WIDTH, dtype=np.uint8)[:, None], (WIDTH, 2, WIDTH, 1)
    )
    boxes = {
        "top": 0 * lengths,
        "left": WIDTH - lengths,
        "height": 0 * lengths + 2,
        "width": lengths,
    }
    found = resized(images, boxes, 24, "nearest")
    expected = pillow_resized(images[..., 0], boxes, 24, "nearest")
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_pixels_around_the_box_have_no_part(interpolation: Interpolation) -> None:
    images = pictures(HEIGHT, WIDTH)
    boxes = drawn(len(images), HEIGHT, WIDTH, RandomResizedCrop(size=24))
    others = 255 - images
    for i, other in enumerate(others):
        rows = slice(boxes["top"][i], boxes["top"][i] + boxes["height"][i])
        columns = slice(boxes["left"][i], boxes["left"][i] + boxes["width"][i])
        other[rows, columns] = images[i, rows, columns]
    assert (others != images).any((1, 2, 3)).sum() > 6
    np.testing.assert_array_equal(
        resized(others, boxes, 24, interpolation),
        resized(images, boxes, 24, interpolation),
    )


@pytest.mark.parametrize(("interpolation", "reach"), [("bilinear", 1), ("bicubic", 2)])
def test_without_antialiasing_pixels_come_from_their_neighbours(
    interpolation: Interpolation, reach: int
) -> None:
    def kernel(x: float) -> float:
        x = abs(x)
        if interpolation == "bilinear":
            return max(1 - x, 0)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0

    def line(values: np.ndarray, size: int) -> np.ndarray:
        """Values [length, ...], in double precision."""
        new = []
        for i in range(size):
            middle = (i + 0.5) * len(values) / size - 0.5
            near = range(math.ceil(middle) - reach, math.floor(middle) + reach + 1)
            taps = {j: kernel(j - middle) for j in near if 0 <= j < len(values)}
            new.append(sum(values[j] * w for j, w in taps.items()) / sum(taps.values()))
        return np.clip(np.floor(np.array(new) + 0.5), 0, 255)

    images = pictures(HEIGHT, WIDTH)
    boxes = drawn(len(images), HEIGHT, WIDTH, RandomResizedCrop(size=7))
    found = resized(images, boxes, 7, interpolation, antialiased=False)
    expected = np.empty_like(found)
    for i, image in enumerate(images):
        rows = slice(boxes["top"][i], boxes["top"][i] + boxes["height"][i])
        columns = slice(boxes["left"][i], boxes["left"][i] + boxes["width"][i])
        cut = image[rows, columns].astype(np.float64)
        expected[i] = line(line(cut.swapaxes(0, 1), 7).swapaxes(0, 1), 7)
    error = np.abs(found - expected)
    assert error.max() <= 1
    assert (error > 0).mean() < 0.02


def published_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> dict[str, np.ndarray]:
    """What torchvision 0.28 documents and does, one image after the other."""
    random = np.random.default_rng(1)
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * random.uniform(*scale)
            aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(random.integers(height - h + 1))
                left = int(random.integers(width - w + 1))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            top, left = (height - h) // 2, (width - w) // 2
        boxes.append((top, left, h, w))
    names = ("top", "left", "height", "width")
    return dict(zip(names, np.array(boxes).T, strict=True))


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """The largest distance between the two distributions, 0..1."""
    values = np.concatenate([first, second])
    below = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (32, 32, {}),
        (40, 50, {"scale": (0.3, 0.6)}),
        # Many tries do not fit, and the middle is taken.
        (12, 90, {"scale": (0.1, 1.0)}),
        (90, 12, {"scale": (0.3, 1.0), "ratio": (0.5, 2.0)}),
        (20, 20, {"scale": (1.0, 1.0), "ratio": (0.5, 3.0)}),
    ],
)
def test_boxes_are_distributed_as_published(
    height: int, width: int, options: dict[str, tuple[float, float]]
) -> None:
    transform = RandomResizedCrop(size=8, **options)  # type: ignore[arg-type]
    count = 6000
    found = drawn(count, height, width, transform)
    expected = published_boxes(count, height, width, transform.scale, transform.ratio)
    assert (found["top"] >= 0).all()
    assert (found["left"] >= 0).all()
    assert (found["top"] + found["height"] <= height).all()
    assert (found["left"] + found["width"] <= width).all()
    for boxes in (found, expected):
        boxes["area"] = boxes["height"] * boxes["width"]
        boxes["aspect"] = boxes["width"] / boxes["height"]
        boxes["down"] = boxes["top"] * 1000 + boxes["height"]  # jointly
        boxes["right"] = boxes["left"] * 1000 + boxes["width"]
    for name, values in found.items():
        # 99.9 % of the distances between equal distributions lie below.
        bound = 1.95 * math.sqrt(2 / count)
        assert kolmogorov_smirnov(values, expected[name]) < bound, name


def test_each_image_has_a_box_of_its_own() -> None:
    found = drawn(6000, 64, 64, RandomResizedCrop(size=8))
    for name in ("top", "left", "height", "width"):
        values = found[name]
        # Independent neighbours: a correlation of 0 with a standard deviation of 0.013.
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.045
    # Nor does the place down say anything about the place across.
    down = found["top"] / np.maximum(64 - found["height"], 1)
    right = found["left"] / np.maximum(64 - found["width"], 1)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.045


def test_the_transform_resizes_the_boxes_that_its_key_draws() -> None:
    images = pictures(HEIGHT, WIDTH)
    targets = np.zeros((len(images), 2), np.float32)
    transform = RandomResizedCrop(size=9, scale=(0.2, 0.7), interpolation="bicubic")
    call = jax.jit(transform.__call__)
    found = call(jax.random.key(3), images.astype(np.float32), targets)[0]
    boxes = drawn(len(images), HEIGHT, WIDTH, transform)
    assert np.abs(found - pillow_resized(images, boxes, 9, "bicubic")).max() <= 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 0}, "RandomResizedCrop.size must lie in 1..16384, not 0"),
        (
            {"size": 2**31},
            "RandomResizedCrop.size must lie in 1..16384, not 2147483648",
        ),
        ({"scale": (0.0, 1.0)}, "scale[0] must lie in 0..1, above 0, not 0.0"),
        ({"scale": (0.5, 1.5)}, "scale[1] must lie in 0..1, above 0, not 1.5"),
        ({"scale": (0.5, 0.2)}, "scale must be in ascending order, not (0.5, 0.2)"),
        (
            {"scale": (math.nan, 1.0)},
            "RandomResizedCrop.scale must be a number of sensible size, not nan",
        ),
        (
            {"scale": (0.1, math.nan)},
            "RandomResizedCrop.scale must be a number of sensible size, not nan",
        ),
        ({"ratio": (0.0, 1.0)}, "RandomResizedCrop.ratio[0] must be above 0, not 0.0"),
        (
            {"ratio": (1.0, math.inf)},
            "RandomResizedCrop.ratio must be a number of sensible size, not inf",
        ),
        (
            {"interpolation": "box"},
            "RandomResizedCrop.interpolation is 'box', a str; expected 'nearest' or "
            "'bilinear' or 'bicubic'.",
        ),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(RandomResizedCrop(**{"size": 8, **wrong}))  # type: ignore[arg-type]
    assert said in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    options.check(RandomResizedCrop(size=1, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    options.check(RandomResizedCrop(size=16384))
