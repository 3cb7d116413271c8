"""Squares beside Pillow's, boxes beside torchvision's formula."""

import io
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxcls.data.host_crop import (
    Box,
    Canvas,
    CenterSquare,
    HostRandomResizedCrop,
    Letterbox,
    random_box,
)
from jaxcls.errors import UserError
from jaxcls.options import check

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def picture(height: int, width: int) -> Image.Image:
    random = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=0)
    return content.getvalue()


def resize_and_center_crop(
    image: Image.Image, short_side: int, side: int, resample: Image.Resampling
) -> Image.Image:
    """torchvision's Resize(short_side) and CenterCrop(side), written from its documentation."""
    width, height = image.size
    if width <= height:
        resized = image.resize((short_side, int(short_side * height / width)), resample)
    else:
        resized = image.resize((int(short_side * width / height), short_side), resample)
    left = round((resized.width - side) / 2.0)
    top = round((resized.height - side) / 2.0)
    return resized.crop((left, top, left + side, top + side))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "shape", [(50, 75), (75, 50), (301, 40), (33, 33), (1, 1), (7, 90)]
)
@pytest.mark.parametrize(("side", "crop"), [(32, 1.0), (28, 0.875), (31, 0.9)])
def test_center_square_is_torchvisions_resize_and_crop(
    shape: tuple[int, int], side: int, crop: float, interpolation: str
) -> None:
    image = picture(*shape)
    canvas = CenterSquare(size=side, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]
    resample = FILTERS[interpolation]
    expected = resize_and_center_crop(image, round(side / crop), side, resample)
    np.testing.assert_array_equal(canvas.place(png(image), 3, 0), np.asarray(expected))
    grey = canvas.place(png(image.convert("L")), 1, 0)
    expected = resize_and_center_crop(
        image.convert("L"), round(side / crop), side, resample
    )
    np.testing.assert_array_equal(grey, np.asarray(expected)[:, :, None])


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 600)])
def test_long_images_are_not_made_huge(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    placed = CenterSquare(size=16).place(png(image), 3, 0).astype(int)
    if min(shape) == 3:
        expected = resize_and_center_crop(image, 16, 16, Image.Resampling.BILINEAR)
        assert abs(placed - np.asarray(expected)).max() <= 1
    else:  # of the middle of the long side, a pixel or two are seen
        middle = np.asarray(image).reshape(-1, 3)[9998:10002]
        assert (placed >= middle.min(0)).all() and (placed <= middle.max(0)).all()
    for canvas in (HostRandomResizedCrop(size=16), Letterbox(size=16)):
        assert canvas.place(png(image), 3, 1).shape == (16, 16, 3)


def reference_boxes(
    random: np.random.Generator, height: int, width: int, number: int
) -> np.ndarray:
    """torchvision's RandomResizedCrop.get_params in NumPy: [number, (top, left, height, width)]."""
    boxes = []
    for _ in range(number):
        for _ in range(10):
            area = height * width * random.uniform(*SCALE)
            aspect = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = random.integers(0, height - h, endpoint=True)
                boxes.append((top, random.integers(0, width - w, endpoint=True), h, w))
                break
        else:
            w = min(width, round(height * RATIO[1]))
            h = min(height, round(width / RATIO[0]))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 300), (60, 400)])
def test_boxes_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    number = 3000
    seeds = np.random.default_rng(1).integers(0, 2**64, number, np.uint64).tolist()
    drawn = [random_box(seed, height, width, SCALE, RATIO) for seed in seeds]
    ours = np.array([(b.top, b.left, b.height, b.width) for b in drawn])
    theirs = reference_boxes(np.random.default_rng(2), height, width, number)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()

    def measures(boxes: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = boxes.T
        middle = (2 * top + h) / height + 0.37 * (2 * left + w) / width
        return [top, left, h, w, h * w, w / h, middle]

    for a, b in zip(measures(ours), measures(theirs), strict=True):
        # Kolmogorov-Smirnov: the distance exceeds 1.95 sqrt(2 / n) once in 1000 times.
        places = np.unique(np.concatenate([a, b]))
        gap = np.searchsorted(np.sort(a), places, "right") - np.searchsorted(
            np.sort(b), places, "right"
        )
        assert abs(gap).max() / number < 1.95 * math.sqrt(2 / number)


def test_where_no_box_fits_it_is_the_middle() -> None:
    assert random_box(5, 10, 1000, (1.0, 1.0), RATIO) == Box(0, 493, 10, 13)
    assert random_box(5, 1000, 10, (1.0, 1.0), RATIO) == Box(493, 0, 13, 10)


def test_the_seed_alone_decides() -> None:
    first = random_box(2**64 - 1, 300, 400, SCALE, RATIO)
    assert first == random_box(2**64 - 1, 300, 400, SCALE, RATIO)
    many = {random_box(seed, 300, 400, SCALE, RATIO) for seed in range(100)}
    assert len(many) > 95


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_crop_decoded_whole_is_pillows(kind: str) -> None:
    content = io.BytesIO()
    smooth = picture(9, 13).resize((400, 300), Image.Resampling.BICUBIC)
    smooth.save(content, kind)
    canvas = HostRandomResizedCrop(size=200, interpolation="bicubic")
    image = Image.open(content).convert("RGB")
    for seed in range(20):
        box = random_box(seed, 300, 400, SCALE, RATIO)
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = image.crop(part).resize((200, 200), Image.Resampling.BICUBIC)
        placed = canvas.place(content.getvalue(), 3, seed)
        np.testing.assert_array_equal(placed, np.asarray(expected))


def test_a_crop_of_a_large_photograph_is_close_and_never_enlarged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = io.BytesIO()
    picture(6, 8).resize((1600, 1201), Image.Resampling.BICUBIC).save(content, "JPEG")
    image = Image.open(content).convert("RGB")
    canvas = HostRandomResizedCrop(size=64)
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, *sizes: object, **box: object) -> Image.Image:
        resized.append(self.size)
        return resize(self, *sizes, **box)  # type: ignore[arg-type]

    for seed in range(30):
        box = random_box(seed, 1201, 1600, SCALE, RATIO)
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(image.crop(part).resize((64, 64), 2)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "resize", watched)
            placed = canvas.place(content.getvalue(), 3, seed)
        assert abs(placed - expected).mean() < 3
        assert abs(placed - expected).max() < 30
    assert min(min(sides) for sides in resized) >= 64
    assert max(max(sides) for sides in resized) < 800  # none was decoded whole


def test_letterbox_shows_the_whole_image() -> None:
    for height, width, shown in (
        (30, 60, (10, 20)),
        (60, 30, (20, 10)),
        (7, 7, (20, 20)),
    ):
        image = picture(height, width)
        placed = Letterbox(size=20, fill=9).place(png(image), 3, 0)
        rows, columns = shown
        top, left = (20 - rows) // 2, (20 - columns) // 2
        inside = placed[top : top + rows, left : left + columns]
        expected = image.resize((columns, rows), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(inside, np.asarray(expected))
        assert (placed == 9).all(2).sum() >= 400 - rows * columns


@pytest.mark.parametrize(
    "canvas",
    [CenterSquare(size=24), HostRandomResizedCrop(size=24), Letterbox(size=24)],
)
def test_what_all_have_in_common(canvas: Canvas) -> None:
    check(canvas)
    assert canvas.shape(1) == (24, 24, 1)
    assert pickle.loads(pickle.dumps(canvas)) == canvas
    still = canvas.evaluation()
    data = png(picture(40, 50))
    assert still.shape(3) == canvas.place(data, 3, 7).shape == (24, 24, 3)
    np.testing.assert_array_equal(still.place(data, 3, 1), still.place(data, 3, 2))
    assert still.evaluation() == still


def test_validation_shows_the_middle() -> None:
    canvas = HostRandomResizedCrop(size=56, crop=0.875, interpolation="bicubic")
    image = picture(80, 100)
    expected = resize_and_center_crop(image, 64, 56, Image.Resampling.BICUBIC)
    placed = canvas.evaluation().place(png(image), 3, 0)
    np.testing.assert_array_equal(placed, np.asarray(expected))


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        (CenterSquare(size=0), "size must lie in 1..8192, not 0"),
        (CenterSquare(size=8193), "size must lie in 1..8192, not 8193"),
        (CenterSquare(crop=1.5), "crop must lie in 0..1, above 0, not 1.5"),
        (Letterbox(fill=256), "fill must lie in 0..255, not 256"),
        (Letterbox(fill=-1), "fill must lie in 0..255, not -1"),
        (Letterbox(interpolation="box"), r"interpolation is 'box', .* or 'bicubic'"),  # type: ignore[arg-type]
        (
            HostRandomResizedCrop(scale=(0.0, 1.0)),
            r"scale\[0\] must lie in 0..1, above 0, not 0.0",
        ),
        (
            HostRandomResizedCrop(scale=(0.5, 2.0)),
            r"scale\[1\] must lie in 0..1, .* 2.0",
        ),
        (HostRandomResizedCrop(scale=(0.5, 0.2)), r"scale must be in ascending order"),
        (
            HostRandomResizedCrop(ratio=(2.0, 1.0)),
            r"ratio must be in ascending order, not \(2.0, 1.0\)",
        ),
        (
            HostRandomResizedCrop(ratio=(0.0, 1.0)),
            r"ratio\[0\] must be above 0, not 0.0",
        ),
        (
            HostRandomResizedCrop(ratio=(1.0, float("inf"))),
            r"ratio must be a number of sensible size, not inf",
        ),
        (HostRandomResizedCrop(crop=0.0), "crop must lie in 0..1, above 0, not 0.0"),
    ],
)
def test_impossible_values_are_named(canvas: Canvas, message: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.canvas\.{message}"):
        check(canvas, "data.canvas")
