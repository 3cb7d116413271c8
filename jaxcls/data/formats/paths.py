"""Paths that the user gives, and names of files."""

import difflib
import os

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff".split()
)
"""What the names of image files end with, in any case of the letters."""


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's own and no part of the data: ".DS_Store",
    "._photo.jpg", "__MACOSX"."""
    return name.startswith(".") or name == "__MACOSX"


def expanded(path: str) -> str:
    """Returns a path with "~" replaced and made absolute."""
    return os.path.abspath(os.path.expanduser(path))


def similar_file(path: str) -> str:
    """Returns " Did you mean 'x'?" for a file beside `path` that has nearly its name, or "".

    Stricter than did_you_mean: a folder may hold any number of files that have nothing to do
    with the one that was meant.
    """
    folder, name = os.path.split(path)
    beside = os.listdir(folder) if os.path.isdir(folder) else []
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.7)
    return f" Did you mean '{close[0]}'?" if close else ""
