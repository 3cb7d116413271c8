"""Decoded pixels beside Pillow's, whatever the format."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from jaxcls.data import decode as module
from jaxcls.data.decode import BadImage, decode, size


def picture(height: int = 90, width: int = 121, mode: str = "RGB") -> Image.Image:
    """Returns smooth shapes with a little noise, as photographs have."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + random.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert(mode)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def by_pillow(data: bytes, mode: str) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image.info.pop("transparency", None)  # Pillow warns that it is dropped
    pixels = np.asarray(image.convert(mode))
    return pixels[:, :, None] if mode == "L" else pixels


FILES = {
    "jpeg": file(picture(), "JPEG", quality=90),
    "jpeg 4:4:4": file(picture(), "JPEG", subsampling=0),
    "jpeg progressive": file(picture(), "JPEG", progressive=True),
    "jpeg grey": file(picture(mode="L"), "JPEG"),
    "jpeg cmyk": file(picture(mode="CMYK"), "JPEG"),
    "jpeg restarts": file(picture(), "JPEG", restart_marker_rows=1),
    "png": file(picture(), "PNG"),
    "png grey": file(picture(mode="L"), "PNG"),
    "png two levels": file(picture(mode="1"), "PNG"),
    "png palette": file(picture(mode="P"), "PNG"),
    "png palette, alpha": file(picture(mode="P"), "PNG", transparency=b"\0\x80\xff"),
    "png grey, alpha": file(picture(mode="LA"), "PNG"),
    "png one colour clear": file(picture(), "PNG", transparency=(0, 0, 0)),
    "webp": file(picture(), "WEBP"),
    "webp lossless": file(picture(), "WEBP", lossless=True),
    "bmp": file(picture(), "BMP"),
    "gif": file(picture(), "GIF"),
    "tiff": file(picture(), "TIFF"),
    "tiff lzw": file(picture(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": file(picture(mode="CMYK"), "TIFF"),
    "ppm": file(picture(), "PPM"),
    "pgm": file(picture(mode="L"), "PPM"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows(name: str, channels: int) -> None:
    data = FILES[name]
    pixels = decode(data, channels=channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(
        pixels, by_pillow(data, "L" if channels == 1 else "RGB")
    )
    assert size(data) == (90, 121)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped(kind: str) -> None:
    image = picture(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(file(image, kind, **options))
    np.testing.assert_array_equal(pixels, np.asarray(picture()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    levels = np.arange(0, 65536, 7, np.uint16)[:9000].reshape(90, 100)
    pixels = decode(file(Image.fromarray(levels), kind), channels=1)
    exact = np.floor(levels * (255 / 65535) + 0.5)
    np.testing.assert_array_equal(pixels[:, :, 0], exact)
    assert np.asarray(decode(file(Image.fromarray(levels), kind))).shape == (90, 100, 3)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.Base.Orientation] = orientation
    data = file(picture(), kind, exif=exif)
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, by_pillow(data, "RGB"))
    assert size(data) == pixels.shape[:2]
    turned = orientation in (5, 6, 7, 8)
    assert pixels.shape[:2] == ((121, 90) if turned else (90, 121))


def test_a_broken_exif_block_is_passed_over() -> None:
    data = file(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(decode(data), decode(file(picture(), "JPEG")))


def test_the_first_image_of_several_is_taken() -> None:
    other = ImageOps.invert(picture())
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = file(picture(), kind, save_all=True, append_images=[other])
        first = decode(file(picture(), kind)).astype(int)
        assert abs(decode(data) - first).mean() < 3, kind


def test_a_scaled_jpeg_keeps_its_short_side() -> None:
    data = file(picture(800, 1200), "JPEG", quality=92)
    whole = decode(data)
    cases = {
        801: 8,
        401: 8,
        400: 4,
        301: 4,
        300: 3,
        201: 3,
        200: 2,
        101: 2,
        100: 1,
        1: 1,
    }
    for min_side, eighths in cases.items():
        scaled = decode(data, min_side=min_side)
        assert scaled.shape == (100 * eighths, 150 * eighths, 3)
        assert size(data) == (800, 1200)
        if eighths != 3:
            of, to = 8 // eighths, 100 * eighths
            means = whole.reshape(to, of, to * 3 // 2, of, 3).mean((1, 3))
            assert abs(scaled - means).mean() < 2
    np.testing.assert_array_equal(decode(data, min_side=401), whole)


def test_other_formats_come_whole() -> None:
    assert decode(FILES["png"], min_side=10).shape == (90, 121, 3)


def test_too_many_pixels_are_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 90 * 121 - 1)
    monkeypatch.setattr(module, "_decode_jpeg", None)  # calling it would fail
    for name in ("jpeg", "jpeg cmyk", "png", "webp"):
        for call in (decode, size):
            with pytest.raises(BadImage, match="90 x 121 pixels, more than 10,889"):
                call(FILES[name])


def test_many_scans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SCANS", 2)
    with pytest.raises(BadImage, match="more than 2 scans"):
        decode(FILES["jpeg progressive"])
    decode(FILES["jpeg"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)\."),
        (
            FILES["jpeg"][:100],
            "it is a JPEG file that is cut off or damaged in its header",
        ),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "it is a HEIC file, .* convert it to JPEG",
        ),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "it is an AVIF file, .* convert it"),
        (b"\n<?xml version='1.0'?>\n<svg></svg>", "it is an SVG file, .* convert it"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "it is no JPEG, .* begin with"),
        (b"<html>not here</html>", "it is no JPEG, .* begin with b'<html>no'"),
        (FILES["jpeg"][:1500], "it is a damaged JPEG file: Premature end"),
        (FILES["jpeg cmyk"][:-200], "it is a damaged JPEG file: Premature end"),
        (FILES["png"][:-200], "it is a damaged PNG file: "),
        (file(picture(mode="F"), "TIFF"), "32-bit numbers"),
    ],
)
def test_what_is_wrong_is_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as error:
        decode(data)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and " at 0x" not in message


def test_a_flipped_bit_of_a_png_is_found() -> None:
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImage, match="damaged PNG"):
        decode(bytes(data))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("min_side", [None, 150, 70])
def test_the_first_rows_alone_are_those_of_the_whole(
    subsampling: str, min_side: int | None
) -> None:
    data = file(picture(300, 401), "JPEG", subsampling=subsampling)
    grey = file(picture(300, 401, "L"), "JPEG")
    for content, channels in ((data, 3), (data, 1), (grey, 1), (grey, 3)):
        whole = decode(content, channels=channels, min_side=min_side)
        for rows in (1, 15, 16, 17, 100, 163, 299, 300):
            top = decode(content, channels=channels, min_side=min_side, rows=rows)
            assert top.shape == whole.shape
            needed = -(-rows * len(whole) // 300)
            np.testing.assert_array_equal(top[:needed], whole[:needed])
            if rows <= 100:
                assert not top[-1].any()  # it was left out


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}])
def test_files_that_have_no_first_rows_are_decoded_whole(
    options: dict[str, Any],
) -> None:
    data = file(picture(300, 401), "JPEG", **options)
    np.testing.assert_array_equal(decode(data, rows=20), decode(data))


def test_turned_images_are_decoded_whole() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = file(picture(300, 401), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data, rows=20), decode(data))


def test_the_first_rows_of_a_file_that_is_cut_off_are_an_error() -> None:
    data = file(picture(300, 401), "JPEG", quality=95)
    for share in (0.1, 0.5, 0.9, 0.99):
        with pytest.raises(BadImage, match="damaged JPEG file: Premature end"):
            decode(data[: int(share * len(data))], rows=20)
