"""Rows of images as one picture, with their labels below them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 112, 4, 14
"""Pixels: least side of an image, space between two, height of a line of text."""


def contact_sheet(
    rows: list[tuple[str, np.ndarray, np.ndarray]],
    targets: np.ndarray,
    names: Sequence[str],
) -> Image.Image:
    """Lays rows of images out below one another, with their names and the labels that changed.

    Args:
      rows: of each its name, images of grey levels [n, height, width, channels] and soft labels
        [n, classes]; the first has the originals.
      targets: the labels before any transform, [n, classes].
      names: of the classes.
    """
    font = ImageFont.load_default(LINE - 3)
    pictures = [[_picture(image) for image in images] for _, images, _ in rows]
    widest = max(picture.width for row in pictures for picture in row)
    captions = [
        [
            "" if index and (label == given).all() else label_text(label, names)
            for label, given in zip(labels, targets, strict=True)
        ]
        for index, (_, _, labels) in enumerate(rows)
    ]
    heights = [
        LINE * (1 + max(len(text.splitlines()) for text in texts))
        + max(picture.height for picture in row)
        + 2 * GAP
        for row, texts in zip(pictures, captions, strict=True)
    ]
    width = len(targets) * (widest + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for index, (title, _, _) in enumerate(rows):
        draw.text((GAP, top), title, fill="black", font=font)
        left = GAP
        for picture, text in zip(pictures[index], captions[index], strict=True):
            sheet.paste(picture, (left, top + LINE))
            below = (left, top + LINE + picture.height)
            draw.text(below, text, fill="black", font=font, spacing=1)
            left += widest + GAP
        top += heights[index]
    return sheet


def _picture(image: np.ndarray) -> Image.Image:
    """Returns an image [height, width, channels] of grey levels, enlarged to CELL or more by
    whole pixels, so that one sees each."""
    levels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    levels = np.repeat(levels, 3, axis=-1) if levels.shape[-1] == 1 else levels[..., :3]
    times = max(1, CELL // max(levels.shape[:2]))
    return Image.fromarray(levels.repeat(times, 0).repeat(times, 1))


def label_text(target: np.ndarray, names: Sequence[str]) -> str:
    """Returns a soft label as text, its largest parts first: "70% cat\\n30% dog"."""
    order = np.argsort(-target, kind="stable")
    parts = [index for index in order[:3] if target[index] > 0.005]
    if all(target[part] > 0.995 for part in parts):  # whole labels, one or several
        return "\n".join(str(names[part]) for part in parts)
    return "\n".join(f"{target[index]:.0%} {names[index]}" for index in parts)


def can_be_written(suffix: str) -> bool:
    """Whether Pillow writes colour pictures to files with this ending. Many formats it only
    reads, or writes in grey, which only an attempt tells."""
    kind = Image.registered_extensions().get(suffix)
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind)
    except (KeyError, OSError, ValueError):
        return False
    return True
