"""A folder of class folders of images.

    pets/train/cat/1.jpg      pets/cat/1.jpg
         train/dog/2.jpg           dog/2.jpg
         val/cat/3.jpg             dog/3.jpg

    ImageFolder(path="pets").encoded("train").class_names  # ("cat", "dog")

Left: training and test images are told apart by folders. Right: by the names of the files.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxcls.data.encoded_images import Encoded, Images
from jaxcls.data.file_lists import (
    HELD_OUT,
    ClassOrder,
    Names,
    check_test_share,
    count,
    enumerated,
    expanded,
    fingerprint,
    in_test_share,
    is_hidden,
    is_image,
    require,
    say,
    say_missing_classes,
    shown,
    similar_file,
    sort_key,
)
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean

SCAN_THREADS = 16
"""Class folders that are listed at once: a network file system answers many at a time."""


class FileImages(Encoded):
    """Image files below one folder, as an Encoded."""

    def __init__(
        self,
        name: str,
        folder: bytes,
        files: Iterable[bytes],
        labels: np.ndarray,
        class_names: Sequence[str],
    ):
        """Wraps a list of files.

        Args:
          name: of the data, for `repr()`; not the folder's path.
          folder: where the files lie.
          files: [n] their paths, relative to the folder unless they begin with "/".
          labels: int [n], or uint8 [n, classes] with ones for several classes an image.
          class_names: the name of each class.
        """
        self._folder = folder
        self._files = Names(files)
        self.labels = labels if labels.ndim == 2 else labels.astype(np.int32)
        self.class_names = tuple(class_names)
        self._repr = (
            f"{name}({len(self):,} images in {len(self.class_names):,} classes, "
            f"{self._fingerprint()})"
        )

    def _fingerprint(self) -> str:
        files = (self._files[i] for i in range(len(self._files)))
        return fingerprint(files, self.labels, map(os.fsencode, self.class_names))

    def _path(self, index: int) -> bytes:
        return os.path.join(self._folder, self._files[index])

    def read(self, index: int) -> bytes:
        with open(self._path(index), "rb") as file:
            return file.read()

    def where(self, index: int) -> str:
        return shown(self._path(index))

    def __repr__(self) -> str:
        return self._repr


@dataclasses.dataclass(kw_only=True)
class ImageFolder(Images):
    """A folder that holds a folder of images for each class.

    Either `path` has a folder "train" and beside it "val", "validation" or "test" (in any case of
    the letters), each with class folders; where several of the latter exist, the first in this
    order is evaluated. Or `path` has the class folders itself; then a file is a test image if the
    SHA-256 of its name below `path` ("cat/1.jpg"), read as a fraction, lies below `test_share`:
    adding or removing files moves no other one to the other side.

    Images may lie in folders below a class folder. Hidden files and "__MACOSX" are passed over.
    A link may lead to a file or folder below `path`, not out of it.

    Attributes:
      path: the folder.
      test_share: the part of the images that is held out for testing where no folders tell,
        above 0 and below 1.
      class_order: "lexical" numbers classes by their folders' names as text ("1", "10", "2"),
        which is what torchvision does; "natural" goes by the numbers in them ("1", "2", "10").
    """

    path: str = ""
    test_share: float = 0.2
    class_order: ClassOrder = "lexical"

    def validate(self) -> None:
        super().validate()
        require("path", self.path, "the folder of the class folders")
        check_test_share(self.test_share)

    def encoded(self, split: Split) -> FileImages:
        """Lists the images of one split.

        Raises:
          UserError: if the folder is not laid out as it should be.
        """
        self.validate()
        root = open_folder(self.path)
        parts = split_folders(root)
        if parts is None:
            return self._divided(root, split)
        folder = os.path.join(root, parts[split])
        found = scan(folder, class_folders(folder), root)
        class_dirs = sorted(found, key=self._order)
        if split == "test":
            training = os.path.join(root, parts["train"])
            class_dirs = [
                name
                for name in sorted(class_folders(training), key=self._order)
                if next(images_below(training, name, root), None) is not None
            ]
            _check_known(found, class_dirs, folder, training)
        return labelled(last_parts(folder, 2), folder, found, class_dirs)

    def _divided(self, root: bytes, split: Split) -> FileImages:
        """Lists one split of a folder where only the files' names tell the splits apart."""
        found = scan(root, class_folders(root), root)
        chosen = {
            name: [
                file
                for file in files
                if in_test_share(file, self.test_share) == (split == "test")
            ]
            for name, files in found.items()
        }
        class_dirs = sorted(found, key=self._order)
        return labelled(f"{last_parts(root, 1)}[{split}]", root, chosen, class_dirs)

    def _order(self, class_dir: bytes) -> tuple[object, ...]:
        return sort_key(self.class_order, shown(class_dir))


def open_folder(path: str) -> bytes:
    """Returns the absolute path of a folder that exists.

    Raises:
      UserError: if it does not, or is a file.
    """
    folder = expanded(path)
    if os.path.isdir(folder):
        return os.fsencode(folder)
    if os.path.exists(folder):
        raise UserError(
            f"{shown(folder)} is a file, but data.path must be a folder: unpack it, or read "
            "a tar file through WebTar."
        )
    above, name = os.path.split(folder)
    beside = [shown(name) for name in os.listdir(above)] if os.path.isdir(above) else []
    raise UserError(
        f"there is no folder {shown(folder)}.{similar_file(name, beside)} Set it with "
        "--config.data.path=..."
    )


def split_folders(root: bytes) -> dict[Split, bytes] | None:
    """Finds the folders of the splits.

    Args:
      root: a folder.

    Returns:
      The names of the folders of "train" and "test"; None if `root` is not divided into folders.

    Raises:
      UserError: if there is a folder "train" alone, or none but those of what is evaluated.
    """
    by_name = {name.lower(): name for name in class_folders(root)}
    train = by_name.get(b"train")
    held_out = [by_name[h] for h in map(str.encode, HELD_OUT) if h in by_name]
    if train is not None and held_out:
        if len(held_out) > 1:
            say(
                f"{shown(root)} has {enumerated([shown(h) for h in held_out])}: "
                f"{shown(held_out[0])} is what is evaluated."
            )
        return {"train": train, "test": held_out[0]}
    if len(by_name) == 1 and train is not None:
        raise UserError(
            f"{shown(root)} has a folder {shown(train)}, but none of {', '.join(HELD_OUT)} "
            f"beside it: put one there, or set data.path to {shown(os.path.join(root, train))}"
            ", of which data.test_share is then held out."
        )
    if held_out and len(held_out) == len(by_name):
        raise UserError(
            f"{shown(root)} has {enumerated([shown(h) for h in held_out])}, but no folder train "
            "beside it: put one there, or set data.path to "
            f"{shown(os.path.join(root, held_out[0]))}, of which data.test_share is then held "
            "out."
        )
    return None


def class_folders(folder: bytes) -> list[bytes]:
    """Returns the names of the folders in a folder, without hidden ones."""
    with _listing(folder) as entries:
        return [e.name for e in entries if e.is_dir() and not is_hidden(e.name)]


def scan(
    folder: bytes, class_dirs: Sequence[bytes], root: bytes
) -> dict[bytes, list[bytes]]:
    """Lists the images of all classes.

    Args:
      folder: where the class folders lie.
      class_dirs: their names.
      root: links must not lead out of this folder.

    Returns:
      The paths of the images below each class folder that has any, relative to `folder`, sorted.

    Raises:
      UserError: if there are none, a folder cannot be read, or a link leads out of the root.
    """
    others: collections.Counter[str] = collections.Counter()
    with _listing(folder) as entries:
        loose = [e.name for e in entries if not e.is_dir() and not is_hidden(e.name)]

    def images(class_dir: bytes) -> tuple[list[bytes], collections.Counter[str]]:
        passed_over: collections.Counter[str] = collections.Counter()
        return sorted(images_below(folder, class_dir, root, passed_over)), passed_over

    with concurrent.futures.ThreadPoolExecutor(SCAN_THREADS) as pool:
        found = {}
        for class_dir, (files, passed_over) in zip(
            class_dirs, pool.map(images, class_dirs), strict=True
        ):
            found[class_dir] = files
            others += passed_over
    if not any(found.values()):
        raise UserError(
            f"{shown(folder)} has no image in a class folder "
            f"({count(len(class_dirs), 'folder')} found); expected a folder for each class, with "
            "images in it."
        )
    empty = sorted(shown(name) for name, files in found.items() if not files)
    if empty:
        say(
            f"{shown(folder)} has folders without images, no classes: {enumerated(empty)}."
        )
    if others:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in others.most_common(5))
        say(
            f"below {shown(folder)}, what is no image is left out: "
            f"{count(others.total(), 'file')} ({kinds})."
        )
    loose = [name for name in loose if is_image(name)]
    if loose:
        say(
            f"in {shown(folder)}, what lies in no class folder is left out: "
            f"{count(len(loose), 'image')} "
            f"({enumerated([shown(name) for name in sorted(loose)])})."
        )
    return {name: files for name, files in found.items() if files}


def images_below(
    folder: bytes,
    name: bytes,
    root: bytes,
    others: collections.Counter[str] | None = None,
) -> Iterator[bytes]:
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
    top = os.path.join(folder, name)
    waiting: list[tuple[bytes, tuple[bytes, ...]]] = [
        (name, (_real_path(top, real_root, ()),))
    ]
    while waiting:
        below, way = waiting.pop()
        with _listing(os.path.join(folder, below)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = os.path.join(below, entry.name)
                real = os.path.join(way[-1], entry.name)
                if entry.is_symlink():
                    real = _real_path(entry.path, real_root, way)
                if entry.is_dir():
                    waiting.append((path, (*way, real)))
                elif is_image(entry.name):
                    # Reading from a pipe or a device could wait, or go on, for ever.
                    if not entry.is_file() and os.path.exists(entry.path):
                        raise UserError(
                            f"{shown(entry.path)} is no plain file, but a pipe, socket or "
                            "device: remove it."
                        )
                    yield path
                elif others is not None:
                    others[
                        shown(os.path.splitext(entry.name)[1]) or "without ending"
                    ] += 1


def _real_path(path: bytes, real_root: bytes, way: Sequence[bytes]) -> bytes:
    """Returns where a path leads, after checking that it stays in the tree.

    Args:
      path: that of a link, perhaps.
      real_root: the real path of the tree.
      way: the real paths of the folders that led here, where it must not lead back to.
    """
    real = os.path.realpath(path)
    if not real.startswith(os.path.join(real_root, b"")):
        raise UserError(
            f"a link leads out of {shown(real_root)}: {shown(path)} lies at {shown(real)}. Put "
            "the files themselves there."
        )
    if real in way:
        raise UserError(f"{shown(path)} is a link that leads in a circle: remove it.")
    return real


@contextlib.contextmanager
def _listing(folder: bytes) -> Iterator[Iterator[os.DirEntry[bytes]]]:
    """Lists a folder; one that cannot be read is said in a sentence."""
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise UserError(
            f"cannot read the folder {shown(folder)} ({error.strerror})."
        ) from error


def _check_known(
    found: Iterable[bytes], known: Sequence[bytes], folder: bytes, training: bytes
) -> None:
    """Raises UserError if a class of the test images is not one of training."""
    unknown = sorted(shown(name) for name in set(found) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], [shown(name) for name in known])
        raise UserError(
            f"{shown(folder)} has classes that {shown(training)} does not have: "
            f"{enumerated(unknown)}.{hint}"
        )


def labelled(
    name: str,
    folder: bytes,
    found: Mapping[bytes, Sequence[bytes]],
    class_dirs: Sequence[bytes],
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
    names = [shown(d) for d in class_dirs] if class_names is None else class_names
    say_missing_classes(names, labels, name)
    return FileImages(name, folder, itertools.chain(*files), labels, names)


def last_parts(path: bytes, count: int) -> str:
    """Returns the last `count` folders of a path, "pets/train"."""
    return "/".join(shown(path).split("/")[-count:])
