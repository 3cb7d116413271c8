"""Which images are for training and which for testing: by the names of parts, or of images."""

import hashlib
import os
from collections.abc import Iterable
from typing import Annotated

from annotated_types import Interval

from jaxcls.data.notes import enumerated, note
from jaxcls.data.sources import Split

HELD_OUT = ("val", "validation", "test")
"""Names of what is evaluated on; where several exist, the first of these is used."""

HeldOutShare = Annotated[float, Interval(gt=0, lt=1)]
"""The part of the images that is held out for testing."""


def split_names(names: Iterable[str], where: str) -> dict[Split, str] | None:
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


def split_rows(names: Iterable[str], test_share: float, split: Split) -> list[int]:
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
