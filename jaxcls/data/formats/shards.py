"""Images and labels in ArrayRecord files: the format of a record, writing and reading.

A record begins with 32 bytes, little-endian, as HEADER gives them:

    4 bytes  "JXR1"
    1 byte   what the image is: 0 a file (JPEG, PNG, ...), 1 pixels; then 1 byte of padding
    2 bytes  the number of labels (1, unless images have several)
    4 bytes  the length of the name in bytes
    8 bytes  the position of the image in the source that the records were made from
    12 bytes height, width and channels of pixels, 4 bytes each; 0 for a file

and goes on with the labels (4 bytes each), the name (UTF-8; where the image came from) and the
image: the bytes of the file, or uint8 pixels [height, width, channels]. Every record is a chunk
of its file by itself (group_size:1), so that each can be read alone, and it is not compressed:
JPEGs would not become smaller, and pixels are read at the speed of the disk. ArrayRecord keeps
a hash of each chunk and checks it at every reading.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from array_record.python import array_record_module

from jaxcls.errors import UserError
from jaxcls.files import UNFINISHED, replacing

MAGIC = b"JXR1"
HEADER = struct.Struct("<4sBxHIQIII")
FILE, PIXELS = 0, 1
"""What a record's image is."""

WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
OPEN_FILES = 256
"""Files that a process keeps open at most: its limit may be 1,024."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image with its labels.

    Attributes:
      position: its index in the source that the records were made from.
      labels: its classes: one, or several, or none where images have any number of them.
      name: where it came from.
      image: the bytes of a file or of pixels.
      shape: height, width, channels of pixels; None for a file.
    """

    position: int
    labels: tuple[int, ...]
    name: str
    image: bytes
    shape: tuple[int, ...] | None = None


def pack(item: Item) -> bytes:
    """Returns the record of an item."""
    name = item.name.encode("utf-8", "surrogateescape")
    kind, sides = (PIXELS, item.shape) if item.shape else (FILE, (0, 0, 0))
    count = len(item.labels)
    header = HEADER.pack(MAGIC, kind, count, len(name), item.position, *sides)
    return b"".join([header, struct.pack(f"<{count}i", *item.labels), name, item.image])


def unpack(record: bytes) -> Item:
    """Returns what is in a record.

    Raises:
      ValueError: if it is no record of this format.
    """
    if len(record) < HEADER.size or not record.startswith(MAGIC):
        raise ValueError("it does not hold jaxcls's records")
    _, kind, count, length, position, *sides = HEADER.unpack_from(record)
    names_at = HEADER.size + 4 * count
    image_at = names_at + length
    shape = tuple(sides) if kind == PIXELS else None
    size = len(record) - image_at
    if size < 0 or (shape and size != math.prod(shape)):
        raise ValueError("a record has not the length that its header says")
    return Item(
        position,
        struct.unpack_from(f"<{count}i", record, HEADER.size),
        record[names_at:image_at].decode("utf-8", "surrogateescape"),
        record[image_at:],
        shape,
    )


def write(path: Path, items: Iterable[Item]) -> None:
    """Writes a file of records, under a temporary name until it is complete.

    Raises:
      UserError: if it cannot be written; whatever iterating over the items raises. Nothing is
        left behind then.
    """
    with replacing(path, writing) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for item in items:
                record = pack(item)
                with writing(path):
                    writer.write(record)
        except BaseException:
            with contextlib.suppress(Exception):
                writer.close()
            raise
        with writing(path):
            writer.close()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
      UserError: if it cannot be written.
    """
    with replacing(path, writing) as temporary, writing(path):
        temporary.write_bytes(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the failure to write a file into one sentence.

    Raises:
      UserError: for an OSError, or the RuntimeError of the ArrayRecord library.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        way_out = "mend that and run the same command again"
        if "No space left" in reason or "quota" in reason.lower():
            reason = "the disk is full"
            way_out = "make room on that disk and run the same command again; finished files are kept"
        raise UserError(f"cannot write {path} ({reason}): {way_out}.") from error


def remove_abandoned(folder: Path) -> None:
    """Removes what was being written when a process was killed."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A finished file of records.

    Attributes:
      path: where it is.
      count: how many records it must hold.
      sha256: its hash; it is not checked here, but tells one content of a path from another.
    """

    path: str
    count: int
    sha256: str


def read(file: RecordFile, places: list[int]) -> list[bytes]:
    """Returns the records 0 <= place < count of a file, in the order asked for.

    Can be called from any number of threads, and after a fork.

    Raises:
      OSError: naming the file and what is wrong with it.
    """
    reader = _reader(file, os.getpid())
    try:
        return reader.read(places)
    except RuntimeError as error:
        raise OSError(f"{file.path} is damaged ({_first_part(error)})") from None


@functools.lru_cache(maxsize=OPEN_FILES)
def _reader(file: RecordFile, process: int) -> array_record_module.ArrayRecordReader:
    """Returns an open file; each process has its own."""
    del process
    reader = array_record_module.ArrayRecordReader(file.path, READER_OPTIONS)
    if reader.ok() and reader.num_records() == file.count:
        return reader
    found = f"holds {reader.num_records()} records, not {file.count}"
    fault = found if reader.ok() else "is damaged or cut off"
    _close(reader)
    if not os.path.exists(file.path):
        raise OSError(f"there is no file {file.path}")
    raise OSError(f"{file.path} {fault}")


def _close(reader: array_record_module.ArrayRecordReader) -> None:
    """Closes a file; closing would raise once more what was wrong with it."""
    with contextlib.suppress(RuntimeError):
        reader.close()


def _first_part(error: Exception) -> str:
    """Returns the part of a message of the ArrayRecord library that says what is wrong."""
    return str(error).partition("; ")[0].partition(" (computed")[0]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What inspect() finds in a file.

    Attributes:
      bytes: its length.
      sha256: its hash, 64 hexadecimal digits.
      positions: of its records.
      labels: of its records.
    """

    bytes: int
    sha256: str
    positions: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


def inspect(path: Path) -> Contents:
    """Reads a whole file: its hash, and every record, checked against the hash of its chunk.

    Raises:
      OSError: naming the file and what is wrong with it.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    positions, labels = [], []
    reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
    try:
        if not reader.ok():
            raise OSError(f"{path} is damaged or cut off")
        for place in range(reader.num_records()):
            item = unpack(reader.read([place])[0])
            positions.append(item.position)
            labels.append(item.labels)
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{path} is damaged ({_first_part(error)})") from None
    finally:
        _close(reader)
    return Contents(path.stat().st_size, digest, tuple(positions), tuple(labels))
