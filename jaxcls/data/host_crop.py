"""Host crops: how images of all sizes become squares of one size, before they travel.

    crop = HostRandomResizedCrop(size=224)
    crop.place(data, channels=3, seed=seed)               # uint8 [224, 224, 3], for training
    crop.evaluation().place(data, channels=3, seed=0)     # the middle, for validation

The seed alone decides what is random; each row of each step has a seed of its own.
"""

import abc
import dataclasses
import math
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from PIL import Image

from jaxcls.data import decode
from jaxcls.options import AboveZero, Ascending, ShareAboveZero

Interpolation = Literal["nearest", "bilinear", "bicubic"]
"""Pillow's filters of these names. All but "nearest" are antialiased: every old pixel counts."""

Side = Annotated[int, Interval(ge=1, le=8192)]

_TRIES = 10
"""How often torchvision draws a box before it takes the middle of the image."""

_LARGEST_DETOUR = 16
"""An image longer than so many of its widths is cut before it is resized: otherwise a file of
1 x 20,000 pixels would become one of 256 x 5 million."""


@dataclasses.dataclass(kw_only=True)
class Canvas(abc.ABC):
    """A host crop: how an image of any size becomes a square."""

    size: Side

    @abc.abstractmethod
    def place(self, data: bytes, channels: int, seed: int) -> np.ndarray:
        """Decodes an image and lays it onto the square.

        Args:
          data: the bytes of its file.
          channels: 3 (RGB) or 1 (grey).
          seed: 0 <= seed < 2**64; it alone decides what is random.

        Returns:
          uint8 [size, size, channels]; it may be read-only.

        Raises:
          BadImage: if the bytes cannot be decoded.
        """

    def evaluation(self) -> "Canvas":
        """Returns the crop of validation images: of the same shape, with nothing random."""
        return self

    def shape(self, channels: int) -> tuple[int, int, int]:
        """Returns the shape of what `place` gives: (height, width, channels)."""
        return self.size, self.size, channels


@dataclasses.dataclass(kw_only=True)
class CenterSquare(Canvas):
    """The middle of the image: its short side is resized, then a square is cut out.

    Equal to torchvision's Resize and CenterCrop of a Pillow image, pixel for pixel, and the
    same for training and validation. (Only images more than 16 times as long as wide are cut
    before they are resized.)

    Attributes:
      size: pixels of a side of the square, 1..8192.
      crop: side of the square by the short side that the image is resized to, above 0 and at
        most 1: size 224 and crop 0.875 cut the middle 224 out of 256.
      interpolation: "nearest", "bilinear" or "bicubic", antialiased as Pillow's.
    """

    size: Side = 256
    crop: ShareAboveZero = 1.0
    interpolation: Interpolation = "bilinear"

    def place(self, data: bytes, channels: int, seed: int) -> np.ndarray:
        image = decode.image_of(decode.decode(data, channels=channels))
        short, long = sorted(image.size)
        new_short = round(self.size / self.crop)
        new_long = new_short * long // short
        tall = image.height > image.width
        width, height = (new_short, new_long) if tall else (new_long, new_short)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        square = (left, top, left + self.size, top + self.size)
        resample = _filter(self.interpolation)
        if new_long <= _LARGEST_DETOUR * new_short:
            placed = image.resize((width, height), resample).crop(square)
        else:
            # The part of the image that the square shows, in its own pixels.
            across, down = image.width / width, image.height / height
            part = (
                square[0] * across,
                square[1] * down,
                min(square[2] * across, image.width),
                min(square[3] * down, image.height),
            )
            placed = image.resize((self.size, self.size), resample, box=part)
        return decode.pixels_of(placed)


@dataclasses.dataclass(kw_only=True)
class HostRandomResizedCrop(Canvas):
    """A box of random area and shape, cut out of the full image and resized to the square
    (torchvision's RandomResizedCrop; Szegedy et al., "Going Deeper with Convolutions", 2014).

    For large photographs: the crop comes from the image as it was taken, not from a square that
    is already small. A JPEG file is decoded only down to the box's last row, and at 1/2 of its
    size or less where the box then still has as many pixels as the square. A crop of a file
    decoded at full size equals torchvision's of a Pillow image in the same box.

    Attributes:
      size: pixels of a side of the square, 1..8192.
      scale: the box's area as a fraction of the image's, above 0 and at most 1, uniform between
        the two.
      ratio: the box's width by its height, above 0, its logarithm uniform between the two.
      interpolation: "nearest", "bilinear" or "bicubic", antialiased as Pillow's.
      crop: for validation images: the middle, as CenterSquare's.
    """

    size: Side = 224
    scale: Annotated[tuple[ShareAboveZero, ShareAboveZero], Ascending()] = (0.08, 1.0)
    ratio: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    crop: ShareAboveZero = 0.875

    def place(self, data: bytes, channels: int, seed: int) -> np.ndarray:
        height, width = decode.size(data)
        box = random_box(seed, height, width, self.scale, self.ratio)
        # The least short side at which the box is `size` pixels high and wide, even after the
        # decoder has rounded up the sides of the image.
        enough = -(-min(height, width) * self.size // min(box.height, box.width)) + 1
        pixels = decode.decode(
            data, channels=channels, min_side=enough, rows=box.top + box.height
        )
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        top, bottom = box.top * down, (box.top + box.height) * down
        left, right = box.left * across, (box.left + box.width) * across
        # In a smaller image, the box may end within a pixel.
        first_row, first_column = int(top), int(left)
        cut = pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
        part = (
            left - first_column,
            top - first_row,
            min(right - first_column, cut.shape[1]),
            min(bottom - first_row, cut.shape[0]),
        )
        side = (self.size, self.size)
        resample = _filter(self.interpolation)
        return decode.pixels_of(decode.image_of(cut).resize(side, resample, box=part))

    def evaluation(self) -> CenterSquare:
        return CenterSquare(
            size=self.size, crop=self.crop, interpolation=self.interpolation
        )


@dataclasses.dataclass(kw_only=True)
class Letterbox(Canvas):
    """The whole image in its own shape, resized to fit the square and centred on a grey fill.

    Nothing is cut off; transforms on the device may still crop.

    Attributes:
      size: pixels of a side of the square, 1..8192.
      fill: the grey level of the rest, 0..255.
      interpolation: "nearest", "bilinear" or "bicubic", antialiased as Pillow's.
    """

    size: Side = 256
    fill: Annotated[int, Interval(ge=0, le=255)] = 0
    interpolation: Interpolation = "bilinear"

    def place(self, data: bytes, channels: int, seed: int) -> np.ndarray:
        image = decode.image_of(decode.decode(data, channels=channels))
        long = max(image.size)
        width = max(round(image.width * self.size / long), 1)
        height = max(round(image.height * self.size / long), 1)
        resized = image.resize((width, height), _filter(self.interpolation))
        pixels = decode.pixels_of(resized)
        placed = np.full(self.shape(channels), self.fill, np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        placed[top : top + height, left : left + width] = pixels
        return placed


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    seed: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws a box as torchvision's RandomResizedCrop does: the first of ten tries that fits. If
    none fits, the box is the middle of the image, cut to the nearest ratio allowed.

    Args:
      seed: 0 <= seed < 2**64, the key of the counter-based generator Philox, whose raw words
        NumPy promises for ever.
      height: of the image.
      width: of the image.
      scale: the least and greatest area, as a fraction of the image's.
      ratio: the least and greatest width by height.
    """
    key = np.array([seed, 0], np.uint64)
    raw = np.random.Philox(key=key).random_raw(2 * _TRIES + 2)
    uniform = ((raw >> np.uint64(11)) * 2.0**-53).tolist()  # in 0 <= u < 1
    down, across = uniform[-2:]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for draw in range(_TRIES):
        of_area, of_aspect = uniform[2 * draw : 2 * draw + 2]
        area = height * width * (scale[0] + of_area * (scale[1] - scale[0]))
        aspect = math.exp(log_low + of_aspect * (log_high - log_low))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(down * (height - box_height + 1))
            left = int(across * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_height = min(height, max(round(width / ratio[0]), 1))
    box_width = min(width, max(round(height * ratio[1]), 1))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return Box(top, left, box_height, box_width)


def _filter(interpolation: Interpolation) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
