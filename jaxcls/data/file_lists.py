"""What formats that list files or records have in common: names, classes and splits."""

import contextlib
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean, printable

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff".split()
)
"""What the names of image files end with, in any case of the letters."""

HELD_OUT = ("val", "validation", "test")
"""Names of what is evaluated on; where several exist, the first of these is used."""

HeldOutShare = Annotated[float, Interval(gt=0, lt=1)]
"""The part of the images that is held out for testing."""


@functools.cache
def note(message: str) -> None:
    """Tells the user what was found in the data, once a process: both splits come by here, and
    often find the same. Training goes on."""
    print(f"note: {printable(message)}", file=sys.stderr, flush=True)


def counted(number: int, one: str, several: str = "") -> str:
    """Returns "1 file", "2,000 files"; the plural is that with an "s" where none is given."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def enumerated(names: Sequence[str], limit: int = 5) -> str:
    """Returns "a, b, c" or "a, b, ... (12 in all)"."""
    some = ", ".join(itertools.islice(names, limit))
    return some if len(names) <= limit else f"{some}, ... ({len(names)} in all)"


def similar_file(path: str) -> str:
    """Returns " Did you mean 'x'?" for a file beside `path` that has nearly its name, or "".

    Stricter than did_you_mean: a folder may hold any number of files that have nothing to do
    with the one that was meant.
    """
    folder, name = os.path.split(path)
    beside = os.listdir(folder) if os.path.isdir(folder) else []
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.7)
    return f" Did you mean '{close[0]}'?" if close else ""


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's own and no part of the data: ".DS_Store",
    "._photo.jpg", "__MACOSX"."""
    return name.startswith(".") or name == "__MACOSX"


def rows_of_split(names: Iterable[str], test_share: float, split: Split) -> list[int]:
    """Returns which records are in a split, where their names alone decide.

    A record is held out for testing if the first 64 bits of its name's SHA-256, read as a
    fraction of 2**64, lie below `test_share`: adding or removing a record moves no other one to
    the other side.

    Args:
      names: of all records, unique in the dataset and the same on every machine.
      test_share: 0..1.
      split: "train" for all that are not held out.
    """
    rows = []
    for row, name in enumerate(names):
        digest = hashlib.sha256(os.fsencode(name)).digest()
        is_test = int.from_bytes(digest[:8], "big") < test_share * 2**64
        if is_test == (split == "test"):
            rows.append(row)
    return rows


def named_splits(names: Iterable[str], where: str) -> dict[Split, str] | None:
    """Returns which parts of the data are for training and for evaluation.

    Where several could be evaluated, the first in the order of HELD_OUT is, with a note.

    Args:
      names: of all parts, in any case of the letters.
      where: what has these parts, for the note.

    Returns:
      The name of each split's part; None unless there are "train" and one of HELD_OUT.
    """
    by_name = {name.lower(): name for name in names}
    held_out = [by_name[name] for name in HELD_OUT if name in by_name]
    if "train" not in by_name or not held_out:
        return None
    if len(held_out) > 1:
        note(f"{where} has {enumerated(held_out)}: {held_out[0]} is what is evaluated.")
    return {"train": by_name["train"], "test": held_out[0]}


def class_list(values: Iterable[str], of: str) -> tuple[str, ...]:
    """Returns the class names that occur, sorted: whole numbers by value, other names as
    text. Notes if there are some of both.

    Args:
      values: the classes of records.
      of: what they are the classes of, "pets.csv".
    """
    names = sorted(set(values))
    numbers = [name for name in names if re.fullmatch("-?[0-9]+", name)]
    if len(numbers) == len(names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    if numbers:
        others = sorted(set(names) - set(numbers))
        note(
            f"some classes of {of} are numbers ({enumerated(numbers)}) and others are not "
            f"({enumerated(others)}): each is a class by itself."
        )
    return tuple(names)


def class_indices(
    values: Iterable[str],
    class_names: Sequence[str],
    of: str,
    where: Callable[[int], str],
    *,
    numbers: bool = False,
) -> np.ndarray:
    """Turns the classes of records, as they are written, into indices, int32 [n]; notes which
    classes have no record.

    Args:
      values: the class of each record, [n].
      class_names: the classes in order.
      of: what they are the classes of, "pets.csv[test]".
      where: returns the name of record 0..n-1, for the message.
      numbers: whether a class may also be written as its index.

    Raises:
      UserError: if there is no such class.
    """
    index = {name: i for i, name in enumerate(class_names)}
    if numbers:
        index = {str(i): i for i in range(len(class_names))} | index
    indices = []
    for row, value in enumerate(values):
        if value not in index:
            raise UserError(
                f"{where(row)} is of class '{value}', which is not among the "
                f"{counted(len(class_names), 'class', 'classes')} of training."
                f"{did_you_mean(value, class_names)}"
            )
        indices.append(index[value])
    labels = np.array(indices, np.int32)
    note_missing_classes(class_names, labels, of)
    return labels


@contextlib.contextmanager
def explaining(
    what: str, kinds: tuple[type[Exception], ...] = (Exception,), advice: str = ""
) -> Iterator[None]:
    """Turns errors of some kinds into a UserError: "WHAT (the reason)ADVICE."

    Raises:
      UserError: in the place of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = getattr(error, "strerror", None) or told
        raise UserError(f"{what} ({reason}){advice}.") from error


def json_fields(text: str | bytes, where: str) -> dict[str, Any]:
    """Returns the fields of an object in JSON.

    Raises:
      UserError: if it is something else, naming `where`.
    """
    with explaining(f"{where} is not JSON", (ValueError, RecursionError)):
        value = json.loads(text)
        if "\\u" in str(text):
            # Refuses the half of a pair ("\\ud800"), which is no text and no file's name.
            json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, dict):
        raise UserError(f'{where} is not an object such as {{"label": "cat"}}.')
    return value


def note_missing_classes(
    class_names: Sequence[str], labels: np.ndarray, of: str
) -> None:
    """Notes which classes have no record.

    Args:
      class_names: all classes.
      labels: the index of each record's class, int [n].
      of: what they are the labels of, "the test part of pets".
    """
    missing = np.delete(np.array(class_names, object), labels).tolist()
    if missing:
        note(f"{of} has no image of {enumerated(missing)}.")


def field_of(fields: dict[str, Any], name: str, option: str, where: str) -> Any:
    """Returns the value of a record's field that an option names.

    Raises:
      UserError: if the record has no such field.
    """
    if name not in fields:
        known = [field for field in fields if field]
        raise UserError(
            f"{where} has no '{name}'.{did_you_mean(name, known)} It has "
            f"{', '.join(known) or 'none'}; set data.{option} to one of them."
        )
    return fields[name]


def require(option: str, value: str, what: str) -> None:
    """Raises UserError if a path or name that has no default is not set."""
    if not value:
        raise UserError(
            f"data.{option} is not set: give {what} with --config.data.{option}=..."
        )


def check_different(class_names: Sequence[str]) -> None:
    """Raises UserError if two of the classes that the user names are one."""
    if len(set(class_names)) < len(class_names):
        raise UserError(f"data.class_names must be different, not {class_names}.")


def expanded(path: str) -> str:
    """Returns a path with "~" replaced and made absolute."""
    return os.path.abspath(os.path.expanduser(path))
