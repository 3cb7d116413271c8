"""A folder of class folders of images.

    pets/train/cat/1.jpg      pets/cat/1.jpg
         train/dog/2.jpg           dog/2.jpg
         val/cat/3.jpg             dog/3.jpg

    ImageFolder(path="pets").encoded("train").class_names  # ("cat", "dog")

Left: folders say which images are for training and which for testing. Right: a hash of each
file's name decides.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.classes import note_missing_classes
from jaxcls.data.formats.image_list import ImageList, Labels, Names
from jaxcls.data.formats.paths import expanded, is_hidden, is_image, similar_file
from jaxcls.data.formats.splits import HELD_OUT, HeldOutShare, split_names, split_rows
from jaxcls.data.notes import counted, enumerated, explaining, note, require
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean, printable

SCAN_THREADS = 16
"""Class folders that are listed at once: a network file system answers many at a time."""


class FileImages(ImageList):
    """Image files below one folder."""

    def __init__(self, labels: Labels, folder: str, files: Iterable[str]):
        """Wraps a list of files.

        Args:
          labels: of the images.
          folder: where the files lie.
          files: [n] their paths, relative to the folder unless they begin with "/".
        """
        self._folder = folder
        self._files = Names(map(os.fsencode, files))
        super().__init__(labels, self._files)

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, os.fsdecode(self._files[index]))

    def read(self, index: int) -> bytes:
        with open(self._path(index), "rb") as file:
            return file.read()

    def where(self, index: int) -> str:
        return printable(self._path(index))


@dataclasses.dataclass(kw_only=True)
class ImageFolder(Images):
    """A folder that holds a folder of images for each class.

    Either `path` has a folder "train" and beside it "val", "validation" or "test" (in any case of
    the letters), each with class folders; where several of the latter exist, the first in this
    order is evaluated. Or `path` has the class folders itself; then a file is a test image if the
    SHA-256 of its name below `path` ("cat/1.jpg"), read as a fraction, lies below `test_share`:
    adding or removing files moves no other one to the other side.

    Images may lie in folders below a class folder. Hidden files and "__MACOSX" are ignored.
    A link may lead to a file or folder below `path`, not out of it.

    Attributes:
      path: the folder.
      test_share: the part of the images that is held out for testing if there are no folders
        of splits, above 0 and below 1.
      class_order: "lexical" numbers classes by their folders' names as text ("1", "10", "2"),
        which is what torchvision does; "natural" goes by the numbers in them ("1", "2", "10").
    """

    path: str = ""
    test_share: HeldOutShare = 0.2
    class_order: Literal["lexical", "natural"] = "lexical"

    def validate(self) -> None:
        require("path", self.path, "the folder of the class folders")

    def encoded(self, split: Split) -> FileImages:
        """Lists the images of one split.

        Raises:
          UserError: if the folder is not laid out as it should be.
        """
        options.check(self, "data")
        root = open_folder(self.path)
        parts = split_folders(root)
        folder = root if parts is None else os.path.join(root, parts[split])
        found = scan(folder, root)
        class_dirs: Iterable[str] = found
        if parts is None:
            name = f"{last_parts(root, 1)}[{split}]"
            for class_dir, files in found.items():
                rows = split_rows(files, self.test_share, split)
                found[class_dir] = [files[row] for row in rows]
        else:
            name = last_parts(folder, 2)
            if split == "test":
                training = os.path.join(root, parts["train"])
                class_dirs = folders_with_images(training, root)
                check_known(found, class_dirs, folder, training)
        return labelled(name, folder, found, sorted(class_dirs, key=self._order))

    def _order(self, class_dir: str) -> tuple[object, ...]:
        """Returns the key that sorts classes."""
        name = printable(class_dir)
        if self.class_order == "lexical":
            return (name,)
        # Text and numbers take turns, so that like is compared with like.
        pieces = re.split("([0-9]+)", name)
        return (*[int(p) if p.isdecimal() and p.isascii() else p for p in pieces], name)


def open_folder(path: str) -> str:
    """Returns the absolute path of a folder that exists.

    Raises:
      UserError: if it does not, or is a file.
    """
    folder = expanded(path)
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise UserError(
            f"{folder} is a file, but data.path must be a folder: unpack it, or read "
            "a tar file through WebTar."
        )
    raise UserError(
        f"there is no folder {folder}.{similar_file(folder)} Set it with "
        "--config.data.path=..."
    )


def split_folders(root: str) -> dict[Split, str] | None:
    """Finds the folders of the splits.

    Args:
      root: a folder.

    Returns:
      The names of the folders of "train" and "test"; None if `root` is not divided into folders.

    Raises:
      UserError: if there is a folder "train" alone, or none but those of what is evaluated.
    """
    by_name = {name.lower(): name for name in class_folders(root)}
    splits = split_names(by_name.values(), root)
    alone = [by_name[name] for name in ("train", *HELD_OUT) if name in by_name]
    if splits is None and alone and len(alone) == len(by_name):
        missing = f"none of {', '.join(HELD_OUT)}"
        lacks = missing if "train" in by_name else "no folder train"
        raise UserError(
            f"{root} has {enumerated(alone)}, but {lacks} beside "
            f"it: put one there, or set data.path to {os.path.join(root, alone[0])}, "
            "of which data.test_share is then held out."
        )
    return splits


def class_folders(folder: str) -> list[str]:
    """Returns the names of the folders in a folder, without hidden ones."""
    return [entry.name for entry, is_folder in _listing(folder) if is_folder]


def folders_with_images(folder: str, root: str) -> list[str]:
    """Returns the names of the class folders in a folder that have an image, in no order.

    Links must not lead out of `root`.
    """
    return [
        name
        for name in class_folders(folder)
        if next(images_below(folder, name, root), None) is not None
    ]


def scan(folder: str, root: str) -> dict[str, list[str]]:
    """Lists the images of all classes.

    Args:
      folder: where the class folders lie.
      root: links must not lead out of this folder.

    Returns:
      The paths of the images below each class folder that has any, relative to `folder`, sorted.

    Raises:
      UserError: if there are none, a folder cannot be read, or a link leads out of the root.
    """
    class_dirs = class_folders(folder)
    others = [collections.Counter[str]() for _ in class_dirs]

    def listed(name: str, others: collections.Counter[str]) -> list[str]:
        return sorted(images_below(folder, name, root, others), key=os.fsencode)

    with concurrent.futures.ThreadPoolExecutor(SCAN_THREADS) as pool:
        files = pool.map(listed, class_dirs, others)
        found = dict(zip(class_dirs, files, strict=True))
    if not any(found.values()):
        raise UserError(
            f"{folder} has no image in a class folder ({counted(len(class_dirs), 'folder')} "
            "found); expected a folder for each class, with images in it."
        )
    _note_left_out(folder, found, sum(others, collections.Counter()))
    return {name: files for name, files in found.items() if files}


def _note_left_out(
    folder: str, found: Mapping[str, Sequence[str]], others: collections.Counter[str]
) -> None:
    """Notes which folders and files are no part of the data."""
    empty = sorted(name for name, files in found.items() if not files)
    if empty:
        note(f"{folder} has folders without images, no classes: {enumerated(empty)}.")
    if others:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in others.most_common(5))
        note(
            f"below {folder}, what is no image is left out: "
            f"{counted(others.total(), 'file')} ({kinds})."
        )
    entries = [entry.name for entry, is_folder in _listing(folder) if not is_folder]
    loose = sorted(filter(is_image, entries))
    if loose:
        note(
            f"in {folder}, what lies in no class folder is left out: "
            f"{counted(len(loose), 'image')} ({enumerated(loose)})."
        )


def images_below(
    folder: str, name: str, root: str, others: collections.Counter[str] | None = None
) -> Iterator[str]:
    """Yields the images in a folder and the folders below it, in no order.

    Args:
      folder: what the paths are relative to.
      name: the folder in it that is searched.
      root: links must not lead out of this folder.
      others: counts the other files by what their names end with.

    Raises:
      UserError: if a folder cannot be read, a link leads out of the root or in a circle, or
        what is named as an image is no file.
    """
    real_root = os.path.realpath(root)
    # Each folder with the real paths of those that led to it.
    top = _real_path(os.path.join(folder, name), real_root, ())
    waiting: list[tuple[str, tuple[str, ...]]] = [(name, (top,))]
    while waiting:
        below, way = waiting.pop()
        for entry, is_folder in _listing(os.path.join(folder, below)):
            path = os.path.join(below, entry.name)
            real = os.path.join(way[-1], entry.name)
            if entry.is_symlink():
                real = _real_path(entry.path, real_root, way)
            if is_folder:
                waiting.append((path, (*way, real)))
            elif is_image(entry.name):
                # Reading from a pipe or a device could wait, or go on, for ever.
                if not entry.is_file() and os.path.exists(entry.path):
                    raise UserError(
                        f"{entry.path} is no plain file, but a pipe, socket or device: remove it."
                    )
                yield path
            elif others is not None:
                ending = os.path.splitext(entry.name)[1]
                others[ending or "without ending"] += 1


def _real_path(path: str, real_root: str, way: Sequence[str]) -> str:
    """Returns where a path leads, after checking that it stays in the tree.

    Args:
      path: that of a link, perhaps.
      real_root: the real path of the tree.
      way: the real paths of the folders that led to it, where it must not lead back to.
    """
    real = os.path.realpath(path)
    if not real.startswith(os.path.join(real_root, "")):
        raise UserError(
            f"a link leads out of {real_root}: {path} lies at "
            f"{real}. Put the files themselves there."
        )
    if real in way:
        raise UserError(f"{path} is a link that leads in a circle: remove it.")
    return real


def _listing(folder: str) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yields what is in a folder and not hidden, and whether it is a folder itself.

    Raises:
      UserError: if the folder cannot be read.
    """
    with (
        explaining(f"cannot read the folder {folder}", (OSError,)),
        os.scandir(folder) as entries,
    ):
        for entry in entries:
            if not is_hidden(entry.name):
                yield entry, entry.is_dir()


def check_known(
    found: Iterable[str], known: Iterable[str], folder: str, training: str
) -> None:
    """Raises UserError if a class of the test images is not one of training."""
    unknown = sorted({*found} - {*known})
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UserError(
            f"{folder} has classes that {training} does not have: {enumerated(unknown)}.{hint}"
        )


def labelled(
    name: str,
    folder: str,
    found: Mapping[str, Sequence[str]],
    class_dirs: Sequence[str],
    class_names: Sequence[str] | None = None,
) -> FileImages:
    """Puts the images of all classes one after another.

    Args:
      name: of the data.
      folder: what the paths of the images are relative to.
      found: the images of a class folder.
      class_dirs: the class folders in the order of the labels.
      class_names: what they are called, None for the folders' own names.
    """
    files = [found.get(class_dir, ()) for class_dir in class_dirs]
    labels = np.repeat(np.arange(len(class_dirs), dtype=np.int32), [*map(len, files)])
    names = [*map(printable, class_dirs)] if class_names is None else class_names
    note_missing_classes(names, labels, name)
    return FileImages(Labels(name, labels, names), folder, itertools.chain(*files))


def last_parts(path: str, count: int) -> str:
    """Returns the last `count` folders of a path, "pets/train"."""
    return printable("/".join(path.split("/")[-count:]))
