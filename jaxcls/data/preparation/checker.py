"""Looks for images that cannot be read, and for record files that are damaged."""

import collections
import functools
import io
import json
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import BadImage, decode
from jaxcls.data.encoded_images import Encoded
from jaxcls.data.formats import shards
from jaxcls.data.formats.paths import expanded
from jaxcls.data.formats.records import INDEX, read_index
from jaxcls.data.notes import counted
from jaxcls.data.preparation import pool
from jaxcls.data.preparation.images import open_images
from jaxcls.data.preparation.writer import check_ranges
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, printable

IMAGES_PER_TASK = 64

TITLES = ("formats", "modes", "sizes")
"""What is counted: file formats, modes in Pillow, and sizes, "WIDTHxHEIGHT"."""

Counts = collections.Counter[tuple[str, str]]
"""(title, value) -> the number of good images that have it."""


def check(
    dataset: Dataset, report: str | Path, *, workers: int = 1
) -> list[dict[str, Any]]:
    """Decodes every image of both splits and writes a report of JSON lines.

    Args:
      dataset: the images.
      report: the file to write.
      workers: number of processes, 1..1024; see write_records.

    Returns:
      The lines of the report. One line for each image that cannot be read: "split", "path" and
      "reason". The last line counts: "images", "bad" ones among them, and how many of the others
      are of each of the "formats", "modes" and "sizes", the most common first.

    Raises:
      UserError: if the data cannot be opened, or the report cannot be written.
    """
    check_ranges(workers=(workers, 1, 1024))
    splits = open_images(dataset)
    images = sum(map(len, splits.values()))
    tasks = [
        (split, range(len(encoded))[first : first + IMAGES_PER_TASK])
        for split, encoded in splits.items()
        for first in range(0, len(encoded), IMAGES_PER_TASK)
    ]
    scan = functools.partial(_scan, splits)
    results = pool.run(scan, tasks, workers=workers, images=images, title="check")
    lines: list[dict[str, Any]] = []
    counts: Counts = collections.Counter()
    for _, (bad, counts_of_task) in sorted(results):
        lines += bad
        counts += counts_of_task
    summary: dict[str, Any] = {"images": images, "bad": len(lines)}
    for title in TITLES:
        summary[title] = {
            value: number for (of, value), number in counts.most_common() if of == title
        }
    lines.append(summary)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    shards.write_bytes(Path(report), text.encode())
    return lines


def _scan(
    splits: dict[Split, Encoded], task: tuple[Split, range], progress: pool.Progress
) -> tuple[list[dict[str, str]], Counts]:
    """Decodes the images at some positions of a split.

    Returns:
      The lines of the report on those that cannot be read, and the counts of the others.
    """
    split, positions = task
    images = splits[split]
    bad = []
    counts: Counts = collections.Counter()
    for position in positions:
        try:
            data = images.read(position)
            decode(data)
        except (BadImage, OSError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            path = images.where(position)
            bad.append({"split": split, "path": path, "reason": reason})
        else:
            with warnings.catch_warnings(action="ignore"):  # decode has its own limits
                header = Image.open(io.BytesIO(data))
            size = f"{header.width}x{header.height}"
            values = (header.format or "unknown", header.mode, size)
            counts.update(zip(TITLES, values, strict=True))
        progress(1)
    return bad, counts


def verify(folder: str | Path, *, workers: int = 1) -> int:
    """Reads all files of a folder of records through.

    Args:
      folder: the folder.
      workers: number of processes, 1..1024; see write_records.

    Returns:
      The number of records.

    Raises:
      UserError: naming each file that is missing, damaged, or not what the index says.
    """
    check_ranges(workers=(workers, 1, 1024))
    path = Path(expanded(str(folder)))
    parts = read_index(path)["splits"].values()
    files = [file for part in parts for file in part["files"]]
    expected = [
        tuple(label) if isinstance(label, list) else (label,)
        for part in parts
        for label in part["labels"]
    ]
    results = pool.run(
        functools.partial(_read_through, path),
        files,
        workers=workers,
        images=len(expected),
        title="verify",
    )
    read = [result for _, result in sorted(results)]
    faults = [fault for fault, _ in read if fault]
    if faults:
        raise UserError(
            f"{'; '.join(faults[:5])} ({len(faults)} of {counted(len(files), 'file')}): copy what "
            "is damaged again, or make the records again in another folder."
        )
    if [label for _, labels in read for label in labels] != expected:
        raise UserError(
            f"{printable(str(path))}/{INDEX} has other labels than the records have."
        )
    return len(expected)


def _read_through(
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
