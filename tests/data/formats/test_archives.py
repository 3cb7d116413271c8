"""CIFAR and MNIST from archives of the published layout, made here, and from broken ones."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxcls.data.dataset import Dataset
from jaxcls.data.formats.archives import (
    Archive,
    Cifar10,
    Cifar100,
    FashionMnist,
    Mnist,
    read_idx,
)
from jaxcls.errors import UserError

RECORDS = 20
"""In each file, instead of 10,000 or 50,000."""
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for kind in (Cifar10, Cifar100):
        monkeypatch.setattr(kind, "records", {"train": RECORDS, "test": RECORDS})
    monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "cache"))


def cifar_records(
    seed: int, num_labels: tuple[int, ...]
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file of records, with its images [n, 32, 32, 3] and labels [n, label bytes]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (RECORDS, 32, 32, 3), dtype=np.uint8)
    labels = np.stack([rng.integers(0, n, RECORDS) for n in num_labels], axis=1)
    content = b"".join(
        bytes(label.tolist()) + b"".join(image[..., c].tobytes() for c in range(3))
        for image, label in zip(images, labels, strict=True)
    )
    return content, images, labels


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar10_files() -> dict[str, bytes]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {name: cifar_records(i, (10,))[0] for i, name in enumerate(names)}
    files["batches.meta.txt"] = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    return {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}


def error_of(dataset: Dataset, split: str = "test") -> str:
    with pytest.raises(UserError) as error:
        dataset.source(split)  # type: ignore[arg-type]
    return str(error.value)


@pytest.mark.parametrize(
    "where", ["archive", "its folder", "unpacked", "above unpacked"]
)
def test_cifar10(tmp_path: Path, where: str) -> None:
    path = tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_files())
    if where == "its folder":
        path = tmp_path
    elif "unpacked" in where:
        for name, content in cifar10_files().items():
            (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / name).write_bytes(content)
        path = (
            tmp_path / "x" if "above" in where else tmp_path / "x/cifar-10-batches-bin"
        )
    train, test = (Cifar10(path=str(path)).source(split) for split in ("train", "test"))
    assert repr(train) == "cifar10-train(100 images 32x32x3)"
    for i in range(5):
        _, images, labels = cifar_records(i, (10,))
        rows = slice(i * RECORDS, (i + 1) * RECORDS)
        np.testing.assert_array_equal(train.images[rows], images)
        np.testing.assert_array_equal(train.labels[rows], labels[:, 0])
    np.testing.assert_array_equal(test.images, cifar_records(5, (10,))[1])
    assert train.class_names == test.class_names == tuple(CIFAR10_NAMES)


@pytest.mark.parametrize(
    ("labels", "column", "count"), [("coarse", 0, 20), ("fine", 1, 100)]
)
def test_cifar100(tmp_path: Path, labels: str, column: int, count: int) -> None:
    files = {
        "train.bin": cifar_records(0, (20, 100))[0],
        "test.bin": cifar_records(1, (20, 100))[0],
        "fine_label_names.txt": "\n".join(f"fine{i}" for i in range(100)).encode(),
        "coarse_label_names.txt": "\n".join(f"coarse{i}" for i in range(20)).encode(),
    }
    path = tar(
        tmp_path / "x.tgz", {f"cifar-100-binary/{k}": v for k, v in files.items()}
    )
    for seed, split in enumerate(("train", "test")):
        source = Cifar100(path=str(path), labels=labels).source(split)  # type: ignore[arg-type]
        _, images, expected = cifar_records(seed, (20, 100))
        np.testing.assert_array_equal(source.images, images)
        np.testing.assert_array_equal(source.labels, expected[:, column])
        assert source.class_names == tuple(f"{labels}{i}" for i in range(count))


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">HBB", 0, 8, array.ndim) + sizes + array.tobytes()


def mnist_files(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{part}-{kind}": rng.integers(0, high, (n, *shape), dtype=np.uint8)
        for part, n in (("train", 30), ("t10k", 7))
        for kind, shape, high in (
            ("images-idx3-ubyte", (28, 28), 256),
            ("labels-idx1-ubyte", (), 10),
        )
    }


@pytest.mark.parametrize("kind", [Mnist, FashionMnist])
@pytest.mark.parametrize("layout", ["{}.gz", "{}", "{raw}/{}", "one file"])
def test_mnist(tmp_path: Path, kind: type[Mnist], layout: str) -> None:
    files = mnist_files()
    raw = "MNIST/raw" if kind is Mnist else "FashionMNIST/raw"
    spelling = "{}.gz" if layout == "one file" else layout
    for name, array in files.items():
        path = tmp_path / spelling.format(name, raw=raw)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = idx(array)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    where = tmp_path / "t10k-labels-idx1-ubyte.gz" if layout == "one file" else tmp_path
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = kind(path=str(where)).source(split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(
            source.images[..., 0], files[f"{prefix}-images-idx3-ubyte"]
        )
        np.testing.assert_array_equal(
            source.labels, files[f"{prefix}-labels-idx1-ubyte"]
        )
        assert (
            repr(source).startswith(f"{kind.__name__.lower()}-{split}(")
            and len(source.class_names) == 10
        )


def broken(change: str) -> dict[str, bytes]:
    files = cifar10_files()
    test = "cifar-10-batches-bin/test_batch.bin"
    if change == "short":
        files[test] = files[test][:-1]
    elif change == "long":
        files[test] += b"\0"
    elif change == "missing":
        del files[test]
    elif change == "no names":
        del files["cifar-10-batches-bin/batches.meta.txt"]
    elif change == "label":
        files[test] = b"\x0a" + files[test][1:]
    elif change == "few names":
        files["cifar-10-batches-bin/batches.meta.txt"] = b"one two"
    return files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("short", "test_batch.bin has 61,459 bytes, not 61,460"),
        ("long", "test_batch.bin has 61,461 bytes, not 61,460"),
        ("missing", "it has no test_batch.bin"),
        ("no names", "it has no batches.meta.txt"),
        ("label", "labels run from 0 to 10"),
        ("few names", "2 class names"),
    ],
)
def test_an_archive_that_is_not_what_was_published(
    tmp_path: Path, change: str, said: str
) -> None:
    path = tar(tmp_path / "x.tar.gz", broken(change))
    said_here = error_of(Cifar10(path=str(path)))
    assert said in said_here and str(path) in said_here


@pytest.mark.parametrize("part", range(10))
def test_a_cut_off_archive(tmp_path: Path, part: int) -> None:
    path = tar(tmp_path / "x.tar.gz", cifar10_files())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * part // 10])
    assert f"{path} is damaged" in error_of(Cifar10(path=str(path)))


def test_a_link_in_an_archive_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(cifar_records(9, (10,))[0])
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("../../test_batch.bin")
            info.type, info.linkname = kind, str(tmp_path / "secret")
            archive.addfile(info)
    assert "test_batch.bin in it is no plain file" in error_of(Cifar10(path=str(path)))
    assert sorted(os.listdir(tmp_path)) == ["secret", "x.tar.gz"]


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar.gz", {"a/test_batch.bin": bytes(50_000_000)})
    assert "test_batch.bin has 50,000,000 bytes" in error_of(Cifar10(path=str(path)))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)) + bytes(50_000_000))
    )
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    assert "announces 1,568 bytes and has more" in error_of(Mnist(path=str(tmp_path)))


IMAGES = np.zeros((2, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "begins with 000008"),
        (idx(IMAGES)[:-1], "announces 1,568 bytes and has 1,567"),
        (idx(IMAGES) + b"\0", "announces 1,568 bytes and has more"),
        (idx(IMAGES[0]), "begins with 00000802"),
        (b"\x89PNG" + bytes(100), "begins with 89504e47"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), "announces 9,9"),
    ],
)
def test_an_idx_file_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    for path, written in (
        (tmp_path / "x", content),
        (tmp_path / "x.gz", gzip.compress(content)),
    ):
        path.write_bytes(written)
        with pytest.raises(UserError) as error:
            read_idx(path, 3)
        assert said in str(error.value) and str(path) in str(error.value)


def test_more_labels_than_images(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    assert "2 images and labels of shape (3,)" in error_of(Mnist(path=str(tmp_path)))


def test_what_is_not_there_is_named_with_its_address(tmp_path: Path) -> None:
    said = error_of(Cifar10(path=str(tmp_path / "nowhere")))
    assert "there is no" in said and "kriz/cifar-10-binary.tar.gz" in said
    said = error_of(Cifar10(path=str(tmp_path)))
    assert "neither cifar-10-binary.tar.gz nor the folder cifar-10-batches-bin" in said
    assert "no t10k-images-idx3-ubyte.gz" in error_of(Mnist(path=str(tmp_path)))


@pytest.mark.parametrize("kind", [Cifar10, Cifar100, Mnist, FashionMnist])
def test_without_a_network_the_file_to_put_there_is_named(
    kind: type[Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        monkeypatch.delenv("no_proxy", raising=False)
    said = error_of(kind())
    folder = f"{tmp_path}/cache/datasets/{kind.__name__.lower()}"
    assert "cannot download" in said and f"put the file at {folder}/" in said
    assert said.endswith("; or give its path as data.path.")


def test_a_cached_archive_is_used_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "x.tar.gz", cifar10_files())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = Archive("cifar10", Cifar10.archive.url, sha256)
    monkeypatch.setattr(Cifar10, "archive", archive)
    cached = tmp_path / "cache/datasets/cifar10/cifar-10-binary.tar.gz"
    assert str(cached) in error_without_network(monkeypatch)
    cached.parent.mkdir(parents=True, exist_ok=True)
    path.rename(cached)
    assert len(Cifar10().source("train")) == 5 * RECORDS
    cached.write_bytes(cached.read_bytes() + b"\0")
    assert "is damaged or not the published" in error_of(Cifar10())


def error_without_network(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return error_of(Cifar10())
