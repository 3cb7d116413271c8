"""Writes both splits of a dataset as record files.

    write_records(ImageFolder(path="pets"), "pets-256", size=256, workers=8)

Each file is written under a temporary name and renamed when it is complete. index.json comes
last; until then, plan.json says what the folder is to hold. After a kill the same call keeps the
complete files, reads them through, and writes the others. The content of a file depends on the
order of the data and on the options alone, so that the bytes are the same for any number of
workers and kills.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import BadImage
from jaxcls.data.encoded_images import Encoded
from jaxcls.data.formats import shards
from jaxcls.data.formats.paths import expanded
from jaxcls.data.formats.records import INDEX, PLAN, VERSION, read_index
from jaxcls.data.preparation import pool
from jaxcls.data.preparation.images import (
    LONGEST_SIDE,
    SPLITS,
    ArrayImages,
    Conversion,
    Format,
    open_images,
)
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, printable
from jaxcls.files import held

SAMPLE = 16
"""Number of images of a split that are converted to estimate how many fit into a file."""

LeftOut = list[tuple[int, str]]
"""The position in its split of each image that cannot be read, and the reason."""

Written = tuple[shards.Contents, LeftOut]
"""What a complete file holds, and the images that it should hold but that are left out."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the processes need to write files.

    Attributes:
      folder: where the files go.
      base: the folder of the data, with "/": names of images are relative to it; "" for none.
      splits: the images of each split.
      convert: makes what is stored of an image.
      skip: whether images that cannot be read are left out.
      max_bad_share: the share of a split that may be left out, 0..1.
    """

    folder: Path
    base: str
    splits: dict[Split, Encoded]
    convert: Conversion
    skip: bool
    max_bad_share: float

    def name(self, split: Split, position: int) -> str:
        """Returns where an image came from, without the part of its path that depends on the
        machine."""
        return self.splits[split].where(position).removeprefix(self.base)

    def labels(self, split: Split, position: int) -> tuple[int, ...]:
        """Returns the indices of an image's classes: one, unless images have any number."""
        label = self.splits[split].labels[position]
        return tuple(np.flatnonzero(label).tolist()) if label.ndim else (int(label),)

    def image(self, split: Split, position: int) -> bytes:
        """Returns what is stored of an image.

        Raises:
          BadImage: if it cannot be read or decoded, and is left out.
          UserError: if it cannot be read or decoded, and must not be left out.
        """
        try:
            return self.convert(self.splits[split].read(position))
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
        except BadImage as error:
            reason = str(error)
        if self.skip:
            raise BadImage(reason)
        raise UserError(
            f"{self.complaint(split, position, reason)} Mend or remove it, or leave such "
            "images out with --source.on_bad_image=skip."
        )

    def complaint(self, split: Split, position: int, reason: str) -> str:
        """Returns a sentence with the path of an image and what is wrong with it."""
        return f"{self.splits[split].where(position)}: {reason.rstrip('.')}."


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file to write, with the images at some positions of a split."""

    split: Split
    name: str
    positions: range


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
      out: the folder: a new one, or one where the same records were begun.
      size: short side in pixels, 1..8192; for "raw", the side of the square.
      max_size: bound of the long side in pixels, size..65500; None for none.
      format: "jpeg" or "raw".
      quality: of JPEGs, 1..100.
      shard_mb: approximate megabytes of a file; it holds at least one image.
      workers: number of processes, 1..1024.

    Returns:
      The index that was written; see records.py.

    Raises:
      UserError: for an option out of range, images that cannot be read, a full disk, or a
        folder with something else in it.
    """
    check_ranges(
        workers=(workers, 1, 1024),
        size=(size, 1, 8192),
        quality=(quality, 1, 100),
        max_size=(size if max_size is None else max_size, size, LONGEST_SIDE),
    )
    if not 0 < shard_mb <= 1e6:
        raise UserError(
            f"--shard_mb must lie above 0 and up to 1000000, not {shard_mb}."
        )
    splits = open_images(dataset)
    if splits["test"].class_names != splits["train"].class_names:
        raise UserError(
            f"{splits['test']!r} has other classes than {splits['train']!r}: records need one "
            "list of classes."
        )
    channels = getattr(dataset, "channels", 3)
    for images in splits.values():
        if isinstance(images, ArrayImages):
            size, channels = min(size, images.side), images.channels
    job = Job(
        folder=Path(expanded(str(out))),
        base=_base(getattr(dataset, "path", "")),
        splits=splits,
        convert=Conversion(format, size, max_size, quality, channels),
        skip=getattr(dataset, "on_bad_image", "raise") == "skip",
        max_bad_share=getattr(dataset, "max_bad_share", 0.0),
    )
    plan = {
        "version": VERSION,
        "source": {split: repr(images) for split, images in splits.items()},
        **dataclasses.asdict(job.convert),
        "records_per_file": {
            split: _records_per_file(job, split, shard_mb * 1e6) for split in SPLITS
        },
    }
    with alone_in(job.folder):
        if not _begin(job.folder, plan):
            _write(job, plan, workers)
        with shards.writing(job.folder / PLAN):
            (job.folder / PLAN).unlink(missing_ok=True)
    return read_index(job.folder)


def check_ranges(**options: tuple[float, float, float]) -> None:
    """Raises UserError unless low <= value <= high for each option=(value, low, high)."""
    for name, (value, low, high) in options.items():
        if not low <= value <= high:
            raise UserError(f"--{name} must lie in {low}..{high}, not {value}.")


def _base(path: str) -> str:
    """Returns the folder of the data at `path`, with "/" at its end; "" without a path."""
    if not path:
        return ""
    path = expanded(path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    return printable(os.path.join(folder, ""))


def _records_per_file(job: Job, split: Split, file_bytes: float) -> int:
    """Returns how many records make a file of about `file_bytes`, from a sample of them.

    Raises:
      UserError: if an image cannot be read, or all of the sample are left out.
    """
    if shape := job.convert.shape:
        return max(1, int(file_bytes // math.prod(shape)))
    count = len(job.splits[split])
    lengths, complaint = [], ""
    for position in range(0, count, max(1, count // SAMPLE)):
        try:
            lengths.append(len(job.image(split, position)))
        except BadImage as error:
            complaint = job.complaint(split, position, str(error))
    if complaint and not lengths:
        raise UserError(f"none of {SAMPLE} images of {split} can be read. {complaint}")
    return max(1, int(file_bytes // np.mean(lengths))) if lengths else 1


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder, and locks it against other processes that write records.

    Raises:
      UserError: if one does, or the folder cannot be made.
    """
    with shards.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    taken = (
        f"another process writes records into {printable(str(folder))}: wait for it, or give "
        "another --out."
    )
    with held(descriptor, taken):
        yield


def _begin(folder: Path, plan: dict[str, Any]) -> bool:
    """Prepares the folder; returns whether the records in it are complete.

    Raises:
      UserError: if there is something else in it, or it cannot be written.
    """
    with shards.writing(folder):
        shards.remove_abandoned(folder)
        found = {path.name for path in folder.iterdir()}
    if INDEX in found:
        _check_same(folder, read_index(folder)["made_from"], plan)
        return True
    if PLAN in found:
        old = None
        with contextlib.suppress(OSError, ValueError):
            old = json.loads((folder / PLAN).read_bytes())
        _check_same(folder, old, plan)
    elif found:
        raise UserError(
            f"{printable(str(folder))} is not empty and no records were begun there: give a new "
            "folder as --out."
        )
    else:
        shards.write_bytes(folder / PLAN, f"{json.dumps(plan)}\n".encode())
    return False


def _check_same(folder: Path, old: Any, new: dict[str, Any]) -> None:
    """Raises UserError if a folder was begun with other data or options."""
    old = old if isinstance(old, dict) else {}
    changed = [name for name in new if old.get(name) != new[name]]
    if len(changed) > 1:  # it follows from the others
        changed = [name for name in changed if name != "records_per_file"]
    if changed:
        changes = "; ".join(
            f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in changed
        )
        raise UserError(
            f"{printable(str(folder))} holds records of something else ({changes}): give "
            "another --out, or remove that folder."
        )


def _write(job: Job, plan: dict[str, Any], workers: int) -> None:
    """Writes the files of a folder, and its index in the end."""
    files = _files(job, plan["records_per_file"])
    written: dict[int, Written] = {}
    left_out: dict[Split, LeftOut] = {split: [] for split in SPLITS}
    results = pool.run(
        functools.partial(write_file, job),
        files,
        workers=workers,
        images=sum(map(len, job.splits.values())),
        title=job.folder.name,
    )
    try:
        for number, result in results:
            written[number] = result
            split = files[number].split
            left_out[split] += result[1]
            _check_left_out(job, split, left_out[split])
    finally:
        results.close()
        shards.remove_abandoned(job.folder)
    index = {
        "version": VERSION,
        "format": job.convert.format,
        "shape": job.convert.shape,
        "class_names": list(job.splits["train"].class_names),
        "splits": _splits_of_index(job, files, written),
        "made_from": plan,
    }
    shards.write_bytes(job.folder / INDEX, f"{json.dumps(index)}\n".encode())


def _files(job: Job, records_per_file: dict[Split, int]) -> list[RecordFile]:
    """Returns the files to write: equal parts of each split, in order."""
    files = []
    for split, images in job.splits.items():
        size = records_per_file[split]
        starts = range(0, len(images), size)
        for number, start in enumerate(starts):
            name = f"{split}-{number:05}-of-{len(starts):05}.array_record"
            positions = range(len(images))[start : start + size]
            files.append(RecordFile(split, name, positions))
    return files


def write_file(job: Job, file: RecordFile, progress: pool.Progress) -> Written:
    """Writes one file, unless it is complete, and reads it through.

    Raises:
      UserError: if an image cannot be read and must not be left out, or the disk is full.
    """
    path = job.folder / file.name
    contents = _complete(job, file, path)
    if contents:
        progress(len(file.positions))
    else:
        shards.write(path, _items(job, file, progress))
        contents = _complete(job, file, path)
    if not contents:
        raise UserError(
            f"{printable(str(path))} is not what was written there a moment ago: the disk is "
            "perhaps failing, give another --out."
        )
    left_out = []
    for position in sorted({*file.positions} - {*contents.positions}):
        try:
            job.image(file.split, position)
        except BadImage as error:
            left_out.append((position, str(error)))
    return contents, left_out


def _complete(job: Job, file: RecordFile, path: Path) -> shards.Contents | None:
    """Returns what is in a file; None if it is not there, damaged, or of other images."""
    try:
        contents = shards.inspect(path)
    except OSError:
        return None
    positions = list(contents.positions)
    if positions != sorted({*positions} & {*file.positions}):
        return None
    expected = tuple(job.labels(file.split, position) for position in positions)
    return contents if contents.labels == expected else None


def _items(
    job: Job, file: RecordFile, progress: pool.Progress
) -> Iterator[shards.Item]:
    """Yields the records of a file."""
    for position in file.positions:
        with contextlib.suppress(BadImage):  # write_file lists it
            image = job.image(file.split, position)
            labels = job.labels(file.split, position)
            name = job.name(file.split, position)
            yield shards.Item(position, labels, name, image, job.convert.shape)
        progress(1)


def _check_left_out(job: Job, split: Split, left_out: LeftOut) -> None:
    """Raises UserError if more images of a split are left out than is allowed."""
    images = len(job.splits[split])
    if len(left_out) > job.max_bad_share * images:
        examples = " ".join(job.complaint(split, *entry) for entry in left_out[:3])
        raise UserError(
            f"{len(left_out)} of {images:,} images of {split} cannot be read, more than "
            f"the share {job.max_bad_share} that --source.max_bad_share allows: {examples}"
        )


def _splits_of_index(
    job: Job, files: list[RecordFile], written: dict[int, Written]
) -> dict[Split, dict[str, list[Any]]]:
    """Returns what the index says of each split: see records.py."""
    parts: dict[Split, dict[str, list[Any]]] = {
        split: {"files": [], "labels": [], "left_out": []} for split in SPLITS
    }
    for number, file in enumerate(files):
        contents, left_out = written[number]
        part, one_label = parts[file.split], job.splits[file.split].labels.ndim == 1
        part["files"].append(
            {
                "name": file.name,
                "records": len(contents.positions),
                "bytes": contents.bytes,
                "sha256": contents.sha256,
            }
        )
        part["labels"] += [each[0] if one_label else each for each in contents.labels]
        part["left_out"] += [[job.name(file.split, at), why] for at, why in left_out]
    return parts
