"""From the bytes of an image file to its pixels: `decode(data)`, uint8 [height, width, channels].

The first bytes tell the format: the name of a file often lies. libjpeg-turbo (simplejpeg) decodes
JPEG, 1.1 to 1.4 times as fast as Pillow and to the same pixels; Pillow decodes everything else,
and CMYK. Both release Python's lock while they work. The result is that of Pillow's
`convert("RGB")`, and so that of torchvision's and timm's folders:

* Transparency is dropped: a pixel keeps its colour, however transparent. Nothing is laid over
  black or white.
* CMYK and YCCK become RGB without colour profiles.
* An animation, or a file with several pages, gives its first image.

It differs from Pillow's `convert` in three points:

* 16 bits of grey are divided by 257 and rounded (Pillow cuts everything above 255 off). In
  three channels Pillow keeps the upper 8 bits itself, which is at most one level off.
* Images are turned upright as Exif says (`ImageOps.exif_transpose`).
* Visible damage is an error, not a picture that is partly grey: JPEG files must decode without
  a warning, and the checksums of PNG files must be right. The other formats, JPEG included,
  have no checksums: damaged but well-formed data cannot be told from an image.

No wheel decodes a box alone, but a JPEG file can be decoded from its top down to the box's last
row: a changed header says that the file has only so many rows. Half an image takes half the time.
"""

import io
import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded (Pillow's limit for an error)."""

_MAX_SCANS = 500
"""A progressive JPEG file with more scans only wastes the decoder's time (libjpeg-turbo's limit)."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that Pillow may read: none runs a program, and all occur among photographs."""

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112  # the number of Exif's field


class BadImage(ValueError):
    """Bytes that cannot be decoded as an image. The message is a sentence without a path."""


def decode(
    data: bytes,
    *,
    channels: int = 3,
    min_side: int | None = None,
    rows: int | None = None,
) -> np.ndarray:
    """Returns the pixels of an image file, upright.

    Args:
      data: the whole file.
      channels: 3 for RGB, or 1 for grey (Pillow's mode "L").
      min_side: if given, a JPEG file may come out at 4/8, 3/8, 2/8 or 1/8 of its size, as long
        as its short side keeps this many pixels. That takes less time than the whole; in
        photographs a pixel then differs by 1 to 2 levels on average from the mean of the
        pixels that it stands for. (Scales above 4/8 take longer than the whole.)
      rows: if given, only the first so many rows of the image (as `size` counts them) are
        needed: a JPEG file may leave the others black. Damage is then found in those rows only,
        except that a file cut off is always found.

    Returns:
      uint8 [height, width, channels]; it may be read-only.

    Raises:
      BadImage: if the format is unknown, or the image is damaged, cut off or too large.
    """
    jpeg = _jpeg_header(data)
    if jpeg is None:
        return _by_pillow(data, channels)
    *_, colours = jpeg
    if colours in ("CMYK", "YCCK"):
        _decode_jpeg(data, "CMYK")  # Pillow would not say that it is damaged
        return _by_pillow(data, channels)
    scale: dict[str, int] = {}
    if min_side:  # where not even 1/2 is large enough, simplejpeg decodes the whole
        scale = {"min_height": min_side, "min_width": min_side, "min_factor": 2}
    wanted = "GRAY" if channels == 1 and colours == "Gray" else "RGB"
    orientation = _jpeg_orientation(data)
    pixels = None
    if rows is not None and orientation == 1:
        pixels = _decode_jpeg_top(data, wanted, rows, scale)
    if pixels is None:
        pixels = _decode_jpeg(data, wanted, **scale)
    if pixels.shape[2] > channels:
        pixels = pixels_of(Image.fromarray(pixels).convert("L"))
    return _upright(pixels, orientation)


def size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of the image that `decode` gives, from the file's first bytes.

    Raises:
      BadImage: if the bytes do not begin as an image does, or it is too large.
    """
    jpeg = _jpeg_header(data)
    if jpeg is not None:
        height, width, _ = jpeg
        orientation = _jpeg_orientation(data)
    else:
        image = _open(data)
        width, height = image.size
        orientation = _orientation(image, data)
    return (width, height) if orientation >= 5 else (height, width)


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Returns (height, width, colour space) of a JPEG file, None of anything else.

    Also None for a JPEG file that simplejpeg cannot handle: Pillow decodes or refuses it.
    """
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(height, width)
    return height, width, colours


def _decode_jpeg(data: bytes, colours: str, **scale: int) -> np.ndarray:
    """Returns uint8 [height, width, channels] of a JPEG file, strictly."""
    progressive = any(marker == 0xC2 for marker, _, _ in _segments(data))
    if progressive and data.count(b"\xff\xda") > _MAX_SCANS:
        raise BadImage(f"it is a JPEG file with more than {_MAX_SCANS} scans.")
    try:
        return simplejpeg.decode_jpeg(data, colours, **scale)
    except ValueError as error:
        raise BadImage(f"it is a damaged JPEG file: {_sentence(error)}") from None


def _decode_jpeg_top(
    data: bytes, colours: str, rows: int, scale: dict[str, int]
) -> np.ndarray | None:
    """Returns the pixels with no more than the first `rows` decoded, the others black.

    None where the whole must be decoded: because it saves little, the file is not sequential,
    or anything at all is odd about it.
    """
    starts = {marker: start for marker, start, _ in _segments(data)}
    frame = starts.get(0xC0)  # of a baseline file
    # The decoder would complain of what follows restart markers (0xDD).
    if frame is None or 0xDD in starts:
        return None
    # Whole blocks of 16 rows, and one more, whose colours are blended into the last row's.
    kept = -(-rows // 16) * 16 + 16
    if kept > int.from_bytes(data[frame + 1 : frame + 3], "big") * 7 / 8:
        return None
    shorter = data[: frame + 1] + kept.to_bytes(2, "big") + data[frame + 3 :]
    height, width, *_ = simplejpeg.decode_jpeg_header(data, **scale)
    if scale:
        scale = {"min_width": width, "min_factor": scale["min_factor"]}
    if simplejpeg.decode_jpeg_header(shorter, **scale)[1] != width:
        return None
    pixels = np.zeros((height, width, 1 if colours == "GRAY" else 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(shorter, colours, buffer=pixels, **scale)
    except ValueError as error:
        # libjpeg reports the first problem that it meets. That must be the rows left over, and
        # nothing else.
        if not _LEFT_OVER.fullmatch(str(error)):
            return None
    return pixels


_LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end of the content) of each segment of a JPEG file before the
    pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at + 4, end
        at = end


def _jpeg_orientation(data: bytes) -> int:
    """Returns Exif's orientation in a JPEG file: 1..8; 1, upright, also if there is none."""
    for marker, start, end in _segments(data):
        if marker == 0xE1 and data.startswith(b"Exif\0\0", start):
            return _exif_orientation(data[start + 6 : end])
    return 1


def _exif_orientation(tiff: bytes) -> int:
    """Returns the orientation 1..8 in an Exif block, which is laid out as a TIFF file."""
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            at = start + 2 + 12 * entry
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == _ORIENTATION:
                return value if value in range(1, 9) else 1
    except struct.error:  # a broken Exif block is no reason to lose the image
        pass
    return 1


def _orientation(image: Image.Image, data: bytes) -> int:
    """Returns the orientation 1..8 of an image that Pillow has opened."""
    if data.startswith(_JPEG):
        return _jpeg_orientation(data)
    if image.format == "TIFF":  # Pillow turns it itself
        return 1
    return _exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels [height, width, channels] upright, given Exif's orientation 1..8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    down, across = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(orientation - 1) % 4]
    return np.ascontiguousarray(pixels[::down, ::across])


def _open(data: bytes) -> Image.Image:
    """Opens an image with Pillow, which reads its header and not its pixels."""
    if not data:
        raise BadImage("it is empty (0 bytes).")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"it has more than {MAX_PIXELS:,} pixels.") from None
    except Exception:  # hostile bytes make Pillow's readers raise nearly anything
        raise BadImage(_what_it_is(data)) from None
    _check_pixels(image.height, image.width)
    return image


def _what_it_is(data: bytes) -> str:
    """Returns a sentence on bytes that Pillow does not open."""
    begin = f"its {len(data):,} bytes begin with {data[:8]!r}."
    if data.startswith(_JPEG):
        return f"it is a JPEG file that is cut off or damaged in its header; {begin}"
    unread = None
    if data[4:8] == b"ftyp":  # a box of the container that HEIC, AVIF and MP4 share
        kinds = {b"avif": "an AVIF", b"hei": "a HEIC", b"mif1": "a HEIC"}
        unread = next((kinds[brand] for brand in kinds if brand in data[8:64]), None)
    elif b"<svg" in data[:1000] and data.lstrip().startswith(b"<"):
        unread = "an SVG"
    if unread is not None:
        return f"it is {unread} file, which cannot be read: convert it to JPEG or PNG."
    return (
        "it is no JPEG, PNG, WebP, BMP, GIF, TIFF or PPM image, or its header is broken; "
        f"{begin}"
    )


def _by_pillow(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image in any format, as `decode` does."""
    image = _open(data)
    kind = image.format
    try:
        if kind == "PNG":
            image.verify()  # its checksums; then it must be opened again
            image = _open(data)
        orientation = _orientation(image, data)
        mode = "L" if channels == 1 else "RGB"
        pixels = pixels_of(_eight_bits(image).convert(mode))
    except BadImage:
        raise
    except Exception as error:  # as in _open
        raise BadImage(f"it is a damaged {kind} file: {_sentence(error)}") from None
    return _upright(pixels, orientation)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Loads an image in a mode that converts to RGB without losing grey levels."""
    image.load()
    image.info.pop("transparency", None)  # or Pillow warns that it is dropped
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImage(
            f"it holds 32-bit numbers (Pillow's mode {image.mode}), of which nothing says "
            "which are black and white."
        )
    return image


def image_of(pixels: np.ndarray) -> Image.Image:
    """Returns a Pillow image of uint8 [height, width, 1 or 3]."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Returns uint8 [height, width, channels] of an image in mode "L" or "RGB"; read-only."""
    return np.atleast_3d(np.asarray(image))


def _check_pixels(height: int, width: int) -> None:
    """Raises BadImage for more pixels than memory should be given to."""
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"it has {height} x {width} pixels, more than {MAX_PIXELS:,}: too many to decode."
        )


def _sentence(error: Exception) -> str:
    """Returns an exception's first line as the end of a sentence."""
    first = (str(error) or type(error).__name__).splitlines()[0].strip()
    return first if first.endswith(".") else f"{first}."
