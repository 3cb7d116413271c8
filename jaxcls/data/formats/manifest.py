"""A table of images: a file that lists their paths and classes.

path,label                       {"path": "a/1.jpg", "label": "cat"}
a/1.jpg,cat                      {"path": "a/2.jpg", "label": ["cat", "dog"]}
a/2.jpg,dog

Manifest(path="pets.csv")        Manifest(path="pets.jsonl", multi_label=True)
"""

import collections
import concurrent.futures
import csv
import dataclasses
import io
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.classes import check_different, class_indices, class_list
from jaxcls.data.formats.fields import field_of, json_fields
from jaxcls.data.formats.folder import SCAN_THREADS, FileImages
from jaxcls.data.formats.image_list import Labels
from jaxcls.data.formats.paths import expanded, is_image
from jaxcls.data.formats.splits import HELD_OUT, HeldOutShare, split_names, split_rows
from jaxcls.data.notes import counted, enumerated, explaining, note, require
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, printable

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
SEPARATOR = ";"
"""Between the classes of an image, in a table of text."""
TRAINING = ("train", "training")
"""What the split column says of a training image."""
MAX_CHECKED = 1_000_000
"""The most files to look for before training begins; 100,000 on a local disk take half a second."""


class Row(NamedTuple):
    """An image of a manifest.

    Attributes:
      line: in the file, from 1.
      path: of the image, as written, without "./" or the root in front.
      classes: one or, with multi_label, any number.
      split: what the split column says, in small letters; "" without one.
    """

    line: int
    path: str
    classes: tuple[str, ...]
    split: str


@dataclasses.dataclass(kw_only=True)
class Manifest(Images):
    """A CSV file with a line of column names, or a file with one JSON object a line.

    CSV is UTF-8, with or without a byte-order mark, its columns separated by comma,
    semicolon or tab; what is called .jsonl, .ndjson or .json is JSON.

    `test_path` says which images are for testing, else `split_column` does. Without either, an
    image is for testing if the SHA-256 of its path as it is written, read as a fraction, lies
    below `test_share`. Classes are those of the training images (in the last case, of all
    images), sorted: whole numbers by value, other names as text. An image that is listed twice
    with the same classes counts once.

    Attributes:
      path: the manifest.
      root: folder that the images' paths are relative to; "" takes that of the manifest.
        Absolute paths stay as they are.
      path_column: the column with the images' paths.
      label_column: the column with their classes.
      split_column: the column that says "train", or "val", "validation" or "test": where there
        are several of these, the first in this order is evaluated. "" for no such column.
      test_path: another manifest, of the test images; "" for none.
      test_share: the part of the images that is held out for testing where nothing else says
        which, above 0 and below 1.
      class_names: the classes in the order of the labels, which may then also be numbers from
        0; empty for those that occur.
      multi_label: an image may be of several classes, or none: separated by ";", in JSON a
        list. Labels are then a column of ones and zeros for each class.
    """

    path: str = ""
    root: str = ""
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = ""
    test_path: str = ""
    test_share: HeldOutShare = 0.2
    class_names: tuple[str, ...] = ()
    multi_label: bool = False

    def validate(self) -> None:
        require("path", self.path, "the CSV or JSONL file")
        if self.test_path and self.split_column:
            raise UserError(
                f"data.test_path is '{self.test_path}' and data.split_column "
                f"'{self.split_column}': only one of them can say what is for testing."
            )
        check_different(self.class_names)

    def encoded(self, split: Split) -> FileImages:
        """Reads the manifest and picks the images of one split.

        Raises:
          UserError: if it cannot be read or is not consistent.
        """
        options.check(self, "data")
        manifest = expanded(self.path)
        training, chosen = self._divided(manifest, split)
        written = (name for row in training for name in row.classes)
        class_names = self.class_names or class_list(written, manifest)
        if self.test_path and split == "test":
            manifest = expanded(self.test_path)
        name = f"{printable(os.path.basename(manifest))}[{split}]"
        if not chosen:
            raise UserError(f"{manifest} has no image to {split} on.")
        labels = self._labels(chosen, class_names, name, manifest)
        folder = self._root(manifest)
        if len(chosen) <= MAX_CHECKED:
            self._check_files(chosen, folder, manifest)
        files = (row.path for row in chosen)
        return FileImages(Labels(name, labels, class_names), folder, files)

    def _root(self, manifest: str) -> str:
        return expanded(self.root) if self.root else os.path.dirname(manifest)

    def _divided(self, manifest: str, split: Split) -> tuple[list[Row], list[Row]]:
        """Returns the rows that the classes are taken from, and those of the split."""
        rows = self._rows(manifest)
        if not self.test_path and not self.split_column:
            paths = (row.path for row in rows)
            chosen = split_rows(paths, self.test_share, split)
            return rows, [rows[i] for i in chosen]
        if self.test_path:
            train, test = rows, self._rows(expanded(self.test_path))
        else:
            train, test = _by_column(rows, self.split_column, manifest)
        if split == "train":
            return train, train
        if both := {row.path for row in train} & {row.path for row in test}:
            note(
                f"the training images hold {counted(len(both), 'test image')}, so that the "
                f"accuracy will be too high: {min(both)}."
            )
        return train, test

    def _labels(
        self, rows: Sequence[Row], class_names: Sequence[str], name: str, manifest: str
    ) -> np.ndarray:
        """Returns int32 [n], or uint8 [n, classes] with multi_label."""
        owners = [i for i, row in enumerate(rows) for _ in row.classes]

        def where(i: int) -> str:
            row = rows[owners[i]]
            return f"{row.path} (line {row.line} of {manifest})"

        written = itertools.chain.from_iterable(row.classes for row in rows)
        numbers = bool(self.class_names)
        indices = class_indices(written, class_names, name, where, numbers=numbers)
        if not self.multi_label:
            return indices
        labels = np.zeros((len(rows), len(class_names)), np.uint8)
        labels[owners, indices] = 1
        return labels

    def _check_files(self, rows: Sequence[Row], folder: str, manifest: str) -> None:
        """Raises UserError if files are missing (with on_bad_image="skip", if all are) or are
        no plain files."""
        missing = []
        paths = [os.path.join(folder, row.path) for row in rows]
        for row, path, plain in zip(rows, paths, are_plain_files(paths), strict=True):
            if plain is False:
                raise UserError(
                    f"line {row.line} of {manifest} names {row.path}, which is no plain file, "
                    "but a folder, pipe, socket or device."
                )
            if plain is None:
                missing.append(f"line {row.line} names {path}")
        if not missing or (self.on_bad_image == "skip" and len(missing) < len(rows)):
            return
        raise UserError(
            f"{counted(len(missing), 'file')} of {len(rows):,} that {manifest} lists "
            f"for this split cannot be found: {enumerated(missing)}. Set data.root to the folder "
            "that the paths are relative to, or leave images that are missing out with "
            "--config.data.on_bad_image=skip."
        )

    def _rows(self, manifest: str) -> list[Row]:
        """Reads a manifest; a repeated row counts once.

        Raises:
          UserError: if a column is missing or empty, or two rows contradict each other.
        """
        found: dict[str, Row] = {}
        repeated = 0
        prefix = os.path.join(self._root(manifest), "")
        for line, fields in read_table(manifest, self.path_column):
            where = f"line {line} of {manifest}"
            path = field_of(fields, self.path_column, "path_column", where)
            label = field_of(fields, self.label_column, "label_column", where)
            split = self.split_column
            if split:
                split = str(field_of(fields, split, "split_column", where))
            if not isinstance(path, str) or not path or "\0" in path:
                raise UserError(f"{where} has no path of an image, but {path!r}.")
            path = os.path.normpath(path).removeprefix(prefix)
            classes = self._classes(label, where)
            row = Row(line, path, classes, split.strip().lower())
            before = found.setdefault(row.path, row)
            if (before.classes, before.split) != (row.classes, row.split):
                raise UserError(
                    f"{manifest} contradicts itself about {row.path}: line {before.line} says "
                    f"{_classes_and_split(before)}, line {line} {_classes_and_split(row)}."
                )
            repeated += before is not row
        if repeated:
            note(
                f"{manifest} lists {counted(repeated, 'image')} again; each counts once."
            )
        if not found:
            raise UserError(f"{manifest} lists no images.")
        return list(found.values())

    def _classes(self, label: Any, where: str) -> tuple[str, ...]:
        """Returns the class of a row, or its classes in alphabetical order."""
        if self.multi_label and isinstance(label, str):
            label = label.split(SEPARATOR)
        names = label if isinstance(label, list) else [label]
        if not all(type(name) in (str, int) for name in names):
            raise UserError(
                f"{where} has the class {label!r}, neither text nor a whole number."
            )
        if self.multi_label:
            return tuple(sorted({str(name).strip() for name in names} - {""}))
        if isinstance(label, list):
            raise UserError(
                f"{where} has a list of classes, {label!r:.60}: set data.multi_label=true."
            )
        if not str(label).strip():
            raise UserError(
                f"{where} has no class in the column '{self.label_column}'."
            )
        return (str(label).strip(),)


def _classes_and_split(row: Row) -> str:
    classes = SEPARATOR.join(row.classes) or "no class"
    return f"{classes} ({row.split})" if row.split else classes


def _by_column(
    rows: list[Row], column: str, manifest: str
) -> tuple[list[Row], list[Row]]:
    """Divides rows by what their split column says."""
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        name = "train" if row.split in TRAINING else row.split
        if name not in ("train", *HELD_OUT):
            raise UserError(
                f"line {row.line} of {manifest} has '{row.split}' in the column "
                f"'{column}'; expected train, {', '.join(HELD_OUT)}."
            )
        by_split.setdefault(name, []).append(row)
    splits = split_names(by_split, manifest)
    if splits is None:
        raise UserError(
            f"the column '{column}' of {manifest} says {', '.join(by_split)} alone; "
            f"expected train and one of {', '.join(HELD_OUT)}."
        )
    return by_split[splits["train"]], by_split[splits["test"]]


def read_table(path: str, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and fields of each row of a CSV or JSONL file, without empty lines.

    Args:
      path: the file.
      column: a column that it has; tells commas, semicolons and tabs apart.

    Raises:
      UserError: if it cannot be read, naming the line.
    """
    with explaining(f"cannot read the manifest {path}", (OSError,)):
        content = Path(path).read_bytes()
    what, advice = f"the manifest {path} is not in UTF-8", ": save it as UTF-8"
    with explaining(what, (UnicodeDecodeError,), advice):
        text = content.decode("utf-8-sig")
    is_json = path.lower().endswith(JSON_ENDINGS)
    yield from _read_json(text, path) if is_json else _read_csv(text, path, column)


def are_plain_files(paths: Sequence[str]) -> list[bool | None]:
    """Checks whether files exist, many at a time: a network file system answers in parallel.

    Returns:
      For each path None if it does not exist, False if it is no plain file, and True for a file
      and whatever reading it will tell.
    """
    parts = (paths[start : start + 1000] for start in range(0, len(paths), 1000))
    with concurrent.futures.ThreadPoolExecutor(SCAN_THREADS) as pool:
        checked = pool.map(lambda part: [*map(_is_plain_file, part)], parts)
        return list(itertools.chain.from_iterable(checked))


def _is_plain_file(path: str) -> bool | None:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return True


def _read_json(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, json_fields(line, f"line {number} of {path}")


def _read_csv(
    text: str, path: str, column: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    with explaining(f"{path} cannot be read as CSV", (csv.Error,)):
        for delimiter in ",;\t,":  # the comma again where none fits
            # newline="": a quoted field may hold line ends.
            lines = io.StringIO(text, newline="")
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if column in header:
                break
        _check_header(header, path)
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"line {reader.line_num} of {path} has "
                    f"{counted(len(row), 'column')}, the first line {len(header)}: put quotation "
                    f"marks around a field with '{delimiter}'."
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _check_header(header: Sequence[str], path: str) -> None:
    """Raises UserError for a first line that does not name each column by itself."""
    if any(is_image(name) for name in header):
        raise UserError(
            f"the first line of {path} is one of an image ('{','.join(header):.80}'): "
            "it must hold the names of the columns, such as path,label."
        )
    for name, times in collections.Counter(filter(None, header)).items():
        if times > 1:
            raise UserError(
                f"{path} has several columns that are called '{name}': give them "
                "different names in its first line."
            )
