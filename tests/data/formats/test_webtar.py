"""Images in tar files: read where they lie, through an index; and hostile tar files."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.data.formats import webtar
from jaxcls.data.formats.folder import ImageFolder
from jaxcls.data.formats.webtar import (
    INDEX_ENDING,
    TarImages,
    WebTar,
    expand_braces,
    tar_files,
)
from jaxcls.errors import UserError
from tests.data.formats.test_folder import drawn, png

ALL_BUT_NONE = 1e-12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, count: int = 3, each: int = 5) -> str:
    """WebDataset shards; image i is of shade i and class "cat" or "dog" in turn."""
    for shard in range(count):
        files = {}
        for i in range(shard * each, (shard + 1) * each):
            files[f"{i:04d}.png"] = png(i)
            files[f"{i:04d}.cls"] = ["cat", "dog\n"][i % 2].encode()
        pack(folder / f"s-{shard:03d}.tar", files)
    return str(folder / f"s-{{000..{count - 1:03d}}}.tar")


def opened(path: Any, split: str = "train", **options: Any) -> TarImages:
    return WebTar(path=str(path), **{"test_share": ALL_BUT_NONE, **options}).encoded(
        split
    )  # type: ignore[arg-type]


def error_of(path: Any, split: str = "train", **options: Any) -> str:
    with pytest.raises(UserError) as error:
        opened(path, split, **options)
    return str(error.value)


def test_each_image_is_read_where_it_lies(tmp_path: Path) -> None:
    images = opened(shards(tmp_path))
    assert len(images) == 15 and images.class_names == ("cat", "dog")
    for i in np.random.default_rng(0).permutation(15):
        assert images.read(int(i)) == png(i) and images.labels[i] == i % 2
    assert images.where(7) == f"{tmp_path}/s-001.tar:0007.png"
    assert images.labels.dtype == np.int32
    batch = (
        WebTar(path=shards(tmp_path), test_share=ALL_BUT_NONE)
        .source("train")
        .gather(np.array([14, 0]))
    )
    assert batch["image"][0].max() == 14 and batch["label"].tolist() == [0, 0]


def test_tar_files_of_the_tar_command(tmp_path: Path) -> None:
    long = "x" * 150
    for name in ("cat/1.png", f"cat/{long}.png", "dog/grüße.png", "dog/deep/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(png(len(name)))
    for kind in ("gnu", "pax", "ustar"):
        if kind == "ustar":
            (tmp_path / "in/cat" / f"{long}.png").unlink()
        subprocess.run(
            [
                "tar",
                f"--format={kind}",
                "-cf",
                f"{tmp_path}/{kind}.tar",
                "-C",
                f"{tmp_path}/in",
                ".",
            ],
            check=True,
        )
        images = opened(tmp_path / f"{kind}.tar")
        assert images.class_names == ("cat", "deep", "dog")
        assert len(images) == (3 if kind == "ustar" else 4)
        for i in range(len(images)):
            name = images.where(i).partition(":")[2]
            assert images.read(i) == png(len(name))
            assert images.class_names[images.labels[i]] == name.split("/")[-2]


def test_classes_from_json(tmp_path: Path) -> None:
    files = {}
    for i, label in enumerate((10, 2, 2)):
        files[f"a/{i}.jpg"] = png(i)
        files[f"a/{i}.json"] = json.dumps(
            {"label": label, "kind": f"k{label}"}
        ).encode()
    path = pack(tmp_path / "x.tar", files)
    assert opened(path).class_names == ("2", "10") and opened(path).labels.tolist() == [
        1,
        0,
        0,
    ]
    assert opened(path, label_key="kind").class_names == ("k10", "k2")
    named = opened(path, class_names=tuple("abcdefghijkl"))
    assert named.labels.tolist() == [10, 2, 2]
    assert "no 'labl'. Did you mean 'label'?" in error_of(path, label_key="labl")


def test_the_index_is_made_once_and_anew_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = shards(tmp_path)
    scanned = []
    scan = webtar.scan_tar
    monkeypatch.setattr(webtar, "scan_tar", lambda *a: scanned.append(a[0]) or scan(*a))
    first = opened(pattern)
    assert len(scanned) == 3 and len(list(tmp_path.glob(f"*{INDEX_ENDING}"))) == 3
    assert repr(opened(pattern)) == repr(first) and len(scanned) == 3
    pack(tmp_path / "s-001.tar", {"z.png": png(99), "z.cls": b"dog"})
    changed = opened(pattern)
    assert len(scanned) == 4 and len(changed) == 11 and changed.read(5) == png(99)
    index = tmp_path / f"s-002.tar{INDEX_ENDING}"
    for damage in (b"", b"PK" + bytes(100), index.read_bytes()[:-30]):
        index.write_bytes(damage)
        scanned.clear()
        assert repr(opened(pattern)) == repr(changed) and scanned == [
            f"{tmp_path}/s-002.tar"
        ]


def test_the_index_goes_into_the_cache_if_it_must(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = pack(tmp_path / "x.tar", {"cat/1.png": png(1)})
    (tmp_path / f"x.tar{INDEX_ENDING}").mkdir()  # in the way
    opened(path)
    assert len(list((cache / "webtar").iterdir())) == 1
    monkeypatch.setattr(webtar, "scan_tar", None)
    assert opened(path).read(0) == png(1)
    monkeypatch.undo()
    shutil.rmtree(cache)
    cache.write_text("in the way")
    monkeypatch.setenv("JAXCLS_CACHE", str(cache))
    assert opened(path).read(0) == png(1)
    assert "could not be kept anywhere" in capsys.readouterr().err


def test_a_copy_elsewhere_is_the_same_data(tmp_path: Path) -> None:
    said = repr(opened(shards(tmp_path)))
    (tmp_path / "other").mkdir()
    assert repr(opened(shards(tmp_path / "other"))) == said
    assert said.startswith("s-{000..002}.tar[train](15 images in 2 classes, ")


def test_threads_and_pickling(tmp_path: Path) -> None:
    images = opened(shards(tmp_path))
    images.read(0)
    again = pickle.loads(pickle.dumps(images))
    assert repr(again) == repr(images)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(again.read, [i % 15 for i in range(600)]))
    assert read == [png(i % 15) for i in range(600)]


def test_files_are_closed_and_not_too_many_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    images = opened(shards(tmp_path))
    before = count()
    assert [images.read(i) for i in range(15)] == [png(i) for i in range(15)]
    assert count() == before + 3
    del images
    assert count() == before
    monkeypatch.setattr(webtar, "MAX_OPEN_FILES", 2)
    images = opened(shards(tmp_path))
    assert [images.read(i) for i in range(15)] == [png(i) for i in range(15)]
    assert count() == before + 2
    del images
    assert count() == before


def test_test_images_by_name_or_by_another_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shards(tmp_path, 4, 25)
    names = [f"{i:04d}.png" for i in range(100)]
    test = opened(pattern, "test", test_share=0.3)
    expected = [i for i in range(100) if drawn(names[i]) < 0.3]
    assert [test.read(i) for i in range(len(test))] == [png(i) for i in expected]
    assert (
        len(opened(pattern, test_share=0.3)) == 100 - len(test) and 15 < len(test) < 45
    )
    other = pack(tmp_path / "val.tar", {"1.png": png(1), "1.cls": b"dog"})
    assert opened(pattern, "test", test_path=str(other)).labels.tolist() == [1]
    assert len(opened(pattern, test_path=str(other))) == 100
    assert "val.tar[test] has no image of cat" in capsys.readouterr().err
    pack(other, {"1.png": png(1), "1.cls": b"doge"})
    said = error_of(pattern, "test", test_path=str(other))
    assert f"{other}:1.png is of class 'doge'" in said and "Did you mean 'dog'?" in said


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{0..2}", ["a-0", "a-1", "a-2"]),
        ("{x,yy}-{0..1}", ["x-0", "x-1", "yy-0", "yy-1"]),
        ("{x,}y", ["xy", "y"]),
        ("{x}", ["{x}"]),
        ("{a..c}", ["{a..c}"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_patterns_that_name_what_is_not_there(tmp_path: Path) -> None:
    shards(tmp_path)
    assert tar_files(f"{tmp_path}/s-*.tar") == [
        f"{tmp_path}/s-{i:03d}.tar" for i in range(3)
    ]
    assert f"there is no file {tmp_path}/s-003.tar. Did you mean" in error_of(
        f"{tmp_path}/s-{{000..003}}.tar"
    )
    assert error_of(tmp_path / "nosuch.tar").endswith("nosuch.tar.")
    assert "no file is named like" in error_of(f"{tmp_path}/t-*.tar")
    assert "twice" in error_of(f"{tmp_path}/s-00{{0,0}}.tar")
    assert "count upwards" in error_of(f"{tmp_path}/s-{{5..1}}.tar")
    with pytest.raises(UserError, match=r"--config\.data\.path="):
        WebTar().validate()


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "a/../x.png"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "x.tar", {"cat/1.png": png(1), name: png(2)})
    assert f"{path} holds {name}, a name that leads out" in error_of(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("cat/1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert "holds cat/1.png, which is a link or no plain file" in error_of(path)


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_off_tar_file_is_named(tmp_path: Path, tenth: int) -> None:
    files = {f"cat/{i}.png": os.urandom(3000) for i in range(10)}
    path = pack(tmp_path / "x.tar", files)
    whole = path.read_bytes()
    end = whole.rstrip(b"\0")
    for cut in (len(end) * tenth // 10, len(end) * tenth // 10 // 512 * 512):
        path.write_bytes(whole[:cut])
        said = error_of(path)
        assert str(path) in said and "cut off or damaged" in said


def test_a_tar_file_cut_off_between_its_members(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {f"cat/{i}.png": bytes(512) for i in range(4)})
    whole = path.read_bytes()
    for members in range(1, 5):
        path.write_bytes(whole[: members * 1024])
        assert f"cut off or damaged at byte {members * 1024:,}" in error_of(path)
    damaged = bytearray(whole)
    damaged[2048:2148] = b"\xff" * 100  # the third header
    path.write_bytes(damaged)
    assert "cut off or damaged at byte 2,048" in error_of(path)


@pytest.mark.parametrize(
    ("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")]
)
def test_compressed_tar_files_are_refused(tmp_path: Path, mode: Any, name: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, mode) as archive:
        info = tarfile.TarInfo("cat/1.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert f"compressed with {name}" in error_of(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no images"),
        ({"1.cls": b"1"}, "has no images"),
        ({"1.png": b"x"}, "1 has no class"),
        ({"1.png": b"x", "1.cls": b" "}, "neither text nor a whole number"),
        ({"1.png": b"x", "1.json": b"{"}, "1.json is not JSON"),
        ({"1.png": b"x", "1.json": b"[1]"}, "1.json is not an object"),
        ({"1.png": b"x", "1.json": b'{"label": "\\ud800"}'}, "1.json is not JSON"),
        ({"1.png": b"x", "1.json": b'{"label": 1.5}'}, "the class 1.5, neither"),
        ({"1.png": b"x", "1.json": b'{"label": null}'}, "the class None, neither"),
        ({"a/1.x.png": b"x", "a/1.y.png": b"x"}, "two images of one record"),
        ({"1.cls": bytes(2**20 + 1)}, "too many for a class"),
    ],
)
def test_records_that_are_not_whole(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    path = pack(tmp_path / "x.tar", files)
    assert said in error_of(path) and str(path) in error_of(path)


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "x.tar",
        {
            "cat/._1.png": b"",
            "__MACOSX/cat/1.png": b"",
            "README": b"",
            "cat/1.png": png(1),
            "cat/1.txt": b"a cat",
            "./dog/2.png": png(2),
        },
    )
    images = opened(path)
    assert [images.read(i) for i in range(len(images))] == [png(1), png(2)]
    assert images.class_names == ("cat", "dog")


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {f"cat/{i}.png": png(i) for i in range(9)})
    source = WebTar(path=str(path), test_share=ALL_BUT_NONE).source("train")
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(RuntimeError, match=r"x\.tar:cat/2\.png.*shorter"):
        source.gather(np.arange(9))


def test_real_photographs_are_the_same_from_a_tar_file_and_a_folder(
    tmp_path: Path,
) -> None:
    data = Path(os.environ.get("JAXCLS_TEST_DATA", "../shared/data"))
    if not (data / "imagenet-sample-250.tar").is_file():
        pytest.skip(f"{data}/imagenet-sample-250.tar is not there")
    path = tmp_path / "in.tar"  # the index comes to lie beside the link
    path.symlink_to((data / "imagenet-sample-250.tar").resolve())
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    packed = opened(path)
    unpacked = ImageFolder(path=str(tmp_path / "val"), test_share=ALL_BUT_NONE).encoded(
        "train"
    )
    assert len(packed) == len(unpacked) == 250
    assert packed.class_names == unpacked.class_names
    row = {os.path.basename(unpacked.where(i)): i for i in range(250)}
    for i in range(250):
        j = row[os.path.basename(packed.where(i))]
        assert (
            packed.read(i) == unpacked.read(j)
            and packed.labels[i] == unpacked.labels[j]
        )


@pytest.mark.parametrize("top", ["", "pets/", "./a/b/"])
@pytest.mark.parametrize("held_out", ["test", "Validation"])
def test_folders_of_splits_are_those_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], top: str, held_out: str
) -> None:
    names = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    names += [f"{held_out}/{c}/{i}.png" for c in ("cat", "dog") for i in range(2)]
    files = {name: png(i) for i, name in enumerate(names)}
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    path = pack(tmp_path / "x.tar", {top + name: b for name, b in files.items()})
    folder = ImageFolder(path=str(tmp_path / "in"))
    for split in ("train", "test"):
        expected, found = folder.encoded(split), opened(path, split)
        assert found.class_names == expected.class_names
        assert [found.read(i) for i in range(len(found))] == [
            expected.read(i) for i in range(len(expected))
        ]
        assert found.labels.tolist() == expected.labels.tolist()
    said = capsys.readouterr().err
    assert said.count(f"as its folders train and {held_out} say.") == 1
    # Another tar file for testing, and what lies elsewhere.
    assert len(opened(path, test_path=str(path))) == 16
    more = {name: png(0) for name in ("extra/cow/1.png", "cat/1.png", "1.png")}
    more["1.cls"] = b"cow"
    path = pack(tmp_path / "y.tar", files | more)
    assert opened(path).class_names == ("cat", "dog") and len(opened(path)) == 12
    said = capsys.readouterr().err
    assert "left out is what lies in cat, extra, no folder." in said


def test_a_lone_split_folder_is_divided_by_names(tmp_path: Path) -> None:
    names = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(50)]
    path = pack(tmp_path / "x.tar", dict.fromkeys(names, png(0)))
    test = opened(path, "test", test_share=0.3)
    assert len(test) == sum(drawn(name) < 0.3 for name in names)
    assert test.class_names == ("cat", "dog")


def test_numbers_among_names_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for classes, mixed in (("1 2 cat", True), ("1 2", False), ("a cat", False)):
        files = {}
        for i, name in enumerate(classes.split()):
            files |= {f"{i}.png": png(i), f"{i}.cls": name.encode()}
        opened(pack(tmp_path / f"{len(files)}{name}.tar", files))
        said = "are numbers (1, 2) and others are not (cat)"
        assert (said in capsys.readouterr().err) == mixed
