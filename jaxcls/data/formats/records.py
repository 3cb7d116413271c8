"""A folder of record files that `python -m jaxcls.prepare records` has written.

    pets-256/index.json                                 what follows, and all labels
             train-00000-of-00002.array_record          see shards.py
             train-00001-of-00002.array_record
             test-00000-of-00001.array_record

    Records(path="pets-256").source("train")[0]  # {"image": uint8 [256, 256, 3], "label": 3}

index.json is written last: a folder without it is not complete. It holds

    version      1
    format       "jpeg": the images are files, decoded at each reading; "raw": they are pixels
    shape        height, width, channels of raw images; null for "jpeg"
    class_names  what the labels are indices into
    splits       for "train" and "test":
                   files     the name, number of records, bytes and sha256 of each file, in order
                   labels    of all records in order: a number each, or a list of numbers
                   left_out  the name of each image that could not be read, and why
    made_from    the data and the options that the records were made from
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats import shards
from jaxcls.data.formats.image_list import ImageList, Labels
from jaxcls.data.formats.paths import expanded
from jaxcls.data.host_crop import CenterSquare
from jaxcls.data.notes import explaining, require
from jaxcls.data.sources import Batch, Source, Split
from jaxcls.download import cache_folder
from jaxcls.errors import UserError, printable
from jaxcls.files import replacing

INDEX = "index.json"
PLAN = "plan.json"
"""What is to be made; it lies in the folder until the index does."""
VERSION = 1


class RecordFiles(ImageList):
    """The records of one split of a folder: what its index says of them, and their bytes.

    Pickled as the folder's path alone: index and files are opened again where it arrives.

    Attributes:
      shape: height, width and channels of pixels, () where the images are files.
    """

    def __init__(self, folder: Path, split: Split, index: dict[str, Any] | None = None):
        """Opens the files.

        Args:
          folder: the folder, on this machine.
          split: which part of it.
          index: what index.json says, None to read it.

        Raises:
          UserError: if a file is missing or has not the length that the index says.
        """
        index = read_index(folder) if index is None else index
        part = index["splits"][split]
        for file in part["files"]:
            _check_length(folder / file["name"], file["bytes"])
        self._folder = folder
        self._split = split
        self.shape = tuple(index["shape"] or ())
        self._files = [
            shards.RecordFile(str(folder / f["name"]), f["records"], f["sha256"])
            for f in part["files"]
        ]
        self._starts = np.cumsum([0, *(file.count for file in self._files)])
        class_names = index["class_names"]
        values = _label_array(part["labels"], len(class_names))
        labels = Labels(f"records-{split}", values, class_names)
        super().__init__(labels, (file.sha256.encode() for file in self._files))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._folder, self._split)

    def records(self, ids: np.ndarray) -> list[bytes]:
        """Returns the records `ids` (int [n]) as they lie in the files; see shards.py.

        Raises:
          OSError: naming the file that is damaged.
        """
        numbers, places = self._places(ids)
        records = [b""] * len(ids)
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            try:
                found = shards.read(self._files[number], places[rows].tolist())
            except OSError as error:
                raise OSError(
                    f"{error}: copy that file again, or make the records again; python -m "
                    f"jaxcls.prepare verify --path {printable(str(self._folder))} finds all such files."
                ) from None
            for row, record in zip(rows, found, strict=True):
                records[row] = record
        return records

    def item(self, index: int) -> shards.Item:
        """Returns one record, taken apart.

        Raises:
          OSError: if it cannot be read.
        """
        return shards.unpack(self.records(np.array([index]))[0])

    def _places(self, ids: Any) -> tuple[Any, Any]:
        """Returns the number of the file that each record lies in, and which one it is there."""
        numbers = np.searchsorted(self._starts, ids, side="right") - 1
        return numbers, ids - self._starts[numbers]

    def read(self, index: int) -> bytes:
        return self.item(index).image

    def where(self, index: int) -> str:
        """Returns where an image came from, and the file that its record lies in."""
        number, place = self._places(index)
        path = self._files[number].path
        try:
            return printable(f"{self.item(index).name} in {path}")
        except OSError:
            return printable(f"record {place} of {path}")


class RawRecords(RecordFiles, Source):
    """Records whose images are pixels, as a Source: nothing is decoded."""

    labels: np.ndarray

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        """Loads several records at once; the labels are int32 [n] or uint8 [n, classes].

        Raises:
          RuntimeError: naming the file that is damaged.
        """
        try:
            records = self.records(indices)
        except OSError as error:
            raise RuntimeError(str(error)) from None
        size = math.prod(self.shape)
        pixels = [np.frombuffer(r, np.uint8, size, len(r) - size) for r in records]
        images = np.stack(pixels).reshape(len(indices), *self.shape)
        return {"image": images, "label": self.labels[indices]}


@dataclasses.dataclass(kw_only=True)
class Records(Images):
    """A folder of record files, made by `python -m jaxcls.prepare records`.

    Records of format "jpeg" are decoded as other images are. Those of format "raw" are square
    images already: of the options below they use none but `path`.

    A folder on a server (gs://..., s3://...; needs the package gcsfs or s3fs) is copied into
    the cache ($JAXCLS_CACHE, or ~/.cache/jaxcls), each file once, with its hash checked.

    Attributes:
      path: the folder.
    """

    path: str = ""

    def validate(self) -> None:
        require("path", self.path, "the folder that jaxcls.prepare has written")

    def encoded(self, split: Split) -> RecordFiles:
        """Opens one split of records of format "jpeg".

        Raises:
          UserError: if the folder is not complete, or its records are pixels.
        """
        folder, index = self._opened(split)
        if index["format"] == "raw":
            raise UserError(
                f"{self.path} holds pixels (--format raw), which are no files to decode."
            )
        return RecordFiles(folder, split, index)

    def source(self, split: Split) -> Source:
        """Opens one split.

        Raises:
          UserError: if the folder is not complete, or raw images are to be cropped.
        """
        folder, index = self._opened(split)
        if index["format"] == "jpeg":
            return super().source(split)
        if self.canvas not in (CenterSquare(), CenterSquare(size=index["shape"][0])):
            raise UserError(
                f"data.canvas is {self.canvas!r}, but {self.path} holds squares of "
                f"{index['shape'][0]} pixels that are used as they are: leave data.canvas out "
                "and crop on the device, or make the records with --format jpeg."
            )
        return RawRecords(folder, split, index)

    def _opened(self, split: Split) -> tuple[Path, dict[str, Any]]:
        """Returns the folder on this machine that holds a split, and its index."""
        options.check(self, "data")
        on_server = "://" in self.path
        folder = _copied(self.path, split) if on_server else Path(expanded(self.path))
        return folder, read_index(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """Reads the index of a folder of records.

    Raises:
      UserError: if the folder is not complete, or is none of records.
    """
    try:
        text = (folder / INDEX).read_bytes()
    except OSError as error:
        raise UserError(_why_no_index(folder, error)) from error
    again = "make the records again with python -m jaxcls.prepare records"
    kinds = (ValueError, KeyError, TypeError)
    with explaining(f"{folder}/{INDEX} is damaged", kinds, f": remove it and {again}"):
        index = json.loads(text)
        version = index["version"]
    if version != VERSION:
        raise UserError(
            f"{folder} is of version {version} of the records' format, this program reads "
            f"{VERSION}: {again}."
        )
    return index


def _why_no_index(folder: Path, error: OSError) -> str:
    """Explains why a folder has no index that can be read."""
    if (folder / PLAN).exists():
        return (
            f"the records in {folder} are not complete: run the same command that made them "
            "(python -m jaxcls.prepare records ...) again, it goes on where it stopped."
        )
    if folder.is_dir() and isinstance(error, FileNotFoundError):
        return (
            f"{folder} holds no records (there is no {INDEX}): make them with python -m "
            "jaxcls.prepare records --source ... --out DIR."
        )
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {folder}: set data.path to one of records."
    return f"cannot read {folder}/{INDEX} ({error.strerror})."


def _check_length(path: Path, expected: int) -> None:
    """Raises UserError unless a file is there and has the length that the index says."""
    advice = f", which {INDEX} names: copy it there, or make the records again"
    with explaining(f"cannot read {path}", (OSError,), advice):
        found = path.stat().st_size
    if found != expected:
        raise UserError(
            f"{path} has {found:,} bytes, but {INDEX} beside it says "
            f"{expected:,}: copy it again, or make the records again."
        )


def _label_array(labels: list[Any], num_classes: int) -> np.ndarray:
    """Returns labels as int32 [n]; lists of classes as uint8 [n, classes] with ones."""
    if not labels or not isinstance(labels[0], list):
        return np.array(labels, np.int32)
    one_hot = np.zeros((len(labels), num_classes), np.uint8)
    for row, classes in zip(one_hot, labels, strict=True):
        row[classes] = 1
    return one_hot


def _copied(url: str, split: Split) -> Path:
    """Copies the files of a split that are not there yet from a server into the cache.

    Raises:
      UserError: if they cannot be read or are damaged.
    """
    from etils import epath

    # Each kind of server raises errors of its own.
    with explaining(f"cannot read the records at {url}"):
        remote = epath.Path(url)
        text = (remote / INDEX).read_bytes()
        folder = cache_folder() / "records" / hashlib.sha256(text).hexdigest()[:16]
        with shards.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        shards.write_bytes(folder / INDEX, text)
        for file in read_index(folder)["splits"][split]["files"]:
            path = folder / file["name"]
            if not path.exists() or path.stat().st_size != file["bytes"]:
                _copy(remote / file["name"], path, file["sha256"])
    return folder


def _copy(remote: Any, path: Path, sha256: str) -> None:
    """Copies a file from a server, whole or not at all."""
    with replacing(path, shards.writing) as temporary:
        with remote.open("rb") as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        with temporary.open("rb") as copy:
            found = hashlib.file_digest(copy, "sha256").hexdigest()
        if found != sha256:
            raise UserError(
                f"{os.fspath(remote)} is damaged: its SHA-256 is {found}, {INDEX} beside it "
                f"says {sha256}."
            )
