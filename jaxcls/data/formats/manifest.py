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
import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcls.data.encoded_images import Images
from jaxcls.data.file_lists import (
    HELD_OUT,
    ClassIndex,
    check_test_share,
    class_list,
    count,
    enumerated,
    expanded,
    in_test_share,
    is_image,
    require,
    say,
    say_missing_classes,
    shown,
)
from jaxcls.data.formats.folder import SCAN_THREADS, FileImages
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
SEPARATOR = ";"
"""Between the classes of an image, in a table of text."""
TRAINING = ("train", "training")
"""What the split column says of a training image."""
MAX_CHECKED = 1_000_000
"""Files that are looked for before training begins; 100,000 on a local disk take half a second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An image of a manifest.

    Attributes:
      line: in the file, from 1.
      path: of the image, as it is written but for "./" and the root.
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

    Which images are for testing is said by `test_path`, else by `split_column`, else it is
    drawn from the images' paths: the SHA-256 of a path as it is written, read as a fraction, lies
    below `test_share`. Classes are those of the training images (in the last case, of all),
    sorted: whole numbers by value, other names as text. An image that is listed twice with the
    same classes counts once.

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
    test_share: float = 0.2
    class_names: tuple[str, ...] = ()
    multi_label: bool = False

    def validate(self) -> None:
        super().validate()
        require("path", self.path, "the CSV or JSONL file")
        check_test_share(self.test_share)
        if self.test_path and self.split_column:
            raise UserError(
                f"data.test_path is '{self.test_path}' and data.split_column "
                f"'{self.split_column}': only one of them can say what is for testing."
            )
        if len(set(self.class_names)) < len(self.class_names):
            raise UserError(
                f"data.class_names must be different, not {self.class_names}."
            )

    def encoded(self, split: Split) -> FileImages:
        """Reads the manifest and picks the images of one split.

        Raises:
          UserError: if it cannot be read or is not consistent.
        """
        self.validate()
        manifest = expanded(self.path)
        rows = self._rows(manifest)
        training, chosen = self._divided(manifest, rows, split)
        class_names = self.class_names or class_list(
            name for row in training for name in row.classes
        )
        index = ClassIndex(class_names, numbers=bool(self.class_names))
        source = (
            expanded(self.test_path) if self.test_path and split == "test" else manifest
        )
        name = f"{shown(os.path.basename(source))}[{split}]"
        if not chosen:
            raise UserError(f"{shown(source)} has no image to {split} on.")
        labels = self._labels(chosen, index, source)
        say_missing_classes(class_names, labels, name)
        folder = self._root(source)
        files = [os.fsencode(row.path) for row in chosen]
        if len(files) <= MAX_CHECKED:
            self._check_files(chosen, os.fsencode(folder), source)
        return FileImages(name, os.fsencode(folder), files, labels, class_names)

    def _root(self, manifest: str) -> str:
        return expanded(self.root) if self.root else os.path.dirname(manifest)

    def _divided(
        self, manifest: str, rows: list[Row], split: Split
    ) -> tuple[list[Row], list[Row]]:
        """Returns the rows that the classes are taken from, and those of the split."""
        if self.test_path:
            test = self._rows(expanded(self.test_path))
            train, of_classes = rows, rows
        elif self.split_column:
            train, test = _by_column(rows, self.split_column, manifest)
            of_classes = train
        else:
            held_out = [
                in_test_share(os.fsencode(r.path), self.test_share) for r in rows
            ]
            train = [r for r, out in zip(rows, held_out, strict=True) if not out]
            test = [r for r, out in zip(rows, held_out, strict=True) if out]
            of_classes = rows
        both = {row.path for row in train} & {row.path for row in test}
        if both and split == "test":
            say(
                f"the training images hold {count(len(both), 'test image')}, so that the "
                f"accuracy will be too high: {shown(min(both))}."
            )
        return of_classes, train if split == "train" else test

    def _labels(
        self, rows: Sequence[Row], index: ClassIndex, source: str
    ) -> np.ndarray:
        """Returns int32 [n], or uint8 [n, classes] with multi_label."""
        shape = (len(rows), len(index.class_names)) if self.multi_label else len(rows)
        labels = np.zeros(shape, np.uint8 if self.multi_label else np.int32)
        for i, row in enumerate(rows):
            where = f"{shown(row.path)} (line {row.line} of {shown(source)})"
            indices = [index(name, where) for name in row.classes]
            if self.multi_label:
                labels[i, indices] = 1
            else:
                labels[i] = indices[0]
        return labels

    def _check_files(self, rows: Sequence[Row], folder: bytes, source: str) -> None:
        """Raises UserError if files are missing (with on_bad_image="skip", if all are) or are
        no plain files."""
        faults = file_faults([os.path.join(folder, os.fsencode(r.path)) for r in rows])
        for row, fault in zip(rows, faults, strict=True):
            if fault == "is no plain file":
                raise UserError(
                    f"line {row.line} of {shown(source)} names {shown(row.path)}, which {fault}, "
                    "but a folder, pipe, socket or device."
                )
        missing = [row for row, fault in zip(rows, faults, strict=True) if fault]
        if not missing or (self.on_bad_image == "skip" and len(missing) < len(rows)):
            return
        some = [
            f"line {row.line} names {shown(os.path.join(folder, os.fsencode(row.path)))}"
            for row in missing
        ]
        raise UserError(
            f"{count(len(missing), 'file')} of {len(rows):,} that {shown(source)} lists for this "
            f"split cannot be found: {enumerated(some)}. Set data.root to the folder that the "
            "paths are relative to, or leave images that are missing out with "
            "--config.data.on_bad_image=skip."
        )

    def _rows(self, manifest: str) -> list[Row]:
        """Reads a manifest; a row that occurs before is left out."""
        found: dict[str, Row] = {}
        repeated = 0
        prefix = os.path.join(self._root(manifest), "")
        for line, fields in read_table(manifest, self.path_column):
            row = self._row(line, fields, prefix, manifest)
            before = found.setdefault(row.path, row)
            if before is not row:
                if (before.classes, before.split) != (row.classes, row.split):
                    raise UserError(
                        f"{shown(manifest)} contradicts itself about {shown(row.path)}: line "
                        f"{before.line} says {_said(before)}, line {line} {_said(row)}."
                    )
                repeated += 1
        if repeated:
            say(
                f"{shown(manifest)} lists {count(repeated, 'image')} again; each counts once."
            )
        if not found:
            raise UserError(f"{shown(manifest)} lists no images.")
        return list(found.values())

    def _row(
        self, line: int, fields: dict[str, Any], prefix: str, manifest: str
    ) -> Row:
        """Reads one row.

        Raises:
          UserError: if a column is missing or empty.
        """
        where = f"line {line} of {shown(manifest)}"
        path = _field(fields, self.path_column, "path_column", where)
        label = _field(fields, self.label_column, "label_column", where)
        split = ""
        if self.split_column:
            split = _field(fields, self.split_column, "split_column", where)
        if not isinstance(path, str) or not path or "\0" in path:
            raise UserError(f"{where} has no path of an image, but {path!r}.")
        return Row(
            line=line,
            path=os.path.normpath(path).removeprefix(prefix),
            classes=self._classes(label, where),
            split=str(split).strip().lower(),
        )

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
        name = str(label).strip()
        if not name:
            raise UserError(
                f"{where} has no class in the column '{self.label_column}'."
            )
        return (name,)


def _field(fields: dict[str, Any], column: str, option: str, where: str) -> Any:
    if column not in fields:
        columns = [name for name in fields if name]
        raise UserError(
            f"{where} has no column '{column}'.{did_you_mean(column, columns)} It has "
            f"{', '.join(columns) or 'none'}; set data.{option} to one of them."
        )
    return fields[column]


def _said(row: Row) -> str:
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
                f"line {row.line} of {shown(manifest)} has '{row.split}' in the column "
                f"'{column}'; expected train, {', '.join(HELD_OUT)}."
            )
        by_split.setdefault(name, []).append(row)
    held_out = [name for name in HELD_OUT if name in by_split]
    if "train" not in by_split or not held_out:
        raise UserError(
            f"the column '{column}' of {shown(manifest)} says {', '.join(by_split)} alone; "
            f"expected train and one of {', '.join(HELD_OUT)}."
        )
    if len(held_out) > 1:
        say(
            f"{shown(manifest)} has {enumerated(held_out)}: {held_out[0]} is what is evaluated."
        )
    return by_split["train"], by_split[held_out[0]]


def read_table(path: str, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and fields of each row of a CSV or JSONL file, without empty lines.

    Args:
      path: the file.
      column: a column that it has; tells commas, semicolons and tabs apart.

    Raises:
      UserError: if it cannot be read, naming the line.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read the manifest {shown(path)} ({error.strerror})."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the manifest {shown(path)} is not in UTF-8 (byte {error.start:,}): save it as "
            "UTF-8."
        ) from error
    is_json = path.lower().endswith(JSON_ENDINGS)
    yield from _read_json(text, path) if is_json else _read_csv(text, path, column)


def file_faults(paths: Sequence[bytes]) -> list[str]:
    """Looks whether files are there, many at a time, as for a file system on a network.

    Returns:
      For each path "does not exist", "is no plain file", or "" for a file and whatever reading
      it will tell.
    """

    def faults(some: Sequence[bytes]) -> list[str]:
        return [_file_fault(path) for path in some]

    parts = [paths[i : i + 1000] for i in range(0, len(paths), 1000)]
    with concurrent.futures.ThreadPoolExecutor(SCAN_THREADS) as pool:
        return list(itertools.chain.from_iterable(pool.map(faults, parts)))


def _file_fault(path: bytes) -> str:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError:
        return ""
    return "" if stat.S_ISREG(mode) else "is no plain file"


def _read_json(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"line {number} of {shown(path)} is not JSON: {error}."
            ) from None
        if not isinstance(fields, dict):
            raise UserError(
                f"line {number} of {shown(path)} is not an object like "
                '{"path": "a/1.jpg", "label": "cat"}.'
            )
        yield number, fields


def _read_csv(
    text: str, path: str, column: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    def rows(delimiter: str) -> Any:
        # newline="": a quoted field may hold line ends.
        return csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, strict=True
        )

    try:
        for delimiter in (",", ";", "\t"):
            header = [name.strip() for name in next(rows(delimiter), [])]
            if column in header:
                break
        else:
            delimiter = ","
            header = [name.strip() for name in next(rows(","), [])]
        _check_header(header, path)
        reader = rows(delimiter)
        next(reader, None)
        for row in reader:
            number = reader.line_num
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"line {number} of {shown(path)} has {count(len(row), 'column')}, the first "
                    f"line {len(header)}: put quotation marks around a field with "
                    f"'{delimiter}'."
                )
            yield number, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{shown(path)} cannot be read as CSV: {error}.") from error


def _check_header(header: Sequence[str], path: str) -> None:
    """Raises UserError for a first line that does not name each column by itself."""
    if any(is_image(os.fsencode(name)) for name in header):
        raise UserError(
            f"the first line of {shown(path)} is one of an image ('{','.join(header):.80}'): it "
            "must hold the names of the columns, such as path,label."
        )
    repeated = [
        name
        for name, times in collections.Counter(header).items()
        if name and times > 1
    ]
    if repeated:
        raise UserError(
            f"{shown(path)} has several columns that are called '{repeated[0]}': give them "
            "different names in its first line."
        )
