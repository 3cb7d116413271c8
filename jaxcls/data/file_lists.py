"""What sources that list files or records have in common: names, classes and splits.

A list of a million names is one block of bytes here, not a million Python strings: it is sent to
every worker process.
"""

import difflib
import functools
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from jaxcls.errors import UserError, did_you_mean

IMAGE_EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff".split()
)
"""What the names of image files end with, in any case of the letters."""

HELD_OUT = ("val", "validation", "test")
"""Names of what is evaluated on; where several exist, the first of these is used."""

ClassOrder = Literal["lexical", "natural"]


class Names:
    """Many short byte strings in one block, indexed 0..n-1."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        self._block = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._block[self._ends[index] : self._ends[index + 1]]


@functools.cache
def say(message: str) -> None:
    """Tells the user what was found in the data, once a process: both splits come by here, and
    often find the same. Training goes on."""
    print(f"note: {message}", file=sys.stderr, flush=True)


def shown(name: bytes | str) -> str:
    """Returns a file's name as text that can be printed, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def count(number: int, one: str, several: str = "") -> str:
    """Returns "1 file", "2,000 files"; the plural is that with an "s" where none is given."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def similar_file(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the file whose name is nearly `name`, or "".

    Stricter than did_you_mean: a folder may hold any number of files that have nothing to do
    with the one that was meant.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" Did you mean '{close[0]}'?" if close else ""


def is_image(name: bytes) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder is the system's own and no part of the data: ".DS_Store",
    "._photo.jpg", "__MACOSX"."""
    return name.startswith(b".") or name == b"__MACOSX"


def in_test_share(name: bytes, share: float) -> bool:
    """Decides whether a record is held out for testing, by its name alone.

    The first 64 bits of the name's SHA-256, read as a fraction of 2**64, lie below `share`:
    adding or removing a record moves no other one to the other side.

    Args:
      name: of the record, unique in its dataset and the same on every machine.
      share: 0..1.
    """
    word = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
    return word < share * 2**64


def check_test_share(share: float) -> None:
    """Raises UserError unless 0 < share < 1."""
    if not 0 < share < 1:
        raise UserError(
            f"data.test_share must lie between 0 and 1, not {share}: it is the part of the "
            "images that is held out for testing."
        )


def fingerprint(*parts: bytes | np.ndarray | Iterable[bytes]) -> str:
    """Returns 12 hexadecimal digits that depend on every byte of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part).tobytes()
        pieces = [part] if isinstance(part, bytes) else part
        for piece in pieces:
            digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:12]


def sort_key(order: ClassOrder, name: str) -> tuple[object, ...]:
    """Returns the key that sorts names: "lexical" as text ("1", "10", "2"), "natural" with
    the numbers in them by their value ("1", "2", "10")."""
    if order == "lexical":
        return (name,)
    # Text and numbers take turns, so that like is compared with like.
    pieces = re.split("([0-9]+)", name)
    return (*[int(p) if p.isdecimal() and p.isascii() else p for p in pieces], name)


def class_list(values: Iterable[str]) -> tuple[str, ...]:
    """Returns the class names that occur, sorted: whole numbers by value, other names as
    text."""
    different = set(values)
    numbers = all(re.fullmatch("-?[0-9]+", value) for value in different)
    if numbers:
        return tuple(sorted(different, key=lambda value: (int(value), value)))
    return tuple(sorted(different))


class ClassIndex:
    """Turns the class of a record, as it is written, into an index.

    Given names may be written as they are, or by their number from 0.
    """

    def __init__(self, class_names: Sequence[str], *, numbers: bool):
        """Makes the table.

        Args:
          class_names: the classes in order.
          numbers: whether a class may also be written as its index.
        """
        self.class_names = tuple(class_names)
        self._index = {name: i for i, name in enumerate(self.class_names)}
        if numbers:
            for i in range(len(self.class_names)):
                self._index.setdefault(str(i), i)

    def __call__(self, value: str, where: str) -> int:
        """Returns the index of a class.

        Raises:
          UserError: if there is no such class; `where` says who wanted it.
        """
        if value not in self._index:
            raise UserError(
                f"{where} is of class '{value}', which is not among the "
                f"{count(len(self.class_names), 'class', 'classes')} of training."
                f"{did_you_mean(value, self.class_names)}"
            )
        return self._index[value]


def say_missing_classes(
    class_names: Sequence[str], labels: np.ndarray, of: str
) -> None:
    """Says which classes have no record.

    Args:
      class_names: all classes.
      labels: indices [n], or uint8 [n, classes] with ones.
      of: what they are the labels of, "the test part of pets".
    """
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
    else:
        counts = np.bincount(labels, minlength=len(class_names))
    missing = [
        name
        for name, count in zip(class_names, counts.tolist(), strict=True)
        if not count
    ]
    if missing:
        say(f"{of} has no image of {enumerated(missing)}.")


def enumerated(names: Sequence[str], limit: int = 5) -> str:
    """Returns "a, b, c" or "a, b, ... (12 in all)"."""
    some = ", ".join(itertools.islice(names, limit))
    return some if len(names) <= limit else f"{some}, ... ({len(names)} in all)"


def require(option: str, value: str, what: str) -> None:
    """Raises UserError if a path that has no default is not set."""
    if not value:
        raise UserError(
            f"data.{option} is not set: give {what} with --config.data.{option}=..."
        )


def expanded(path: str) -> str:
    """Returns a path with "~" replaced and made absolute."""
    return os.path.abspath(os.path.expanduser(path))
