"""Makes images ready for training, once, and looks for what is wrong with them.

    python -m jaxcls.prepare records --source folder --source.path=pets --out pets-256
    python -m jaxcls.prepare check --source folder --source.path=pets
    python -m jaxcls.prepare verify --path pets-256

`--source NAME` is a dataset as a recipe names it after the colon, and `--source.OPTION=VALUE`
sets an option of it; `--source NAME --help` lists them. From Python: `write_records(dataset,
"pets-256")`.

records resizes the images of both splits and writes them into ArrayRecord files of about
--shard_mb; `data=Records(path="pets-256")` trains on them. The short side becomes --size, the
long side at most --max_size; no image is enlarged. --format jpeg stores files: a JPEG or PNG
that is small enough already is kept byte for byte, any other image becomes a JPEG of --quality.
--format raw stores the pixels of the square in the middle, exactly --size wide (a smaller
photograph is enlarged to that). Datasets that are arrays, as CIFAR, are never enlarged.

Each file is written under a temporary name and renamed when it is complete, index.json comes
last. After a kill the same command keeps the finished files, reads them through, and makes the
others. What each file holds depends on the data's order and the options alone, so that the
bytes are the same for any number of workers and kills. Images that cannot be read stop it, or
are left out and listed in the index with --source.on_bad_image=skip.

check decodes every image and writes a report: a line of JSON for each that cannot be read, with
its path and the reason, and a last line that counts formats, modes and sizes.

verify reads record files through and compares them with their index.
"""

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import functools
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from jaxcls.data.datasets import create_dataset
from jaxcls.data.decode import BadImage, decode
from jaxcls.data.encoded import Encoded
from jaxcls.data.encoded_images import Images
from jaxcls.data.file_lists import count, expanded, shown
from jaxcls.data.formats import shards
from jaxcls.data.formats.records import INDEX, PLAN, VERSION, read_index
from jaxcls.data.host_crop import CenterSquare
from jaxcls.data.preparation import pool
from jaxcls.data.sources import Dataset, Source, Split
from jaxcls.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "test")
SAMPLE = 16
"""Images of a split that are made to find out how many fit into a file."""
SCAN = 64
"""Images that `check` looks at in one task."""

LONGEST = 65_500
"""The longest side of a JPEG, in pixels."""

Format = Literal["jpeg", "raw"]

LeftOut = list[tuple[int, str]]
"""Images that are left out of a file: their position in the split, and why."""


@dataclasses.dataclass(frozen=True)
class Making:
    """What is made of each image.

    Attributes:
      format: "jpeg" for files, "raw" for pixels.
      size: the short side in pixels, or the side of the square.
      max_size: bound of the long side of files; None for none.
      quality: of JPEGs, 1..100.
      channels: 1 for grey images, 3 for colour.
    """

    format: Format
    size: int
    max_size: int | None
    quality: int
    channels: int

    def __call__(self, data: bytes) -> tuple[bytes, tuple[int, int, int] | None]:
        """Returns the bytes to store and, for pixels, their shape.

        Raises:
          BadImage: if `data` is no image.
        """
        if self.format == "raw":
            square = CenterSquare(size=self.size).place(data, self.channels, 0)
            return square.tobytes(), (self.size, self.size, self.channels)
        image = decode(data, channels=self.channels)
        height, width, _ = image.shape
        longest = LONGEST if self.max_size is None else self.max_size
        scale = min(1.0, self.size / min(height, width), longest / max(height, width))
        if scale == 1.0 and data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
            return data, None
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        picture = Image.fromarray(image.squeeze(-1) if self.channels == 1 else image)
        picture = picture.resize(sides, Image.Resampling.BICUBIC)  # antialiased
        pixels = np.asarray(picture).reshape(sides[1], sides[0], self.channels)
        if self.channels == 1:
            return simplejpeg.encode_jpeg(pixels, self.quality, "GRAY", "Gray"), None
        return simplejpeg.encode_jpeg(pixels, self.quality, "RGB", "420"), None


class ArrayImages:
    """A source of pixels as PNGs, without loss: what is written for files works for it too."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names = tuple(source.class_names)
        labels = getattr(source, "labels", None)
        if labels is None:
            labels = [int(source[index]["label"]) for index in range(len(source))]
        self.labels = np.asarray(labels)
        height, width, self.channels = source[0]["image"].shape
        self.side = min(height, width)
        if self.channels not in (1, 3):
            raise UserError(
                f"{source!r} has images of {self.channels} channels; records hold 1 or 3."
            )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        try:
            image = self._source[index]["image"]
        except RuntimeError as error:
            raise OSError(str(error)) from None
        file = io.BytesIO()
        picture = Image.fromarray(image.squeeze(-1) if self.channels == 1 else image)
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()

    def where(self, index: int) -> str:
        return f"image {index}"

    def __repr__(self) -> str:
        return repr(self._source)


@dataclasses.dataclass(frozen=True)
class Job:
    """All that the processes need to make files.

    Attributes:
      folder: where the files lie.
      base: the folder of the data: names of images are relative to it; "" for none.
      splits: the images of each split.
      make: what becomes of an image.
      skip: whether images that cannot be read are left out.
    """

    folder: Path
    base: str
    splits: dict[Split, Encoded | ArrayImages]
    make: Making
    skip: bool

    def name(self, split: Split, position: int) -> str:
        """Returns where an image came from, without the part of its path that depends on the
        machine."""
        where = self.splits[split].where(position)
        return where.removeprefix(self.base.rstrip("/") + "/") if self.base else where

    def image(
        self, split: Split, position: int
    ) -> tuple[bytes, tuple[int, int, int] | None]:
        """Returns what is stored of an image.

        Raises:
          BadImage: if it cannot be read or decoded, with the reason.
        """
        try:
            data = self.splits[split].read(position)
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from None
        return self.make(data)


@dataclasses.dataclass(frozen=True)
class File:
    """One file to make.

    Attributes:
      split: which images it is of.
      name: what it is called.
      first: the first image in it.
      end: the first image behind it.
    """

    split: Split
    name: str
    first: int
    end: int


def write_records(
    dataset: Dataset,
    out: str | Path,
    *,
    size: int = 256,
    max_size: int | None = None,
    format: Format = "jpeg",
    quality: int = 90,
    shard_mb: float = 128,
    workers: int = 1,
) -> dict[str, Any]:
    """Writes both splits of a dataset as record files. With more than one worker, a script that
    calls this needs `if __name__ == "__main__":`.

    Args:
      dataset: the images; of the options of image files, `channels`, `on_bad_image` and
        `max_bad_share` are used, `canvas` is not.
      out: the folder: new, or one where the same was begun.
      size: as --size of the command; the others too.
      max_size: bound of the long side in pixels, None for none.
      format: "jpeg" or "raw".
      quality: of JPEGs, 1..100.
      shard_mb: megabytes of a file, about; at least one image.
      workers: processes.

    Returns:
      The index that was written; see records.py.

    Raises:
      UserError: for an option out of range, images that cannot be read, a full disk, or a
        folder with something else in it.
    """
    _check_options(size, max_size, quality, shard_mb, workers)
    splits = {split: open_images(dataset, split) for split in SPLITS}
    classes = splits["train"].class_names
    if splits["test"].class_names != classes:
        raise UserError(
            f"{splits['test']!r} has other classes than {splits['train']!r}: records need one "
            "list of classes."
        )
    channels = getattr(dataset, "channels", 3)
    for images in splits.values():
        if isinstance(images, ArrayImages):
            size, channels = min(size, images.side), images.channels
    folder = Path(expanded(str(out)))
    skip = getattr(dataset, "on_bad_image", "raise") == "skip"
    making = Making(format, size, max_size, quality, channels)
    job = Job(folder, _base(getattr(dataset, "path", "")), splits, making, skip)
    per_file = {
        split: _records_per_file(job, split, shard_mb * 1e6) for split in SPLITS
    }
    plan = {
        "version": VERSION,
        "source": {split: repr(images) for split, images in splits.items()},
        **dataclasses.asdict(making),
        "records_per_file": per_file,
    }
    with _alone_in(folder):
        if not _begin(folder, plan):
            _make(dataset, job, per_file, plan, workers)
    return read_index(folder)


def _make(
    dataset: Dataset,
    job: Job,
    per_file: dict[Split, int],
    plan: dict[str, Any],
    workers: int,
) -> None:
    """Makes the files of a folder, and the index in place of the plan."""
    splits, folder, making = job.splits, job.folder, job.make
    files = _files(per_file, splits)
    made: dict[int, tuple[shards.Contents, LeftOut]] = {}
    with _bar(sum(map(len, splits.values())), folder.name) as bar:
        results = pool.run(
            functools.partial(make_file, job),
            files,
            workers=workers,
            progress=bar.update,
        )
        try:
            for number, result in results:
                made[number] = result
                _check_left_out(dataset, job, [(files[i], made[i][1]) for i in made])
        finally:
            results.close()
            shards.remove_abandoned(folder)
    index = {
        "version": VERSION,
        "format": making.format,
        "shape": (
            [making.size, making.size, making.channels]
            if making.format == "raw"
            else None
        ),
        "class_names": list(splits["train"].class_names),
        "splits": {
            split: _part(
                job,
                [(f, *made[i]) for i, f in enumerate(files) if f.split == split],
                several=images.labels.ndim == 2,
            )
            for split, images in splits.items()
        },
        "made_from": plan,
    }
    _write_json(folder / INDEX, index)
    with shards.writing(folder / PLAN):
        (folder / PLAN).unlink()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder, and sees to it that no other process writes records there.

    Raises:
      UserError: if one does, or the folder cannot be made.
    """
    with shards.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process writes records into {shown(str(folder))}: wait for it, "
                    "or give another --out."
                ) from None
        yield
    finally:
        os.close(descriptor)


def _base(path: str) -> str:
    """Returns the folder of the data at `path`, "" for data without a path."""
    path = expanded(path) if path else ""
    return shown(path if os.path.isdir(path) else os.path.dirname(path))


def open_images(dataset: Dataset, split: Split) -> Encoded | ArrayImages:
    """Returns the images of a split as files, be they files or arrays.

    Raises:
      UserError: if the data cannot be opened.
    """
    if isinstance(dataset, Images):
        return dataset.encoded(split)
    return ArrayImages(dataset.source(split))


def _check_options(
    size: int, max_size: int | None, quality: int, shard_mb: float, workers: int
) -> None:
    """Raises UserError for an option out of range."""
    for name, value, low, high in (
        ("size", size, 1, 8192),
        ("max_size", size if max_size is None else max_size, size, LONGEST),
        ("quality", quality, 1, 100),
        ("workers", workers, 1, 1024),
    ):
        if not low <= value <= high:
            raise UserError(f"--{name} must lie in {low}..{high}, not {value}.")
    if not 0 < shard_mb <= 1e6:
        raise UserError(
            f"--shard_mb must lie above 0 and up to 1000000, not {shard_mb}."
        )


def _records_per_file(job: Job, split: Split, file_bytes: float) -> int:
    """Returns how many records make a file of about `file_bytes`, from a few of them.

    Raises:
      UserError: if one cannot be read, or with `skip` none of them.
    """
    count = len(job.splits[split])
    if job.make.format == "raw":
        mean = float(job.make.size**2 * job.make.channels)
        return max(1, int(file_bytes // mean))
    lengths, reason = [], ""
    for position in range(0, count, max(1, count // SAMPLE)):
        try:
            lengths.append(len(job.image(split, position)[0]))
        except BadImage as error:
            reason = _complaint(job, split, position, error)
            if not job.skip:
                raise UserError(f"{reason} {_HOW_TO_SKIP}") from None
    if count and not lengths:
        raise UserError(f"none of {SAMPLE} images of {split} can be read. {reason}")
    return max(1, int(file_bytes // np.mean(lengths))) if count else 1


def _files(
    per_file: dict[Split, int], splits: dict[Split, Encoded | ArrayImages]
) -> list[File]:
    """Returns the files to make: equal parts of each split, in order."""
    files = []
    for split, images in splits.items():
        starts = range(0, len(images), per_file[split])
        for number, first in enumerate(starts):
            name = f"{split}-{number:05}-of-{len(starts):05}.array_record"
            files.append(
                File(split, name, first, min(first + per_file[split], len(images)))
            )
    return files


def _begin(folder: Path, plan: dict[str, Any]) -> bool:
    """Prepares the folder; returns whether all is done there already.

    Raises:
      UserError: if there is something else in it, or it cannot be written.
    """
    with shards.writing(folder):
        shards.remove_abandoned(folder)
        found = {path.name for path in folder.iterdir()}
    if INDEX in found:
        _check_same(folder, read_index(folder)["made_from"], plan)
        with shards.writing(folder / PLAN):
            (folder / PLAN).unlink(missing_ok=True)
        return True
    if PLAN in found:
        _check_same(folder, _read_json(folder / PLAN), plan)
    elif found:
        raise UserError(
            f"{shown(str(folder))} is not empty and no records were begun there: give a new "
            "folder as --out."
        )
    else:
        _write_json(folder / PLAN, plan)
    return False


def _check_same(folder: Path, old: Any, new: dict[str, Any]) -> None:
    """Raises UserError if a folder was begun with other data or options."""
    if old == new:
        return
    old = old if isinstance(old, dict) else {}
    changed = [name for name in new if old.get(name) != new[name]]
    if len(changed) > 1:  # it follows from the others
        changed = [name for name in changed if name != "records_per_file"]
    said = "; ".join(f"{n} was {old.get(n)!r} and is now {new[n]!r}" for n in changed)
    raise UserError(
        f"{shown(str(folder))} holds records of something else ({said}): give "
        "another --out, or remove that folder."
    )


def make_file(
    job: Job, file: File, progress: pool.Progress
) -> tuple[shards.Contents, LeftOut]:
    """Makes one file, unless it is there and whole, and reads it through.

    Returns:
      What is in it, and which images were left out.

    Raises:
      UserError: if an image cannot be read and is not to be left out, or the disk is full.
    """
    path = job.folder / file.name
    contents = _finished(job, file, path)
    if contents is None:
        shards.write(path, _items(job, file, progress))
        contents = _finished(job, file, path)
        if contents is None:
            raise UserError(
                f"{shown(str(path))} is not what was written there a moment ago: the disk is "
                "perhaps failing, give another --out."
            )
    else:
        progress(file.end - file.first)
    left_out = []
    for position in sorted({*range(file.first, file.end)} - {*contents.positions}):
        try:
            job.image(file.split, position)
        except BadImage as error:
            left_out.append((position, str(error)))
            if not job.skip:
                complaint = _complaint(job, file.split, position, error)
                raise UserError(f"{complaint} {_HOW_TO_SKIP}") from None
    return contents, left_out


def _finished(job: Job, file: File, path: Path) -> shards.Contents | None:
    """Returns what is in a file; None if it is not there, damaged, or of other images."""
    try:
        contents = shards.inspect(path)
    except OSError:
        return None
    inside = {*contents.positions} <= {*range(file.first, file.end)}
    ordered = list(contents.positions) == sorted({*contents.positions})
    if not inside or not ordered:
        return None
    labels = job.splits[file.split].labels
    expected = [_label_tuple(labels[position]) for position in contents.positions]
    return contents if list(contents.labels) == expected else None


def _items(job: Job, file: File, progress: pool.Progress) -> Iterator[shards.Item]:
    """Yields what goes into a file.

    Raises:
      UserError: naming an image that cannot be read, if it is not to be left out.
    """
    labels = job.splits[file.split].labels
    for position in range(file.first, file.end):
        try:
            image, shape = job.image(file.split, position)
        except BadImage as error:
            if not job.skip:
                complaint = _complaint(job, file.split, position, error)
                raise UserError(f"{complaint} {_HOW_TO_SKIP}") from None
        else:
            name = job.name(file.split, position)
            yield shards.Item(
                position, _label_tuple(labels[position]), name, image, shape
            )
        progress(1)


def _label_tuple(label: np.ndarray) -> tuple[int, ...]:
    """Returns the classes of a label: a number, or uint8 [classes] with ones."""
    if np.ndim(label):
        return tuple(np.flatnonzero(label).tolist())
    return (int(label),)


_HOW_TO_SKIP = (
    "Mend or remove it, or leave such images out with --source.on_bad_image=skip."
)


def _complaint(job: Job, split: Split, position: int, error: Exception | str) -> str:
    """Returns a sentence with the path of an image and what is wrong with it."""
    return f"{job.splits[split].where(position)}: {str(error).rstrip('.')}."


def _check_left_out(
    dataset: Dataset, job: Job, left_out: Sequence[tuple[File, LeftOut]]
) -> None:
    """Raises UserError if more images of a split are left out than is allowed."""
    allowed = getattr(dataset, "max_bad_share", 0.0)
    for split, images in job.splits.items():
        bad = [
            entry
            for file, entries in left_out
            if file.split == split
            for entry in entries
        ]
        if len(bad) > allowed * len(images):
            some = " ".join(_complaint(job, split, *entry) for entry in bad[:3])
            raise UserError(
                f"{len(bad)} of {len(images):,} images of {split} cannot be read, more than "
                f"the share {allowed} that --source.max_bad_share allows: {some}"
            )


def _part(
    job: Job, files: list[tuple[File, shards.Contents, LeftOut]], several: bool
) -> dict[str, Any]:
    """Returns what the index says of one split.

    Args:
      job: how the files were made.
      files: each file, what is in it, and what was left out of it.
      several: whether an image has any number of labels.
    """
    return {
        "files": [
            {
                "name": file.name,
                "records": len(contents.positions),
                "bytes": contents.bytes,
                "sha256": contents.sha256,
            }
            for file, contents, _ in files
        ],
        "labels": [
            list(labels) if several else labels[0]
            for _, contents, _ in files
            for labels in contents.labels
        ],
        "left_out": [
            [job.name(file.split, position), reason]
            for file, _, left_out in files
            for position, reason in left_out
        ],
    }


def _write_json(path: Path, value: Any) -> None:
    """Writes a file, whole or not at all."""
    with shards.replacing(path) as temporary, shards.writing(path):
        temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    """Returns what a file says, None if that is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


@dataclasses.dataclass
class Findings:
    """What `check` finds in some images.

    Attributes:
      bad: [split, path, reason] of each image that cannot be read.
      formats: how many images are of each file format.
      modes: how many are of each of Pillow's modes.
      sizes: how many are of each "WIDTHxHEIGHT".
    """

    bad: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    formats: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    modes: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    sizes: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )

    def add(self, other: "Findings") -> None:
        """Adds what was found in other images."""
        self.bad += other.bad
        self.formats += other.formats
        self.modes += other.modes
        self.sizes += other.sizes


def scan(
    splits: dict[Split, Encoded | ArrayImages],
    part: tuple[Split, int, int],
    progress: pool.Progress,
) -> Findings:
    """Decodes the images first..end of a split, where `part` is (split, first, end)."""
    split, first, end = part
    images = splits[split]
    found = Findings()
    for position in range(first, end):
        try:
            data = images.read(position)
            decode(data)
        except (BadImage, OSError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            found.bad.append((split, images.where(position), reason))
        else:
            with warnings.catch_warnings(action="ignore"):  # decode has its own limits
                with Image.open(io.BytesIO(data)) as header:
                    found.formats[header.format or "unknown"] += 1
                    found.modes[header.mode] += 1
                    found.sizes[f"{header.width}x{header.height}"] += 1
        progress(1)
    return found


def check(dataset: Dataset, report: str | Path, *, workers: int = 1) -> Findings:
    """Decodes every image of both splits and writes a report.

    Args:
      dataset: the images.
      report: the file to write, JSON lines.
      workers: processes; see write_records.

    Raises:
      UserError: if the data cannot be opened, or the report cannot be written.
    """
    _check_options(1, None, 1, 1, workers)
    splits = {split: open_images(dataset, split) for split in SPLITS}
    parts = [
        (split, first, min(first + SCAN, len(images)))
        for split, images in splits.items()
        for first in range(0, len(images), SCAN)
    ]
    with _bar(sum(map(len, splits.values())), "check") as bar:
        results = dict(
            pool.run(
                functools.partial(scan, splits),
                parts,
                workers=workers,
                progress=bar.update,
            )
        )
    found = Findings()
    for index in range(len(parts)):
        found.add(results[index])
    lines: list[dict[str, Any]] = [
        {"split": split, "path": path, "reason": reason}
        for split, path, reason in found.bad
    ]
    lines.append(
        {
            "images": sum(map(len, splits.values())),
            "bad": len(found.bad),
            "formats": dict(found.formats.most_common()),
            "modes": dict(found.modes.most_common()),
            "sizes": dict(found.sizes.most_common()),
        }
    )
    path = Path(report)
    with shards.replacing(path) as temporary, shards.writing(path):
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def verify(folder: str | Path, *, workers: int = 1) -> int:
    """Reads all files of a folder of records through.

    Args:
      folder: the folder.
      workers: processes; see write_records.

    Returns:
      The number of records.

    Raises:
      UserError: naming each file that is missing, damaged, or not what the index says.
    """
    _check_options(1, None, 1, 1, workers)
    path = Path(expanded(str(folder)))
    index = read_index(path)
    parts = index["splits"].values()
    files = [file for part in parts for file in part["files"]]
    labels = [label for part in parts for label in part["labels"]]
    with _bar(len(labels), "verify") as bar:
        results = dict(
            pool.run(
                functools.partial(_fault, path),
                files,
                workers=workers,
                progress=bar.update,
            )
        )
    faults = [fault for i in range(len(files)) if (fault := results[i][0])]
    if faults:
        raise UserError(
            f"{'; '.join(faults[:5])} ({len(faults)} of {count(len(files), 'file')}): copy what "
            "is damaged again, or make the records again in another folder."
        )
    found = [label for i in range(len(files)) for label in results[i][1]]
    expected = [tuple(x) if isinstance(x, list) else (x,) for x in labels]
    if found != expected:
        raise UserError(
            f"{shown(str(path))}/{INDEX} has other labels than the records have."
        )
    return len(labels)


def _fault(
    folder: Path, file: dict[str, Any], progress: pool.Progress
) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Returns what is wrong with a file that an index names, "" if nothing, and its labels."""
    path = folder / file["name"]
    try:
        contents = shards.inspect(path)
    except FileNotFoundError:
        return f"there is no file {path}", ()
    except OSError as error:
        return str(error), ()
    progress(file["records"])
    if contents.sha256 != file["sha256"]:
        return f"{path} is damaged: its SHA-256 is not that of {INDEX}", ()
    return "", contents.labels


def _bar(total: int, title: str) -> "tqdm[Any]":
    """Returns a progress bar on a terminal; nothing is drawn elsewhere."""
    return tqdm(
        total=total, desc=title, unit=" images", disable=None, dynamic_ncols=True
    )


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns what reads the command line, and what reads that of each command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    source = "--source NAME [--source.OPTION=VALUE ...]"
    commands = {}
    for name, about, usage in (
        (
            "records",
            "writes both splits of a dataset, resized, as record files",
            f"{source} --out DIR [--size N] [--format jpeg|raw] ...",
        ),
        (
            "check",
            "decodes all images of a dataset and reports those that cannot be read",
            f"{source} [--report FILE] [--workers N]",
        ),
        (
            "verify",
            "reads record files through and compares them with their index",
            "--path DIR [--workers N]",
        ),
    ):
        commands[name] = subparsers.add_parser(
            name,
            help=about,
            description=about,
            usage=f"python -m jaxcls.prepare {name} {usage}",
            allow_abbrev=False,
            add_help=False,  # with --source it goes on
        )
        add = commands[name].add_argument
        add("--help", "-h", action="store_true", help="this text")
        if name != "verify":
            add(
                "--source",
                metavar="NAME",
                help="the dataset; with --help also its options",
            )
        if name == "records":
            add(
                "--out", metavar="DIR", help="a new folder, or where the same was begun"
            )
            add("--size", type=int, default=256, help="short side, pixels; 256")
            add("--max_size", type=int, help="bound of the long side, pixels; none")
            add("--format", choices=["jpeg", "raw"], default="jpeg", help="jpeg")
            add("--quality", type=int, default=90, help="of JPEGs, 1..100; 90")
            add(
                "--shard_mb",
                type=float,
                default=128,
                help="megabytes a file, about; 128",
            )
        elif name == "check":
            add(
                "--report", default="check.jsonl", help="the file to write; check.jsonl"
            )
        else:
            add("--path", metavar="DIR", help="the folder of the records")
        add("--workers", type=int, help="processes; one a core")
    return parser, commands


def _dataset(name: str, arguments: Sequence[str]) -> Dataset:
    """Returns the dataset `name` with its options set from "--source.OPTION=VALUE".

    Raises:
      UserError: for an unknown dataset, option or value.
    """
    from jaxcls.config.overrides import override

    dataset = create_dataset(name)
    node: Any = dataset
    for argument in arguments:
        match = re.fullmatch(r"--source\.([^=]+)=(.*)", argument, re.DOTALL)
        if match is None:
            raise UserError(
                f"unknown argument '{argument}': options of the dataset are written "
                "--source.OPTION=VALUE. See --help."
            )
        override(node, match[1], match[2])
        if _is_of_loading(match[1]):
            raise UserError(
                f"--source.{match[1]} is of training and changes nothing here: leave it out."
            )
    dataset.validate()
    return dataset


def _of_source(text: str) -> str:
    """Words a message about a recipe's data as one about --source."""
    for theirs, ours in (
        ("--config.data.", "--source."),
        ("--config.", "--source."),
        ("the recipe has no option", "the dataset has no option"),
        ("--help with --config lists all", "--help with --source lists all"),
    ):
        text = text.replace(theirs, ours)
    return text


def _describe(name: str) -> str:
    """Returns a table of the options of a dataset that make a difference here.

    Raises:
      UserError: if there is no such dataset.
    """
    from jaxcls import config
    from jaxcls.config.help import meaning

    node: Any = create_dataset(name)
    lines = [f"options of --source {name}, with their values:"]
    for option, (owner, value) in config.options(node).items():
        if not _is_of_loading(option):
            field = option.rpartition(".")[2]
            lines += [f"  --source.{option}={value!r}"]
            lines += [f"      {meaning(type(owner), field)}"]
    return "\n".join(lines if len(lines) > 1 else [f"--source {name} has no options"])


def _is_of_loading(option: str) -> bool:
    """Whether an option of a dataset is about how training loads it."""
    of_all = {field.name for field in dataclasses.fields(Dataset)}
    return option.partition(".")[0] in of_all | {"canvas", "cache_mb"}


def _run(ours: argparse.Namespace, others: Sequence[str]) -> int:
    """Runs a command that was parsed; returns its exit code."""
    from jaxcls.data.loader import available_cores  # imports jax

    workers = available_cores() if ours.workers is None else ours.workers
    for name in ("source", "out", "path"):
        if getattr(ours, name, "") is None:
            raise UserError(f"--{name} is missing. See --help.")
    if ours.command == "verify":
        if others:
            raise UserError(f"unknown argument '{others[0]}'. See --help.")
        records = verify(ours.path, workers=workers)
        print(f"{ours.path}: {count(records, 'record')}, all as its {INDEX} says")
        return 0
    dataset = _dataset(ours.source, others)
    if ours.command == "check":
        found = check(dataset, ours.report, workers=workers)
        good = found.formats.total()
        names = f" ({ours.report} names each)" if found.bad else ""
        print(f"{count(good, 'good image')}, {len(found.bad):,} bad{names}")
        for title in ("formats", "modes", "sizes"):
            counter: collections.Counter[str] = getattr(found, title)
            some = ", ".join(
                f"{times:,} {name}" for name, times in counter.most_common(5)
            )
            more = f", ... ({len(counter):,} in all)" if len(counter) > 5 else ""
            print(f"  {title}: {some}{more}")
        return 2 if found.bad else 0
    index = write_records(
        dataset,
        ours.out,
        size=ours.size,
        max_size=ours.max_size,
        format=ours.format,
        quality=ours.quality,
        shard_mb=ours.shard_mb,
        workers=workers,
    )
    for split, part in index["splits"].items():
        megabytes = sum(file["bytes"] for file in part["files"]) / 1e6
        left_out = len(part["left_out"])
        note = f", {left_out:,} left out (see {INDEX})" if left_out else ""
        print(
            f"{split}: {count(len(part['labels']), 'image')} in "
            f"{count(len(part['files']), 'file')}, {megabytes:,.1f} MB{note}"
        )
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0; 2 for a mistake, or for images that cannot
    be read; 75 if it was stopped by Ctrl-C and the same command goes on."""
    parser, commands = _parsers()
    ours, others = parser.parse_known_args(argv)
    try:
        if ours.help:
            print(commands[ours.command].format_help())
            if getattr(ours, "source", None):
                print(_describe(ours.source))
            return 0
        return _run(ours, others)
    except UserError as error:
        print(f"error: {_of_source(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was.", file=sys.stderr)
        return 75


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
