"""The small classics, from the archives that their authors publish.

    Cifar10(path="cifar-10-binary.tar.gz").source("train").images  # uint8 [50000, 32, 32, 3]

    cifar-10-binary.tar.gz   files of records: a byte with the class, 3,072 with the pixels
    train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz   MNIST: arrays behind a header

Archives are read in memory: nothing is unpacked onto the disk, so that no name in an archive
can lead anywhere. The checksums are those that tensorflow_datasets 4.9.10 has of the same
addresses.
"""

import contextlib
import dataclasses
import gzip
import itertools
import math
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, ClassVar, Literal

import numpy as np

from jaxcls.data.dataset import Dataset
from jaxcls.data.formats.paths import expanded
from jaxcls.data.notes import explaining
from jaxcls.data.sources import ArraySource, Split
from jaxcls.download import fetch
from jaxcls.errors import UserError

CIFAR = "https://www.cs.toronto.edu/~kriz"
MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

NAMES_SIZE = 10_000
"""Bytes that the list of class names has at most."""
IDX_BYTES = 0x08
"""The code of unsigned bytes in the third byte of an idx file."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file of a dataset as it was published; jaxcls.download fetches it.

    Attributes:
      dataset: its folder in the cache, "cifar10": two datasets may have files of one name.
      url: where it is.
      sha256: of the whole file, in hexadecimal.
    """

    dataset: str
    url: str
    sha256: str
    # What else to do where the file cannot be downloaded.
    instead: ClassVar[str] = "give its path as data.path"

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]

    @property
    def place(self) -> str:
        """The file's path in the cache folder."""
        return f"datasets/{self.dataset}/{self.name}"


@dataclasses.dataclass(kw_only=True)
class _Cifar(Dataset):
    """What both CIFARs share: files of records, each some label bytes and 3,072 of pixels.

    https://www.cs.toronto.edu/~kriz/cifar.html describes this "binary version". The two splits
    are the official ones.

    Attributes:
      path: the archive (.tar.gz), a folder that holds it, or the folder of its unpacked files;
        "" downloads it into the cache.
    """

    archive: ClassVar[Archive]
    folder: ClassVar[str]  # in the archive
    files: ClassVar[dict[Split, tuple[str, ...]]]
    records: ClassVar[dict[Split, int]]  # in each file
    class_lists: ClassVar[dict[str, str]]  # the file with the names for each label byte

    path: str = ""

    def source(self, split: Split) -> ArraySource:
        """Reads one of the splits into memory.

        Raises:
          UserError: if the archive is not there, or not what it should be.
        """
        label = getattr(self, "labels", "only")  # the option of CIFAR-100
        names_file = self.class_lists[label]
        label_bytes = [(name, "u1") for name in self.class_lists]
        record = np.dtype([*label_bytes, ("planes", "u1", (3, 32, 32))])
        size = record.itemsize * self.records[split]
        sizes = dict.fromkeys(self.files[split], size) | {names_file: NAMES_SIZE}
        unpacked = map("".join, itertools.product(("", f"{self.folder}/"), sizes))
        places = [*unpacked, self.archive.name]
        lacks = f"neither {self.archive.name} nor the folder {self.folder} of it"
        path = _located(self.path, self.archive, places, lacks)
        path = path.parent if path.name in sizes else path
        contents = read_files(path, sizes)
        class_names = contents.pop(names_file).decode("ascii", "replace").split()
        for name, content in contents.items():
            if len(content) != size:
                raise _damaged(path, f"{name} has {len(content):,} bytes, not {size:,}")
        records = np.frombuffer(b"".join(contents.values()), record)
        images = np.ascontiguousarray(records["planes"].transpose(0, 2, 3, 1))
        name = f"{type(self).__name__.lower()}-{split}"
        with _reading(path):
            return ArraySource(name, images, records[label], tuple(class_names))


@dataclasses.dataclass(kw_only=True)
class Cifar10(_Cifar):
    """CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes, 10,000 for testing.

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    archive = Archive(
        "cifar10",
        f"{CIFAR}/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )
    folder = "cifar-10-batches-bin"
    files: ClassVar[dict[Split, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }
    records: ClassVar[dict[Split, int]] = {"train": 10_000, "test": 10_000}
    class_lists: ClassVar[dict[str, str]] = {"only": "batches.meta.txt"}


@dataclasses.dataclass(kw_only=True)
class Cifar100(_Cifar):
    """CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes, 10,000 for testing.

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".

    Attributes:
      labels: "fine", the 100 classes, or "coarse", the 20 groups that they are in.
    """

    archive = Archive(
        "cifar100",
        f"{CIFAR}/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    )
    folder = "cifar-100-binary"
    files: ClassVar[dict[Split, tuple[str, ...]]] = {
        "train": ("train.bin",),
        "test": ("test.bin",),
    }
    records: ClassVar[dict[Split, int]] = {"train": 50_000, "test": 10_000}
    class_lists: ClassVar[dict[str, str]] = {
        "coarse": "coarse_label_names.txt",
        "fine": "fine_label_names.txt",
    }

    labels: Literal["fine", "coarse"] = "fine"


@dataclasses.dataclass(kw_only=True)
class Mnist(Dataset):
    """MNIST: 70,000 handwritten digits of 28 x 28 grey pixels, 10,000 of them for testing.

    LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/, which describes the idx files.

    Attributes:
      path: a folder with the four files, as they were published (train-images-idx3-ubyte.gz,
        ...) or unpacked; or one of those files, with the others beside it; "" downloads them
        into the cache.
    """

    url: ClassVar[str] = MNIST
    torchvision: ClassVar[str] = "MNIST/raw"  # where that library keeps them
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }

    path: str = ""

    def source(self, split: Split) -> ArraySource:
        """Reads one of the two official splits into memory.

        Raises:
          UserError: if a file is not there, or not what it should be.
        """
        prefix = "train" if split == "train" else "t10k"
        images = read_idx(self._found(f"{prefix}-images-idx3-ubyte"), 3)
        labels_path = self._found(f"{prefix}-labels-idx1-ubyte")
        labels = read_idx(labels_path, 1)
        name = f"{type(self).__name__.lower()}-{split}"
        with _reading(labels_path):
            return ArraySource(name, images[..., None], labels, self.class_names)

    def _found(self, name: str) -> Path:
        """Returns the path of one of the four files."""
        dataset = type(self).__name__.lower()
        archive = Archive(dataset, f"{self.url}/{name}.gz", self.sha256[name])
        given = expanded(self.path) if self.path else ""
        given = os.path.dirname(given) if os.path.isfile(given) else given
        # Some mirrors write "train-images.idx3-ubyte".
        places = itertools.product(
            ("", "raw/", f"{self.torchvision}/"),
            (name, name.replace("-idx", ".idx")),
            (".gz", ""),
        )
        return _located(given, archive, map("".join, places), f"no {name}.gz")


@dataclasses.dataclass(kw_only=True)
class FashionMnist(Mnist):
    """Fashion-MNIST: 70,000 pictures of clothes of 28 x 28 grey pixels, 10,000 for testing.

    Xiao, Rasul and Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist.
    """

    url = FASHION_MNIST
    torchvision = "FashionMNIST/raw"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }


def read_files(path: Path, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Reads files from a tar archive, or from the folder that it was unpacked into.

    Args:
      path: of the archive or the folder.
      limits: bytes that each file may have, by its name without folders. More are not read,
        whatever an archive promises.

    Returns:
      The content by name, in the order of `limits`.

    Raises:
      UserError: if one is missing, too large, no plain file, or cannot be read.
    """
    found: dict[str, bytes] = {}

    def keep(name: str, size: int, file: IO[bytes]) -> None:
        if size > limits[name]:
            raise _damaged(path, f"{name} has {size:,} bytes, not {limits[name]:,}")
        found[name] = file.read(limits[name])

    with _reading(path):
        if path.is_dir():
            for name in limits:
                if (path / name).is_file():
                    with open(path / name, "rb") as file:
                        keep(name, os.stat(file.fileno()).st_size, file)
        else:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    name = os.path.basename(member.name)
                    if name not in limits or name in found:
                        continue
                    # The content of a link would be that of what it leads to.
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None:
                        raise _damaged(path, f"{name} in it is no plain file")
                    keep(name, member.size, content)
                    if len(found) == len(limits):
                        break
    for name in limits:
        if name not in found:
            raise _damaged(path, f"it has no {name}")
    return {name: found[name] for name in limits}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an idx file of bytes, which may be compressed with gzip.

    Two zeros, the type of the numbers, how many dimensions, then each size as four bytes, the
    highest first, then the numbers.

    Returns:
      uint8 of so many dimensions.

    Raises:
      UserError: if it is something else, shorter or longer.
    """
    with _reading(path):
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            magic = bytes([0, 0, IDX_BYTES, dimensions])
            if len(header) < 4 + 4 * dimensions or header[:4] != magic:
                raise _damaged(
                    path,
                    f"it begins with {header[:4].hex() or 'nothing'}, not with {magic.hex()} as "
                    f"an idx file of bytes in {dimensions} dimensions",
                )
            shape = np.frombuffer(header, ">u4", offset=4).tolist()
            size = math.prod(shape)
            if size > 2**31:
                raise _damaged(path, f"it announces {size:,} bytes")
            content = file.read(size + 1)
    if len(content) != size:
        there = f"{len(content):,}" if len(content) < size else "more"
        raise _damaged(path, f"it announces {size:,} bytes and has {there}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _located(given: str, archive: Archive, places: Iterable[str], lacks: str) -> Path:
    """Returns the path of a published file.

    Args:
      given: data.path: the file, a folder, or "" to take it from the cache.
      archive: the file.
      places: paths in the folder where the file, or what was in it, may lie.
      lacks: what a folder has if none of these is there, "no train-images-idx3-ubyte.gz".
    """
    if not given:
        return fetch(archive)
    path = Path(expanded(given))
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(
            f"there is no {path}: put {archive.name} from {archive.url} there, or leave data.path "
            "empty and it is downloaded."
        )
    for place in places:
        if (path / place).is_file():
            return path / place
    raise UserError(
        f"{path} has {lacks}. It can be had from {archive.url}; without data.path it is "
        "downloaded."
    )


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turns what a damaged file raises into one sentence."""
    what = f"{path} is damaged or not what was published"
    kinds = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)
    return explaining(what, kinds, ": get it again")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged or not what was published ({reason}): get it again."
    )
