"""The classes of images, as they are written beside them, and their indices."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxcls.data.notes import counted, enumerated, note
from jaxcls.errors import UserError, did_you_mean


def check_different(class_names: Sequence[str]) -> None:
    """Raises UserError if two of the classes that the user names are one."""
    if len(set(class_names)) < len(class_names):
        raise UserError(f"data.class_names must be different, not {class_names}.")


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
