"""Tar files of images (WebDataset's shards), each image read by itself where it lies.

    0001.jpg  0001.cls  0002.jpg  0002.cls      the class in a file with the image's name
    cat/1.jpg  cat/2.jpg  dog/3.jpg             or as the folder

    WebTar(path="shards-{000..009}.tar", test_path="val.tar")

WebDataset reads shards from front to end and shuffles in a buffer. Here the headers of a tar file
are read once, and where the images lie is kept in an index beside it, so that any image can be
read at any time and the order of training is exact.
"""

import concurrent.futures
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import re
import sys
import tarfile
import threading
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxcls.data.encoded_images import Encoded, Images
from jaxcls.data.file_lists import (
    HELD_OUT,
    ClassIndex,
    Names,
    check_test_share,
    class_list,
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
)
from jaxcls.data.sources import Split
from jaxcls.download import cache_folder
from jaxcls.errors import UserError, did_you_mean

INDEX_ENDING = ".jaxcls.npz"
INDEX_VERSION = 1
INDEX_THREADS = 8
MAX_OPEN_FILES = 256
"""Tar files that a process keeps open; with more of them, each is opened for each image."""
MAX_LABEL_SIZE = 2**20
"""Bytes of a file with a class."""
BLOCK = 512
"""A tar file consists of blocks of so many bytes: headers, content and at its end, zeros."""


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """Where the images of a tar file lie. A row is an image, in the order of the file.

    Attributes:
      offsets: of the image's bytes in the file, int64 [n].
      sizes: how many they are, int64 [n].
      members: the images' names in the tar file, [n].
      classes: what their .cls or .json files or their folders say is their class, [n].
    """

    offsets: np.ndarray
    sizes: np.ndarray
    members: Sequence[bytes]
    classes: Sequence[bytes]


class TarImages(Encoded):
    """Images in tar files, as an Encoded."""

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        shards: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        members: Iterable[bytes],
        labels: np.ndarray,
        class_names: Sequence[str],
    ):
        """Wraps what indexes have said.

        Args:
          name: of the data, for `repr()`.
          paths: of the tar files.
          shards: which of them an image lies in, int [n].
          offsets: of its bytes there, int64 [n].
          sizes: how many they are, int64 [n].
          members: its name there, [n].
          labels: int [n].
          class_names: the name of each class.
        """
        self._paths = tuple(paths)
        self._shards = shards.astype(np.int32)
        self._offsets = offsets
        self._sizes = sizes
        self._members = Names(members)
        self.labels = labels.astype(np.int32)
        self.class_names = tuple(class_names)
        names = (self._members[i] for i in range(len(self._members)))
        digest = fingerprint(names, self.labels, map(os.fsencode, self.class_names))
        self._repr = f"{name}({len(self):,} images in {len(self.class_names):,} classes, {digest})"
        self._open_files()

    def _open_files(self) -> None:
        """Has no file open: each is opened when it is first read."""
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in vars(self).items() if k not in ("_files", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open_files()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, index: int) -> bytes:
        shard = int(self._shards[index])
        size, offset = int(self._sizes[index]), int(self._offsets[index])
        if len(self._paths) > MAX_OPEN_FILES:
            descriptor = os.open(self._paths[shard], os.O_RDONLY)
            try:
                content = _pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        else:
            content = _pread(self._descriptor(shard), size, offset)
        if len(content) < size:
            raise OSError("the tar file has become shorter than it was")
        return content

    def _descriptor(self, shard: int) -> int:
        # pread has no position, so that threads and forked processes may share a file.
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
            return self._files[shard]

    def where(self, index: int) -> str:
        return (
            f"{shown(self._paths[self._shards[index]])}:{shown(self._members[index])}"
        )

    def __repr__(self) -> str:
        return self._repr


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """Reads `size` bytes, or up to the end of the file."""
    pieces = []
    while size and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        size -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclasses.dataclass(kw_only=True)
class WebTar(Images):
    """Tar files with images and their classes: WebDataset's shards, or a folder in a tar file.

    The files of a record have one name up to the first dot: "a/0001.jpg", "a/0001.cls". Its class
    is the text of the file .cls, or the field `label_key` of the file .json; where there is
    neither, it is the name of the folder that the image lies in. Compressed tar files are refused:
    they cannot be read but from the front.

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
    test_share: float = 0.2
    label_key: str = "label"
    class_names: tuple[str, ...] = ()

    def validate(self) -> None:
        super().validate()
        require("path", self.path, "the tar files, such as shards-{000..009}.tar,")
        check_test_share(self.test_share)
        if len(set(self.class_names)) < len(self.class_names):
            raise UserError(
                f"data.class_names must be different, not {self.class_names}."
            )

    def encoded(self, split: Split) -> TarImages:
        """Indexes the tar files, where they are not yet, and picks the images of one split.

        Raises:
          UserError: if one cannot be read, or a class is unknown.
        """
        self.validate()
        paths = tar_files(self.path)
        indexes = index_all(paths, self.label_key)
        members = list(itertools.chain(*(index.members for index in indexes)))
        by_folder = (
            None if self.test_path else rows_of_split_folders(members, self.path)
        )
        class_names = self.class_names or self._class_names(indexes, by_folder)
        pattern = self.path
        if split == "test" and self.test_path:
            pattern = self.test_path
            paths = tar_files(pattern)
            indexes = index_all(paths, self.label_key)
            members = list(itertools.chain(*(index.members for index in indexes)))
        if self.test_path:
            rows = np.arange(len(members))
        elif by_folder is not None:
            rows = by_folder[split]
        else:
            held_out = [in_test_share(member, self.test_share) for member in members]
            rows = np.flatnonzero(np.array(held_out, bool) == (split == "test"))
        name = f"{shown(os.path.basename(pattern))}[{split}]"
        if not len(rows):
            raise UserError(f"{shown(pattern)} has no image to {split} on.")
        labels = self._labels(paths, indexes, rows, class_names)
        say_missing_classes(class_names, labels, name)
        counts = [len(index.members) for index in indexes]
        return TarImages(
            name,
            paths,
            np.repeat(np.arange(len(paths)), counts)[rows],
            np.concatenate([index.offsets for index in indexes])[rows],
            np.concatenate([index.sizes for index in indexes])[rows],
            [members[row] for row in rows],
            labels,
            class_names,
        )

    def _class_names(
        self, indexes: Sequence[TarIndex], by_folder: dict[Split, np.ndarray] | None
    ) -> tuple[str, ...]:
        """Returns the classes of all images or, where folders tell the splits, of training."""
        written = list(itertools.chain(*(index.classes for index in indexes)))
        if by_folder is not None:
            written = [written[row] for row in by_folder["train"]]
        names = class_list(
            name.decode("utf-8", "backslashreplace") for name in set(written)
        )
        numbers = [name for name in names if re.fullmatch("-?[0-9]+", name)]
        if 0 < len(numbers) < len(names):
            others = [name for name in names if name not in set(numbers)]
            say(
                f"some classes of {shown(self.path)} are numbers ({enumerated(numbers)}) and "
                f"others are not ({enumerated(others)}): each is a class by itself."
            )
        return names

    def _labels(
        self,
        paths: Sequence[str],
        indexes: Sequence[TarIndex],
        rows: np.ndarray,
        class_names: Sequence[str],
    ) -> np.ndarray:
        """Returns the class of some images, int32 [m]; `rows`, int [m] and ascending, counts
        those of all tar files."""
        index_of = ClassIndex(class_names, numbers=bool(self.class_names))
        chosen = np.zeros(sum(len(index.members) for index in indexes), bool)
        chosen[rows] = True
        images = (
            (f"{shown(path)}:{shown(member)}", written)
            for path, index in zip(paths, indexes, strict=True)
            for member, written in zip(index.members, index.classes, strict=True)
        )
        labels = [
            index_of(written.decode("utf-8", "backslashreplace"), where)
            for where, written in itertools.compress(images, chosen)
        ]
        return np.array(labels, np.int32)


def rows_of_split_folders(
    members: Sequence[bytes], pattern: str
) -> dict[Split, np.ndarray] | None:
    """Tells the splits apart by the folders at the top, as ImageFolder does.

    Args:
      members: names of images, [n]. A folder that all of them lie in does not count.
      pattern: the tar files, for what is said.

    Returns:
      The rows of each split, int [m]; None if there is not a folder "train" and one of what is
      evaluated.
    """
    # What the first and the last name share, all names between them share.
    ends = min(members), max(members)
    top = os.path.commonpath([os.path.dirname(name) for name in ends])
    start = len(os.path.join(top, b""))
    # Without a folder, b"" and not the file's name.
    folders = [name[start:].rpartition(b"/")[0].partition(b"/")[0] for name in members]
    by_name = {folder.lower(): folder for folder in set(folders)}
    held_out = [by_name[h] for h in map(str.encode, HELD_OUT) if h in by_name]
    if b"train" not in by_name or not held_out:
        return None
    train, test = by_name[b"train"], held_out[0]
    others = sorted(
        shown(folder) or "no folder" for folder in {*folders} - {train, test}
    )
    say(
        f"{shown(pattern)} is trained and evaluated on as its folders {shown(train)} and "
        f"{shown(test)} say{f'; left out is what lies in {enumerated(others)}' if others else ''}."
    )
    of_image = np.array(folders)
    return {
        "train": np.flatnonzero(of_image == train),
        "test": np.flatnonzero(of_image == test),
    }


def tar_files(pattern: str) -> list[str]:
    """Returns the files that a pattern stands for, in order.

    Raises:
      UserError: if one that it names is not there, or none is.
    """
    found: list[str] = []
    for name in expand_braces(expanded(pattern)):
        if glob.has_magic(name) and not os.path.exists(name):
            files = sorted(glob.glob(name))
            if not files:
                raise UserError(f"no file is named like {shown(name)}.")
            found += files
        elif os.path.isfile(name):
            found.append(name)
        else:
            folder, base = os.path.split(name)
            beside = os.listdir(folder) if os.path.isdir(folder) else []
            raise UserError(
                f"there is no file {shown(name)}.{similar_file(base, beside)}"
            )
    repeated = [
        path for path, again in itertools.groupby(sorted(found)) if len([*again]) > 1
    ]
    if repeated:
        raise UserError(f"{shown(pattern)} names {shown(repeated[0])} twice.")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Returns what a shell makes of "a{00..02}" and "a{x,y}", for any number of braces."""
    match = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + 1_000_000:
            raise UserError(
                f"{{{match[1]}}} in {shown(pattern)} must count upwards, to a million at most."
            )
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        middle = [f"{i:0{width}d}" for i in range(first, last + 1)]
    elif ".." in match[1] and "," not in match[1]:
        return [pattern]
    else:
        middle = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for part in middle for name in expand_braces(before + part + after)]


def index_all(paths: Sequence[str], label_key: str) -> list[TarIndex]:
    """Returns the indexes of tar files; makes and keeps those that are not there.

    Raises:
      UserError: if one of the files cannot be read, or has no images.
    """
    versions = [_version(path, label_key) for path in paths]
    kept = [
        _first_index(path, version)
        for path, version in zip(paths, versions, strict=True)
    ]
    new = [row for row, index in enumerate(kept) if index is None]
    # Threads: a network file system answers many at a time.
    with concurrent.futures.ThreadPoolExecutor(INDEX_THREADS) as pool:
        made = pool.map(
            lambda row: make_index(paths[row], label_key, versions[row]), new
        )
        bar = tqdm(
            made,
            desc="indexing tar files, once",
            total=len(new),
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        for row, index in zip(new, bar, strict=True):
            kept[row] = index
    indexes = [index for index in kept if index is not None]
    for path, index in zip(paths, indexes, strict=True):
        if not len(index.members):
            raise UserError(f"{shown(path)} has no images.")
    return indexes


def _version(path: str, label_key: str) -> str:
    """Returns what an index depends on."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)} ({error.strerror}).") from error
    return json.dumps([INDEX_VERSION, status.st_size, status.st_mtime_ns, label_key])


def index_places(path: str) -> Iterator[Path]:
    """Yields where the index of a tar file may lie: beside it, or in the cache."""
    yield Path(path + INDEX_ENDING)
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    yield cache_folder() / "webtar" / f"{name}{INDEX_ENDING}"


def _first_index(path: str, version: str) -> TarIndex | None:
    """Returns the index that is kept of a tar file, if it is of this version."""
    kept = (load_index(place, version) for place in index_places(path))
    return next((index for index in kept if index is not None), None)


def make_index(path: str, label_key: str, version: str) -> TarIndex:
    """Makes the index of a tar file and keeps it, wherever that is possible.

    Raises:
      UserError: if the tar file cannot be read.
    """
    index = scan_tar(path, label_key)
    for place in index_places(path):
        try:
            save_index(place, version, index)
            return index
        except OSError:
            continue
    say(f"the index of {shown(path)} could not be kept anywhere: it is made each time.")
    return index


def load_index(place: Path, version: str) -> TarIndex | None:
    """Returns a kept index; None if there is none, it is out of date or damaged."""
    try:
        with open(place, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["version"]) != version:
                return None
            return TarIndex(
                arrays["offsets"],
                arrays["sizes"],
                _split(arrays["members"]),
                _split(arrays["classes"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_index(place: Path, version: str, index: TarIndex) -> None:
    """Writes an index, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            np.savez_compressed(
                file,
                version=np.array(version),
                offsets=index.offsets,
                sizes=index.sizes,
                members=_joined(index.members),
                classes=_joined(index.classes),
            )
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _joined(names: Sequence[bytes]) -> np.ndarray:
    """Puts names, which have no zero byte, into one uint8 array."""
    return np.frombuffer(b"".join(name + b"\0" for name in names), np.uint8)


def _split(joined: np.ndarray) -> list[bytes]:
    return joined.tobytes().split(b"\0")[:-1]


def scan_tar(path: str, label_key: str) -> TarIndex:
    """Reads the headers of a tar file and the files with classes.

    Raises:
      UserError: if it is compressed, damaged or cut off, or has links or names that lead out.
    """
    images: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                _check_member(member, path)
                name = os.path.normpath(member.name)
                if any(is_hidden(os.fsencode(part)) for part in name.split("/")):
                    continue
                folder, base = os.path.split(name)
                stem, _, ending = base.partition(".")
                key = os.path.join(folder, stem)
                if is_image(os.fsencode(base)):
                    if key in images:
                        raise UserError(
                            f"{shown(path)} has two images of one record: "
                            f"{shown(images[key].name)} and {shown(member.name)} are the same up "
                            "to the first dot."
                        )
                    images[key] = member
                elif ending in ("cls", "json"):
                    texts.setdefault(key, {})[ending] = _content(tar, member, path)
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    keys = list(images)
    return TarIndex(
        np.array([images[key].offset_data for key in keys], np.int64),
        np.array([images[key].size for key in keys], np.int64),
        [os.fsencode(os.path.normpath(images[key].name)) for key in keys],
        [_class_of(key, texts.get(key, {}), label_key, path) for key in keys],
    )


def _check_member(member: tarfile.TarInfo, path: str) -> None:
    """Raises UserError for what is no plain file, or is named so as to lie elsewhere."""
    what = f"{shown(path)} holds {shown(member.name)}"
    if not member.isreg() or member.issparse():
        raise UserError(
            f"{what}, which is a link or no plain file: pack the files themselves."
        )
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f"{what}, a name that leads out of the archive: pack it with names below a folder."
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> bytes:
    """Returns the content of a file with a class."""
    if member.size > MAX_LABEL_SIZE:
        raise UserError(
            f"{shown(path)}:{shown(member.name)} has {member.size:,} bytes, too many for a class."
        )
    file = tar.extractfile(member)
    assert file is not None  # a plain file
    return file.read()


def _check_end(path: str, end: int) -> None:
    """Raises UserError unless a block of zeros follows the last member, as in every tar file
    that is complete; tarfile takes any other end for a good one."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        raise UserError(
            f"{shown(path)} is cut off or damaged at byte {end:,}: copy or pack it again."
        )


def _unreadable(path: str, error: Exception) -> UserError:
    with open(path, "rb") as file:
        start = file.read(6)
    compressed = {
        b"\x1f\x8b": "gzip",
        b"BZ": "bzip2",
        b"\xfd7zXZ": "xz",
        b"(\xb5/\xfd": "zstd",
    }
    for magic, name in compressed.items():
        if start.startswith(magic):
            return UserError(
                f"{shown(path)} is compressed with {name}, so that single images cannot be read: "
                "decompress it (images gain nothing from it)."
            )
    return UserError(
        f"{shown(path)} is no tar file, or cut off or damaged ({error}): copy or pack it again."
    )


def _class_of(key: str, texts: dict[str, bytes], label_key: str, path: str) -> bytes:
    """Returns the class of a record as it is written.

    Args:
      key: the record's name.
      texts: the content of its .cls and .json files.
      label_key: the field of the latter.
      path: of the tar file, for messages.
    """
    where = f"{shown(path)}:{shown(key)}"
    written: object
    if "cls" in texts:
        written = os.fsdecode(texts["cls"].strip())
    elif "json" in texts:
        try:
            fields = json.loads(texts["json"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}.json is not JSON: {error}.") from None
        if not isinstance(fields, dict) or label_key not in fields:
            known = list(fields) if isinstance(fields, dict) else []
            raise UserError(
                f"{where}.json has no '{label_key}'.{did_you_mean(label_key, known)} Set "
                "data.label_key to the field that holds the class."
            )
        written = fields[label_key]
    else:
        written = os.path.basename(os.path.dirname(key))
        if not written:
            raise UserError(
                f"{where} has no class: expected {shown(key)}.cls or .json, or a folder of the "
                "class's name."
            )
    if type(written) not in (str, int) or written == "" or "\0" in str(written):
        raise UserError(
            f"{where} has the class {written!r:.60}, neither text nor a whole number."
        )
    return os.fsencode(str(written))
