"""Tar files of images (WebDataset's shards), each image read by itself where it lies.

    0001.jpg  0001.cls  0002.jpg  0002.cls      the class in a file with the image's name
    cat/1.jpg  cat/2.jpg  dog/3.jpg             or as the folder

    WebTar(path="shards-{000..009}.tar", test_path="val.tar")

WebDataset reads shards from front to end and shuffles in a buffer. This format reads the headers
of a tar file once, and keeps in an index beside it where the images lie. So any image can be read
at any time, and the order of training is exact.
"""

import collections
import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import tarfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tqdm.contrib.concurrent import thread_map

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.classes import check_different, class_indices, class_list
from jaxcls.data.formats.fields import field_of, json_fields
from jaxcls.data.formats.image_list import ImageList, Labels, Names
from jaxcls.data.formats.paths import expanded, is_hidden, is_image, similar_file
from jaxcls.data.formats.shards import replacing
from jaxcls.data.formats.splits import HeldOutShare, split_names, split_rows
from jaxcls.data.notes import enumerated, explaining, note, require
from jaxcls.data.sources import Split
from jaxcls.download import cache_folder
from jaxcls.errors import UserError, printable

INDEX_ENDING = ".jaxcls.npz"
INDEX_VERSION = 1
INDEX_THREADS = 8
"""Tar files that are indexed at once: a network file system answers many at a time."""
MAX_OPEN_FILES = 256
"""The most tar files that a process keeps open: those that it has read last."""
MAX_LABEL_SIZE = 2**20
"""The most bytes that a file that holds a class may have."""
BLOCK = 512
"""The bytes of a block of a tar file: blocks are headers, content and, at the end, zeros."""
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZ": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
}
"""How a compressed file begins."""


Index: TypeAlias = dict[str, Any]
"""What is kept of a tar file; a row is an image, in the order of the file.

    offsets   of the image's bytes in the file, int64 [n]
    sizes     how many they are, int64 [n]
    members   the images' names in the tar file, uint8, each with a zero behind it
    classes   what their .cls or .json files or their folders say is their class, likewise
"""


class TarFiles:
    """Tar files with the rows of all their indexes, one after another.

    Attributes:
      paths: of the tar files.
      tars: which of them an image lies in, int32 [n].
      offsets: of the image's bytes there, int64 [n].
      sizes: how many they are, int64 [n].
      members: the images' names there, [n].
      classes: their classes as they are written, printable, [n].
    """

    def __init__(self, pattern: str, label_key: str):
        """Reads the indexes of the tar files; makes and keeps those that are not there.

        Raises:
          UserError: if one of the files cannot be read, or has no images.
        """
        self.paths = tar_files(pattern)
        indexes = thread_map(
            functools.partial(tar_index, label_key=label_key),
            self.paths,
            max_workers=INDEX_THREADS,
            desc="indexing tar files, once",
            disable=None,  # shown on a terminal
            delay=1,  # seconds: nobody waits for those that are kept
            dynamic_ncols=True,
        )
        counts = [len(index["offsets"]) for index in indexes]
        self.tars = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        rows = {key: np.concatenate([i[key] for i in indexes]) for key in indexes[0]}
        self.offsets, self.sizes = rows["offsets"], rows["sizes"]
        self.members = _divided(rows["members"])
        self.classes = [*map(printable, _divided(rows["classes"]))]

    def where(self, row: int) -> str:
        """Returns the tar file and the name of an image."""
        return f"{self.paths[self.tars[row]]}:{self.members[row]}"


class TarImages(ImageList):
    """Images in tar files."""

    def __init__(self, labels: Labels, files: TarFiles, rows: np.ndarray):
        """Wraps the images in some rows (int [n]) of tar files."""
        self._paths = files.paths
        self._tars = files.tars[rows]
        self._offsets = files.offsets[rows]
        self._sizes = files.sizes[rows]
        self._members = Names(os.fsencode(files.members[row]) for row in rows)
        super().__init__(labels, self._members)

    @functools.cached_property
    def _opened(self) -> "functools._lru_cache_wrapper[_OpenFile]":
        """Gives the open file of a path. It is not pickled: each process has its own."""
        return functools.lru_cache(MAX_OPEN_FILES)(_OpenFile)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_opened"}

    def read(self, index: int) -> bytes:
        file = self._opened(self._paths[self._tars[index]])
        size = int(self._sizes[index])
        content = os.pread(file.descriptor, size, int(self._offsets[index]))
        if len(content) < size:
            raise OSError("the tar file has become shorter than it was")
        return content

    def where(self, index: int) -> str:
        path = self._paths[self._tars[index]]
        return printable(f"{path}:{os.fsdecode(self._members[index])}")


class _OpenFile:
    """A file that is closed when the last reference to it goes. Threads and forked processes may
    share it: it is read with pread, which has no position."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@dataclasses.dataclass(kw_only=True)
class WebTar(Images):
    """Tar files with images and their classes: WebDataset's shards, or a folder in a tar file.

    The files of a record have one name up to the first dot: "a/0001.jpg", "a/0001.cls". Its class
    is the text of the file .cls, or the field `label_key` of the file .json; where there is
    neither, it is the name of the folder that the image lies in. Compressed tar files are refused:
    they can only be read from the front.

    The first use of a tar file writes an index of it, "NAME.tar.jaxcls.npz", beside it or, where
    that cannot be written, into the cache. It is made anew when the size or time of the file
    changes.

    Attributes:
      path: the tar files: one, several as "shards-{000..009}.tar" or "{a,b}.tar", or with the
        wildcards * and ?.
      test_path: the tar files of the test images, likewise. With "", where the tar files hold a
        folder "train" and beside it "val", "validation" or "test", these are the splits as in an
        ImageFolder; otherwise a part of `path` is held out.
      test_share: that part, above 0 and below 1. An image is in it if the SHA-256 of its name in
        the tar file, read as a fraction, lies below.
      label_key: the field of .json files that holds the class.
      class_names: the classes in the order of the labels, which may then also be numbers from
        0; empty for those that occur, whole numbers by value, other names as text.
    """

    path: str = ""
    test_path: str = ""
    test_share: HeldOutShare = 0.2
    label_key: str = "label"
    class_names: tuple[str, ...] = ()

    def validate(self) -> None:
        require("path", self.path, "the tar files, such as shards-{000..009}.tar,")
        check_different(self.class_names)

    def encoded(self, split: Split) -> TarImages:
        """Indexes the tar files that have no index yet, and picks the images of one split.

        Raises:
          UserError: if one cannot be read, or a class is unknown.
        """
        options.check(self, "data")
        pattern, files = self.path, TarFiles(self.path, self.label_key)
        training: Sequence[int] | np.ndarray = range(len(files.members))
        if self.test_path:
            rows = np.arange(len(files.members))
        elif folders := rows_of_split_folders(files.members, pattern):
            # Classes that only other folders have do not count.
            training, rows = folders["train"], folders[split]
        else:
            rows = np.array(split_rows(files.members, self.test_share, split), int)
        trained = {files.classes[row] for row in training}
        class_names = self.class_names or class_list(trained, pattern)
        if split == "test" and self.test_path:
            pattern, files = self.test_path, TarFiles(self.test_path, self.label_key)
            rows = np.arange(len(files.members))
        name = f"{printable(os.path.basename(pattern))}[{split}]"
        if not len(rows):
            raise UserError(f"{pattern} has no image to {split} on.")
        written, numbers = (files.classes[row] for row in rows), bool(self.class_names)
        labels = class_indices(
            written, class_names, name, lambda i: files.where(rows[i]), numbers=numbers
        )
        return TarImages(Labels(name, labels, class_names), files, rows)


def rows_of_split_folders(
    members: Sequence[str], pattern: str
) -> dict[Split, np.ndarray] | None:
    """Divides images by the folders at the top, as ImageFolder does.

    Args:
      members: names of images, [n]. A folder that all of them lie in does not count.
      pattern: the tar files, for the note.

    Returns:
      The rows of each split, int [m]; None if there is not a folder "train" and one of what is
      evaluated.
    """
    # What the first and the last name share, all names between them share.
    ends = min(members), max(members)
    top = os.path.commonpath([os.path.dirname(name) for name in ends])
    start = len(os.path.join(top, ""))
    # Without a folder, "" and not the file's name.
    folders = [name[start:].rpartition("/")[0].partition("/")[0] for name in members]
    chosen = split_names(sorted(set(folders)), pattern)
    if chosen is None:
        return None
    others = sorted(f or "no folder" for f in {*folders} - {*chosen.values()})
    left_out = f"; left out is what lies in {enumerated(others)}" if others else ""
    note(
        f"{pattern} is trained and evaluated on as its folders "
        f"{' and '.join(chosen.values())} say{left_out}."
    )
    return {
        split: np.flatnonzero([folder == name for folder in folders])
        for split, name in chosen.items()
    }


def tar_files(pattern: str) -> list[str]:
    """Returns the files that a pattern stands for, in order.

    Raises:
      UserError: if one that it names is not there, or none is.
    """
    found: list[str] = []
    for name in expand_braces(expanded(pattern)):
        places = [name] if os.path.exists(name) else sorted(glob.glob(name))
        files = [*filter(os.path.isfile, places)]
        if not files and glob.has_magic(name):
            raise UserError(f"no file is named like {name}.")
        if not files:
            raise UserError(f"there is no file {name}.{similar_file(name)}")
        found += files
    for path, times in collections.Counter(found).items():
        if times > 1:
            raise UserError(f"{pattern} names {path} twice.")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Returns what a shell makes of "a{00..02}" and "a{x,y}", for any number of braces."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, listed = match.groups()
    if listed is None:
        if not int(first) <= int(last) < int(first) + 1_000_000:
            raise UserError(
                f"{match[0]} in {pattern} must count upwards, to a million at most."
            )
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1)
        listed = ",".join(f"{number:0{width}d}" for number in numbers)
    before, after = pattern[: match.start()], pattern[match.end() :]
    parts = listed.split(",")
    return [name for part in parts for name in expand_braces(before + part + after)]


def tar_index(path: str, label_key: str) -> Index:
    """Returns the index of a tar file, and keeps it wherever that is possible.

    Raises:
      UserError: if the tar file cannot be read, or has no images.
    """
    with explaining(f"cannot read {path}", (OSError,)):
        status = os.stat(path)
    # An index of another version is out of date.
    version = json.dumps([INDEX_VERSION, status.st_size, status.st_mtime_ns, label_key])
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + INDEX_ENDING
    places = [Path(path + INDEX_ENDING), cache_folder() / "webtar" / name]
    kept = (load_index(place, version) for place in places)
    index = next(filter(None, kept), None)
    if index is None:
        index = scan_tar(path, label_key)
        if not any(save_index(place, version, index) for place in places):
            note(
                f"the index of {path} could not be kept anywhere: it is made each time."
            )
    if not len(index["offsets"]):
        raise UserError(f"{path} has no images.")
    return index


def load_index(place: Path, version: str) -> Index | None:
    """Returns a kept index; None if there is none, it is out of date or damaged."""
    try:
        with open(place, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["version"]) != version:
                return None
            keys = ("offsets", "sizes", "members", "classes")
            return {key: arrays[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def save_index(place: Path, version: str, index: Index) -> bool:
    """Writes an index, whole or not at all; returns whether that was possible."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary, open(temporary, "xb") as file:
            np.savez_compressed(file, version=np.array(version), **index)
    except (OSError, UserError):
        return False
    return True


def scan_tar(path: str, label_key: str) -> Index:
    """Reads the headers of a tar file and the files with classes.

    Raises:
      UserError: if it is compressed, damaged or cut off, or has links or names that lead out.
    """
    images: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                _check_member(member, path)
                name = os.path.normpath(member.name)
                if any(map(is_hidden, name.split("/"))):
                    continue
                folder, base = os.path.split(name)
                stem, _, ending = base.partition(".")
                key = os.path.join(folder, stem)
                if is_image(base):
                    other = images.setdefault(key, member)
                    if other is not member:
                        raise UserError(
                            f"{path} has two images of one record: {other.name} and {member.name} "
                            "are the same up to the first dot."
                        )
                elif ending in ("cls", "json"):
                    if member.size > MAX_LABEL_SIZE:
                        raise UserError(
                            f"{path}:{member.name} has {member.size:,} bytes, too many for a class."
                        )
                    content = tar.extractfile(member)
                    texts[f"{key}.{ending}"] = content.read() if content else b""
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    found = images.values()
    classes = [_class_of(key, texts, label_key, path) for key in images]
    return {
        "offsets": np.array([image.offset_data for image in found], np.int64),
        "sizes": np.array([image.size for image in found], np.int64),
        "members": _joined(os.path.normpath(image.name) for image in found),
        "classes": _joined(classes),
    }


def _joined(names: Iterable[str]) -> np.ndarray:
    """Returns names as uint8 [n], each with a zero behind it."""
    return np.frombuffer(os.fsencode("".join(f"{name}\0" for name in names)), np.uint8)


def _divided(joined: np.ndarray) -> list[str]:
    """Returns the names that _joined has made one array of."""
    return os.fsdecode(joined.tobytes()).split("\0")[:-1]


def _check_member(member: tarfile.TarInfo, path: str) -> None:
    """Raises UserError for what is no plain file, or is named so as to lie elsewhere."""
    what = f"{path} holds {member.name}"
    if not member.isreg() or member.issparse():
        raise UserError(
            f"{what}, which is a link or no plain file: pack the files themselves."
        )
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f"{what}, a name that leads out of the archive: pack it with names below a folder."
        )


def _check_end(path: str, end: int) -> None:
    """Raises UserError unless a block of zeros follows the last member, as in every tar file
    that is complete; tarfile takes any other end for a good one."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        raise UserError(
            f"{path} is cut off or damaged at byte {end:,}: copy or pack it again."
        )


def _unreadable(path: str, error: Exception) -> UserError:
    """Explains why a file cannot be read as a tar file."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, name in COMPRESSIONS.items():
        if start.startswith(magic):
            return UserError(
                f"{path} is compressed with {name}, so that single images cannot be "
                "read: decompress it (images gain nothing from it)."
            )
    return UserError(
        f"{path} is no tar file, or cut off or damaged ({error}): copy or pack it again."
    )


def _class_of(key: str, texts: dict[str, bytes], label_key: str, path: str) -> str:
    """Returns the class of a record as it is written.

    Args:
      key: the record's name.
      texts: the content of all .cls and .json files, by their names.
      label_key: the field of the latter.
      path: of the tar file, for messages.
    """
    where = f"{path}:{key}"
    written: object = os.path.basename(os.path.dirname(key))
    if f"{key}.cls" in texts:
        written = os.fsdecode(texts[f"{key}.cls"].strip())
    elif f"{key}.json" in texts:
        fields = json_fields(texts[f"{key}.json"], f"{where}.json")
        written = field_of(fields, label_key, "label_key", f"{where}.json")
    elif not written:
        raise UserError(
            f"{where} has no class: expected {key}.cls or .json, or a folder of the class's name."
        )
    if type(written) not in (str, int) or written == "" or "\0" in str(written):
        raise UserError(
            f"{where} has the class {written!r:.60}, neither text nor a whole number."
        )
    return str(written)
