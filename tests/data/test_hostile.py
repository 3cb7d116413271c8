"""Files that nobody checked: each gives the right pixels or one clear complaint."""

import io
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.data.decode import BadImage, decode
from jaxcls.data.encoded_images import DecodedSource, Encoded
from jaxcls.data.host_crop import CenterSquare, HostRandomResizedCrop, Letterbox

HEIGHT, WIDTH = 60, 81
GOOD = Image.fromarray(
    np.kron(
        np.random.default_rng(0).integers(0, 256, (6, 9, 3)), np.ones((10, 9, 1))
    ).astype(np.uint8)
)
PIXELS = np.asarray(GOOD)


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG file, with its checksum."""
    checksum = zlib.crc32(kind + content)
    return (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    )


def png_header(width: int, height: int) -> bytes:
    sizes = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", sizes)


WHOLE = {
    "jpeg": file(GOOD, "JPEG", quality=95, subsampling=0),
    "progressive": file(GOOD, "JPEG", quality=95, subsampling=0, progressive=True),
    "cmyk": file(GOOD.convert("CMYK"), "JPEG", quality=95, subsampling=0),
    "png": file(GOOD, "PNG"),
    "webp": file(GOOD, "WEBP", lossless=True),
    "bmp": file(GOOD, "BMP"),
    "gif": file(GOOD, "GIF"),
    "tiff": file(GOOD, "TIFF"),
    "lzw": file(GOOD, "TIFF", compression="tiff_lzw"),
}


def hostile() -> Iterator[tuple[str, bytes, np.ndarray | None]]:
    """Yields (name, bytes, pixels); the pixels are None where there can be none."""
    for kind, data in WHOLE.items():
        for tenths in range(10):
            yield f"{kind} cut at {tenths}0 %", data[: len(data) * tenths // 10], None
        yield f"{kind} with more behind it", data + b"more" * 99, PIXELS
        yield (
            f"{kind} of zeros from the middle",
            data[: len(data) // 2].ljust(len(data), b"\0"),
            None,
        )
    for name, data in {
        "one byte": b"\xff",
        "zeros": bytes(1000),
        "a text": b"not an image\n" * 50,
        "a page": b"<!DOCTYPE html><html>404</html>",
        "an archive": b"PK\x03\x04" + bytes(100),
        "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "a JPEG's first bytes": b"\xff\xd8\xff",
        "JPEG segments without length": b"\xff\xd8" + b"\xff\xe0\0\0" * 2000,
        "a PNG of 60,000 x 60,000": png_header(60000, 60000) + chunk(b"IDAT", b""),
        "a PNG of 0 x 5": png_header(0, 5) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "a PNG without pixels": png_header(5, 5) + chunk(b"IEND", b""),
        "a PNG with too few": png_header(50, 50)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b""),
        "a GIF of 65,535 x 65,535": b"GIF89a" + b"\xff" * 4 + WHOLE["gif"][10:],
        "a JPEG of 65,500 x 65,500": resized_jpeg(65500, 65500),
        "a JPEG that is higher than its pixels": resized_jpeg(HEIGHT * 8, WIDTH),
        "32-bit numbers": file(Image.fromarray(np.ones((5, 5), np.int32)), "TIFF"),
    }.items():
        yield name, data, None
    alpha = GOOD.convert("RGBA")
    alpha.putalpha(40)
    palette = GOOD.quantize(54)
    inverted = Image.fromarray(255 - PIXELS)
    deep = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    grey = PIXELS[:, :, :1].repeat(3, 2)
    for name, data, pixels in (
        ("alpha", file(alpha, "PNG"), PIXELS),
        ("palette", file(palette, "PNG"), PIXELS),
        ("palette with alpha", file(palette, "PNG", transparency=bytes(54)), PIXELS),
        ("16 bits", file(deep, "PNG"), grey),
        ("16 bits, TIFF", file(deep, "TIFF"), grey),
        (
            "animated",
            file(GOOD, "WEBP", save_all=True, append_images=[inverted], lossless=True),
            PIXELS,
        ),
        (
            "animated PNG",
            file(GOOD, "PNG", save_all=True, append_images=[inverted]),
            PIXELS,
        ),
    ):
        yield name, data, pixels
    for height, width in ((1, 1), (1, 20000), (20000, 1)):
        image = Image.fromarray(np.full((height, width, 3), 9, np.uint8))
        yield f"{height} x {width}", file(image, "PNG"), np.asarray(image)


def resized_jpeg(height: int, width: int) -> bytes:
    """Returns a JPEG file whose header says another size than its pixels have."""
    data = WHOLE["jpeg"]
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


CASES = list(hostile())


def test_there_are_many() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(("name", "data", "pixels"), CASES, ids=[c[0] for c in CASES])
def test_the_right_pixels_or_one_clear_sentence(
    name: str, data: bytes, pixels: np.ndarray | None
) -> None:
    start = time.process_time()
    for canvas in (
        None,
        CenterSquare(size=16),
        HostRandomResizedCrop(size=16),
        Letterbox(size=16),
    ):
        try:
            found = decode(data) if canvas is None else canvas.place(data, 3, 1)
        except BadImage as error:
            # What damage does to formats without checksums, is the decoder's choice.
            assert pixels is None, f"{name}: {error}"
            message = str(error)
            assert message.startswith("it ") and message.endswith(".")
            assert "\n" not in message and " at 0x" not in message
        else:
            assert pixels is not None or "of zeros" in name, name
            if canvas is not None:
                assert found.shape == (16, 16, 3)
            elif pixels is not None:
                assert found.shape == pixels.shape
                assert abs(found.astype(int) - pixels).mean() < 12
                if name.split()[0] in ("png", "webp", "bmp", "tiff", "lzw"):
                    np.testing.assert_array_equal(found, pixels)
    assert time.process_time() - start < 10  # a bomb would take minutes


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_bits_never_crash_or_hang(kind: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(WHOLE[kind])
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] ^= 1 << random.integers(8)
        start = time.process_time()
        try:
            assert decode(bytes(data)).dtype == np.uint8
        except BadImage as error:
            assert str(error)
        assert time.process_time() - start < 5


class Folder(Encoded):
    """The files of a folder."""

    class_names = ("one",)

    def __init__(self, folder: Path):
        self.paths = sorted(os.scandir(os.fsencode(folder)), key=lambda item: item.name)
        self.labels = np.zeros(len(self.paths), np.int32)

    def read(self, index: int) -> bytes:
        with open(self.paths[index].path, "rb") as opened:
            return opened.read()

    def where(self, index: int) -> str:
        return os.fsdecode(self.paths[index].path)

    def __repr__(self) -> str:
        return "folder"


def test_a_folder_of_them_loses_only_the_bad_rows(tmp_path: Path) -> None:
    """Under names that lie about the format, and some that cannot be read at all."""
    for number, (_, data, _) in enumerate(CASES):
        (tmp_path / f"{number:03}.jpg").write_bytes(data)
    (tmp_path / "900.jpg").mkdir()
    (tmp_path / "901.jpg").symlink_to(tmp_path / "nowhere")
    with open(os.fsencode(tmp_path) + b"/902\xff.jpg", "wb") as opened:
        opened.write(WHOLE["png"])
    with open(os.fsencode(tmp_path) + b"/903\xff.jpg", "wb") as opened:
        opened.write(b"")
    folder = Folder(tmp_path)
    ids = np.arange(len(folder))
    source = DecodedSource(folder, CenterSquare(size=16), 3, "skip")
    batch = source.gather(ids)
    expected = [pixels is not None for _, _, pixels in CASES] + [
        False,
        False,
        True,
        False,
    ]
    unknown = ["of zeros" in name for name, _, _ in CASES] + [False] * 4
    assert ((batch["mask"] == expected) | unknown).all()
    assert not batch["image"][~batch["mask"]].any()
    for index in ids.tolist():
        reason = source.explain(index)
        assert (reason is None) == batch["mask"][index]
        strict = DecodedSource(folder, CenterSquare(size=16), 3)
        if reason is None:
            alone = strict.gather(ids[index : index + 1])["image"][0]
            np.testing.assert_array_equal(alone, batch["image"][index])
        else:
            assert reason.startswith(
                f"{tmp_path}/{index if index < 900 else 9:03}"[:-3]
            )
            reason.encode()  # can be printed
            with pytest.raises(RuntimeError) as error:
                strict.gather(ids[index : index + 1])
            assert reason in str(error.value)
