"""Moved pixels, against Pillow."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcls.augment.kernels import pillow_warp
from jaxcls.augment.kernels.resample import Interpolation

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
KINDS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")
FILL = 7


def pictures(height: int, width: int) -> np.ndarray:
    """Noise, waves and an even grey, uint8 [3, height, width, 3]."""
    noise = np.random.default_rng(0).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    y, x, c = np.meshgrid(*(np.arange(n) for n in (height, width, 3)), indexing="ij")
    waves = np.round(127.5 + 63 * (np.sin(0.21 * x) + np.cos(0.13 * y - 0.9 * c)))
    return np.stack([noise, waves.astype(np.uint8), np.full_like(noise, 201)])


def transformed(
    image: np.ndarray,
    matrix: Sequence[float],
    kind: str,
    method: Image.Transform = Image.Transform.AFFINE,
) -> np.ndarray:
    """Pillow's Image.transform to the same size."""
    height, width = image.shape[:2]
    return np.asarray(
        Image.fromarray(image).transform(
            (width, height), method, matrix, PILLOW[kind], fillcolor=(FILL,) * 3
        )
    )


def pillow_shear_x(image: np.ndarray, factor: float, kind: str) -> np.ndarray:
    # torchvision gets there by way of the angle.
    slope = math.tan(math.radians(math.degrees(math.atan(factor))))
    return transformed(image, (1, slope, 0, 0, 1, 0), kind)


def pillow_shear_y(image: np.ndarray, factor: float, kind: str) -> np.ndarray:
    slope = math.tan(math.radians(math.degrees(math.atan(factor))))
    return transformed(image, (1, 0, 0, slope, 1, 0), kind)


def pillow_translate_x(image: np.ndarray, pixels: float, kind: str) -> np.ndarray:
    return transformed(image, (1, 0, -int(pixels), 0, 1, 0), kind)


def pillow_translate_y(image: np.ndarray, pixels: float, kind: str) -> np.ndarray:
    return transformed(image, (1, 0, 0, 0, 1, -int(pixels)), kind)


def pillow_rotate(image: np.ndarray, degrees: float, kind: str) -> np.ndarray:
    turned = Image.fromarray(image).rotate(degrees, PILLOW[kind], fillcolor=(FILL,) * 3)
    return np.asarray(turned)


Move = Callable[[jax.Array, jax.Array, Interpolation, float], jax.Array]
MOVES: dict[str, tuple[Move, Callable[..., np.ndarray]]] = {
    "shear_x": (pillow_warp.shear_x, pillow_shear_x),
    "shear_y": (pillow_warp.shear_y, pillow_shear_y),
    "translate_x": (pillow_warp.translate_x, pillow_translate_x),
    "translate_y": (pillow_warp.translate_y, pillow_translate_y),
    "rotate": (pillow_warp.rotate, pillow_rotate),
}


def magnitudes(name: str, height: int, width: int) -> np.ndarray:
    """All of torchvision's RandAugment and TrivialAugmentWide, and their negatives."""
    ends = {
        "shear_x": (0.3, 0.99),
        "shear_y": (0.3, 0.99),
        "translate_x": (150 / 331 * width, 32),
        "translate_y": (150 / 331 * height, 32),
        "rotate": (30, 135),
    }[name]
    values = np.concatenate([np.linspace(0, end, 31) for end in ends])
    if name == "rotate":
        values = np.append(values, [0.3, 90, 179.6, 180, 270, 360, 725])
    return np.concatenate([values, -values]).astype(np.float32)


def run(
    move: Callable[..., jax.Array], images: np.ndarray, *args: object
) -> np.ndarray:
    return np.asarray(jax.jit(move)(images.astype(np.float32), *args))


def check_move(name: str, kind: Interpolation, height: int, width: int) -> None:
    move, reference = MOVES[name]
    images = pictures(height, width)
    values = magnitudes(name, height, width)
    batch = np.repeat(images, len(values), axis=0)
    moved = run(
        lambda images, values: move(images, values, kind, FILL),
        batch,
        np.tile(values, len(images)),
    )
    expected = np.stack(
        [reference(image, float(v), kind) for image in images for v in values]
    )
    assert len(np.unique(expected.reshape(len(expected), -1), axis=0)) > 40
    if kind == "nearest" or name.startswith("translate"):
        np.testing.assert_array_equal(moved, expected)
    error = np.abs(moved - expected)
    assert error.max() <= 1
    # Places known to 2^-16 pixels, so that few levels are off by one; only shears by 0.2 and
    # the like miss by less than 1e-8 what would be exact.
    assert (error > 0).mean() < 0.01
    assert (moved[-len(values) :] == 201).mean() > 0.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_pillows(name: str, kind: Interpolation) -> None:
    check_move(name, kind, 20, 31)


def test_rotations_of_squares_are_pillows() -> None:
    # At multiples of 90 degrees, Pillow copies rows and columns.
    for kind in KINDS:
        check_move("rotate", kind, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 20), (224, 160)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MOVES)
def test_moves_of_all_sizes_are_pillows(
    name: str, kind: Interpolation, height: int, width: int
) -> None:
    check_move(name, kind, height, width)


def affine_maps() -> np.ndarray:
    """The identity and random maps, some far out of the image; float32 [40, 3, 3]."""
    random = np.random.default_rng(2)
    maps = np.tile(np.eye(3), (40, 1, 1))
    maps[1:, :2, :2] += random.normal(0, 0.3, (39, 2, 2))
    maps[1:, :2, 2] += random.normal(0, 6, (39, 2))
    maps[-1, :2, 2] = 1e6
    maps[-2, :2, :2] *= 1e5
    return maps.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_affine_maps_are_pillows(kind: Interpolation) -> None:
    images, maps = pictures(20, 31), affine_maps()
    expected = np.stack(
        [
            transformed(image, matrix[:2].astype(np.float64).ravel().tolist(), kind)
            for image in images
            for matrix in maps
        ]
    )
    warped = run(
        lambda images, maps: pillow_warp.warp(images, maps, kind, FILL),
        np.repeat(images, len(maps), axis=0),
        np.tile(maps, (len(images), 1, 1)),
    )
    np.testing.assert_array_equal(warped[0], images[0])
    error = np.abs(warped - expected)
    # A place on the very border of the image may be taken for one outside.
    assert (error > 1).mean() < 5e-4
    assert (error > 0).mean() < (5e-4 if kind == "nearest" else 0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_projective_maps_are_pillows(kind: Interpolation) -> None:
    images, maps = pictures(20, 31), affine_maps()[:30]
    maps[1:, 2, :2] = np.random.default_rng(3).normal(0, 0.01, (29, 2))
    expected = np.stack(
        [
            transformed(
                image,
                matrix.astype(np.float64).ravel()[:8].tolist(),
                kind,
                Image.Transform.PERSPECTIVE,
            )
            for image in images
            for matrix in maps
        ]
    )
    # A factor of the whole map does not matter.
    factor = np.linspace(0.5, 2, len(images) * len(maps), dtype=np.float32)
    factor[0] = 1
    warped = run(
        lambda images, maps: pillow_warp.warp(images, maps, kind, FILL),
        np.repeat(images, len(maps), axis=0),
        np.tile(maps, (len(images), 1, 1)) * factor[:, None, None],
    )
    np.testing.assert_array_equal(warped[0], images[0])
    error = np.abs(warped - expected)
    assert (error > 1).mean() < 5e-4
    assert (error > 0).mean() < (5e-4 if kind == "nearest" else 0.002)


def test_a_plane_seen_from_its_edge_is_nowhere() -> None:
    images = pictures(8, 8)
    for kind in KINDS:
        warped = run(
            lambda images, kind=kind: pillow_warp.warp(
                images, jnp.zeros((3, 3, 3)), kind, FILL
            ),
            images,
        )
        np.testing.assert_array_equal(warped, FILL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "pad"), [("reflect", "symmetric"), ("nearest", "edge")]
)
def test_outside_lies_the_mirror_image_or_the_border(
    mode: pillow_warp.FillMode, pad: str, kind: Interpolation
) -> None:
    height, width = 10, 13
    images, maps = pictures(height, width), affine_maps()[:38]
    border = 60
    wide = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)), pad)  # type: ignore[call-overload]
    expected = []
    for image in wide:
        for (a, b, c), (d, e, f), _ in maps.astype(np.float64).tolist():
            # The same map, seen from the corner of the border.
            c = c + border - border * (a + b)
            f = f + border - border * (d + e)
            moved = transformed(image, (a, b, c, d, e, f), kind)
            expected.append(moved[border:-border, border:-border])
    warped = run(
        lambda images, maps: pillow_warp.warp(images, maps, kind, FILL, mode),
        np.repeat(images, len(maps), axis=0),
        np.tile(maps, (len(images), 1, 1)),
    )
    error = np.abs(warped - np.stack(expected))
    # Pillow's fixed point runs 60 pixels further through the border.
    assert (error > 1).mean() < 2e-3
    assert (error > 0).mean() < 4e-3


def test_images_of_one_channel_and_one_row() -> None:
    image = pictures(1, 9)[:1, :, :, :1]
    moved = run(
        lambda i: pillow_warp.shear_y(i, jnp.array([0.5]), "nearest", FILL), image
    )
    # At (x + 0.5) / 2 + 0.5: the first pixel stays, the second lies on the lower border.
    np.testing.assert_array_equal(moved[0, 0, :, 0], [image[0, 0, 0, 0], *[FILL] * 8])


@pytest.mark.parametrize("kind", KINDS)
def test_tpus_gather_no_pixels(kind: Interpolation) -> None:
    images = jax.ShapeDtypeStruct((2, 8, 9, 3), jnp.float32)
    values = jax.ShapeDtypeStruct((2,), jnp.float32)
    maps = jax.ShapeDtypeStruct((2, 3, 3), jnp.float32)

    def all_moves(
        images: jax.Array, values: jax.Array, maps: jax.Array
    ) -> list[jax.Array]:
        moves = (
            pillow_warp.shear_x,
            pillow_warp.shear_y,
            pillow_warp.translate_x,
            pillow_warp.translate_y,
        )
        moved = [move(images, values, kind, 0.0) for move in moves]
        return [*moved, pillow_warp.warp(images, maps, kind, 0.0)]

    traced = jax.jit(all_moves).trace(images, values, maps)
    for platform, gathers in (("tpu", False), ("cpu", True), ("cuda", True)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("gather" in program) == gathers, platform


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_what_torchvisions_policies_do(
    name: str, kind: Interpolation
) -> None:
    from tests.references.torch_models import torchvision

    functional = torchvision.transforms.functional
    mode = torchvision.transforms.InterpolationMode(kind)
    image = pictures(20, 31)[0]
    # The shears are not about the middle, as RandAugment's call of affine says.
    still: dict[str, Any] = {
        "angle": 0.0,
        "translate": [0, 0],
        "scale": 1.0,
        "shear": [0.0, 0.0],
    }

    def reference(value: float) -> np.ndarray:
        picture = Image.fromarray(image)
        options: dict[str, Any] = {"fill": [FILL] * 3}
        if name == "rotate":
            return np.asarray(functional.rotate(picture, value, mode, **options))
        slant = math.degrees(math.atan(value))
        changes: dict[str, dict[str, Any]] = {
            "shear_x": {"shear": [slant, 0.0], "center": [0, 0]},
            "shear_y": {"shear": [0.0, slant], "center": [0, 0]},
            "translate_x": {"translate": [int(value), 0]},
            "translate_y": {"translate": [0, int(value)]},
        }
        changed = changes[name]
        arguments = {**still, **changed, **options, "interpolation": mode}
        return np.asarray(functional.affine(picture, **arguments))

    values = magnitudes(name, 20, 31)
    batch = np.repeat(image[None], len(values), axis=0)
    moved = run(lambda i, v: MOVES[name][0](i, v, kind, FILL), batch, values)
    error = np.abs(moved - np.stack([reference(float(value)) for value in values]))
    assert error.max() <= (0 if kind == "nearest" else 1)
