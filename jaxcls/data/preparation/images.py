"""The images of a dataset as encoded files, and what a record stores of each."""

import dataclasses
import io
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import decode, image_of, pixels_of
from jaxcls.data.encoded_images import Encoded, Images
from jaxcls.data.host_crop import CenterSquare
from jaxcls.data.sources import Source, Split
from jaxcls.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "test")

LONGEST_SIDE = 65_500
"""The longest side of a JPEG, in pixels."""

Format = Literal["jpeg", "raw"]


class ArrayImages(Encoded):
    """The images of a source as PNG files, without loss: what works on files works on them."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names = tuple(source.class_names)
        labels = source.labels
        if labels is None:
            labels = np.array([int(source[i]["label"]) for i in range(len(source))])
        self.labels = np.asarray(labels)
        height, width, self.channels = source[0]["image"].shape
        self.side = min(height, width)
        if self.channels not in (1, 3):
            raise UserError(
                f"{source!r} has images of {self.channels} channels; records hold 1 or 3."
            )

    def read(self, index: int) -> bytes:
        try:
            pixels = self._source[index]["image"]
        except RuntimeError as error:
            raise OSError(str(error)) from None
        file = io.BytesIO()
        image_of(pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def where(self, index: int) -> str:
        return f"image {index}"

    def __repr__(self) -> str:
        return repr(self._source)


def open_images(dataset: Dataset) -> dict[Split, Encoded]:
    """Opens both splits of a dataset as encoded files.

    Raises:
      UserError: if the data cannot be opened.
    """
    if isinstance(dataset, Images):
        return {split: dataset.encoded(split) for split in SPLITS}
    return {split: ArrayImages(dataset.source(split)) for split in SPLITS}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a record stores of an image.

    Attributes:
      format: "jpeg" for files, "raw" for pixels.
      size: short side in pixels, or the side of the square.
      max_size: bound of the long side of files; None for none.
      quality: of JPEGs, 1..100.
      channels: 1 for grey images, 3 for colour.
    """

    format: Format
    size: int
    max_size: int | None
    quality: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the stored pixels; None for files."""
        return (self.size, self.size, self.channels) if self.format == "raw" else None

    def __call__(self, data: bytes) -> bytes:
        """Converts the bytes of an image file to the bytes that are stored.

        Raises:
          BadImage: if `data` is no image.
        """
        if self.format == "raw":
            return CenterSquare(size=self.size).place(data, self.channels, 0).tobytes()
        pixels = decode(data, channels=self.channels)
        height, width, _ = pixels.shape
        longest = LONGEST_SIDE if self.max_size is None else self.max_size
        scale = min(1.0, self.size / min(height, width), longest / max(height, width))
        if scale == 1.0 and data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
            return data
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        # Antialiased.
        image = image_of(pixels).resize((width, height), Image.Resampling.BICUBIC)
        colours = ("GRAY", "Gray") if self.channels == 1 else ("RGB", "420")
        return simplejpeg.encode_jpeg(pixels_of(image), self.quality, *colours)
