"""Record files, and the dataset that reads them."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.data.formats import shards
from jaxcls.data.formats.digits import Digits
from jaxcls.data.formats.folder import ImageFolder
from jaxcls.data.formats.manifest import Manifest
from jaxcls.data.formats.records import RecordFiles, Records
from jaxcls.data.host_crop import CenterSquare, HostRandomResizedCrop
from jaxcls.data.loader import EvalBatches, Loader
from jaxcls.data.preparation.checker import verify
from jaxcls.data.preparation.writer import write_records
from jaxcls.data.sources import ArraySource, Split
from jaxcls.errors import UserError

CLASSES = ("ant", "bee", "wäsp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training and 6 test images, JPEG, of different sizes in three classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                width, height = rng.integers(20, 60, 2)
                coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((int(width), int(height)))
                picture.save(root / split / name / f"{number}.jpg", quality=85)
    return root


@pytest.fixture(scope="module")
def jpegs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of format "jpeg", all kept as they are, in several files."""
    out = tmp_path_factory.mktemp("made") / "jpegs"
    write_records(ImageFolder(path=str(folder)), out, size=64, shard_mb=0.006)
    assert len(list(out.glob("train-*"))) > 2
    return out


@pytest.fixture(scope="module")
def pixels(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of format "raw", squares of 16 pixels, in several files."""
    out = tmp_path_factory.mktemp("made") / "pixels"
    write_records(
        ImageFolder(path=str(folder)), out, size=16, format="raw", shard_mb=0.006
    )
    assert len(list(out.glob("train-*"))) > 2
    return out


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def files(folder: Path, split: str) -> list[Path]:
    """The images of a split in the order of the labels."""
    return sorted((folder / split).glob("*/*.jpg"))


@pytest.mark.parametrize(
    "item",
    [
        shards.Item(0, (3,), "cat/1.jpg", b"\xff\xd8"),
        shards.Item(2**40, (), "", b""),
        shards.Item(7, (0, 5, 9), "größe\udcff", b"x" * 24, (2, 4, 3)),
    ],
)
def test_a_record_gives_back_what_was_packed(item: shards.Item) -> None:
    assert shards.unpack(shards.pack(item)) == item


def test_a_record_is_laid_out_as_documented() -> None:
    record = shards.pack(shards.Item(9, (1, 2), "ä", b"abcdef", (1, 2, 3)))
    assert record == b"".join(
        [
            b"JXR1",
            b"\x01\x00",
            struct.pack("<H", 2),
            struct.pack("<I", 2),
            struct.pack("<Q", 9),
            struct.pack("<III", 1, 2, 3),
            struct.pack("<ii", 1, 2),
            "ä".encode(),
            b"abcdef",
        ]
    )


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"JXR1",
        b"tfrecord" * 8,
        shards.pack(shards.Item(0, (1,), "name", b"123", (1, 1, 3)))[:-1],
        shards.pack(shards.Item(0, (1,), "name", b""))[:-1],
    ],
)
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match=r"records|length"):
        shards.unpack(record)


def test_files_come_back_byte_for_byte(folder: Path, jpegs: Path) -> None:
    for split, part in (("train", "train"), ("val", "test")):
        encoded = Records(path=str(jpegs)).encoded(part)
        originals = files(folder, split)
        assert len(encoded) == len(originals)
        assert encoded.class_names == CLASSES
        assert encoded.labels.dtype == np.int32
        for index, path in enumerate(originals):
            assert encoded.read(index) == path.read_bytes()
            assert CLASSES[encoded.labels[index]] == path.parent.name
            inside = path.relative_to(folder)
            assert encoded.where(index).startswith(f"{inside} in {jpegs}/{part}-0")


def test_a_source_of_files_decodes_as_the_folder_does(
    folder: Path, jpegs: Path
) -> None:
    canvas = HostRandomResizedCrop(size=12)
    ids = np.array([4, 29, 0, 4])
    words = np.array([5, 6, 7, 8], np.uint64)
    ours = Records(path=str(jpegs), canvas=canvas).source("train")
    theirs = ImageFolder(path=str(folder), canvas=canvas).source("train")
    one, other = ours.gather(ids, words), theirs.gather(ids, words)
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])


def test_raw_images_are_the_middle_of_the_resized_ones(
    folder: Path, pixels: Path
) -> None:
    source = Records(path=str(pixels)).source("train")
    ids = np.random.default_rng(0).permutation(len(source))
    ids = np.concatenate([ids, ids[:5]])
    batch = source.gather(ids)
    assert batch["image"].dtype == np.uint8 and batch["image"].shape[1:] == (16, 16, 3)
    originals = files(folder, "train")
    for row, index in enumerate(ids):
        with Image.open(originals[index]) as opened:
            picture = opened.convert("RGB")
        short = min(picture.size)
        width, height = (16 * side // short for side in picture.size)
        resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - 16) / 2), round((width - 16) / 2)
        expected = resized[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(batch["image"][row], expected)
        assert CLASSES[batch["label"][row]] == originals[index].parent.name
    np.testing.assert_array_equal(
        source[3]["image"], source.gather(np.array([3]))["image"][0]
    )
    assert source[29]["label"] == 2


def test_arrays_become_records_without_loss(tmp_path: Path) -> None:
    digits = Digits().source("test")
    ids = np.arange(len(digits))
    for format in ("raw", "jpeg"):
        out = tmp_path / format
        write_records(Digits(), out, format=format)
        node = Records(path=str(out), channels=1, canvas=CenterSquare(size=8))
        source = node.source("test")
        assert source.class_names == digits.class_names
        batch, expected = source.gather(ids), digits.gather(ids)
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])


@dataclasses.dataclass(kw_only=True)
class RenamedDigits(Digits):
    """Digits whose test split has its classes in another order."""

    def source(self, split: Split) -> ArraySource:
        source = super().source(split)
        if split == "test":
            source.class_names = source.class_names[::-1]
        return source


def test_splits_with_other_classes_become_no_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="records need one list of classes"):
        write_records(RenamedDigits(), tmp_path / "out", format="raw")
    assert not (tmp_path / "out").exists()


def test_several_labels_an_image(folder: Path, tmp_path: Path) -> None:
    paths = files(folder, "train")[:4]
    table = tmp_path / "table.csv"
    labels = ["red;blue", "blue", "red;green;blue", "green"]
    rows = [
        f"{p},{x},{s}" for p, x, s in zip(paths, labels, ["train"] * 4, strict=True)
    ]
    rows += [f"{files(folder, 'val')[0]},red,test"]
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    node = Manifest(path=str(table), multi_label=True, split_column="split")
    write_records(node, tmp_path / "out", format="raw", size=8)
    verify(tmp_path / "out")
    source = Records(path=str(tmp_path / "out")).source("train")
    assert source.class_names == ("blue", "green", "red")
    expected = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    np.testing.assert_array_equal(source.labels, expected)
    np.testing.assert_array_equal(
        source.gather(np.array([2, 0]))["label"], expected[[2, 0]]
    )
    assert source.labels.dtype == np.uint8


def test_repr_names_the_content_and_not_the_place(
    folder: Path, jpegs: Path, pixels: Path, tmp_path: Path
) -> None:
    moved = copy(jpegs, tmp_path / "elsewhere")
    here = Records(path=str(jpegs)).source("train")
    assert repr(Records(path=str(moved)).source("train")) == repr(here)
    others = [
        Records(path=str(jpegs)).source("test"),
        Records(path=str(pixels)).source("train"),
    ]
    assert all(repr(other) != repr(here) for other in others)
    index = json.loads((moved / "index.json").read_text())
    index["splits"]["train"]["labels"][3] = 2
    (moved / "index.json").write_text(json.dumps(index))
    assert repr(Records(path=str(moved)).source("train")) != repr(here)


def test_is_pickled_small_and_read_by_worker_processes(pixels: Path) -> None:
    source = Records(path=str(pixels)).source("train")
    expected = source.gather(np.arange(len(source)))  # its files are open now
    assert len(pickle.dumps(source)) < 500
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == repr(source)
    batches = EvalBatches(source, batch_size=10)
    with Loader(batches, workers=2) as loader:
        images = np.concatenate([batch["image"] for batch in loader])
    np.testing.assert_array_equal(images, expected["image"])


def test_files_can_be_read_by_threads_and_after_a_fork(pixels: Path) -> None:
    script = f"""
import concurrent.futures, os, sys
import numpy as np
from jaxcls.data.formats.records import Records
source = Records(path={str(pixels)!r}).source("train")
ids = np.arange(len(source))
expected = source.gather(ids)["image"]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for images in pool.map(lambda _: source.gather(ids)["image"], range(50)):
        assert (images == expected).all()
child = os.fork()
if child == 0:
    os._exit(0 if (source.gather(ids)["image"] == expected).all() else 1)
assert os.waitpid(child, 0)[1] == 0
assert (source.gather(ids)["image"] == expected).all()
assert "jax" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def damaged(folder: Path, target: Path, change: str) -> Path:
    """A copy of a folder of records with something wrong in it."""
    made = copy(folder, target)
    first = sorted(made.glob("train-*"))[0]
    index = made / "index.json"
    if change == "flipped":
        content = bytearray(first.read_bytes())
        content[-20_000 if len(content) < 30_000 else 2_000] ^= 1
        first.write_bytes(content)
    elif change == "cut":
        first.write_bytes(first.read_bytes()[:5000])
    elif change == "other":
        content = sorted(made.glob("test-*"))[0].read_bytes()
        first.write_bytes(content)
    elif change == "missing":
        first.unlink()
    elif change == "no index":
        index.unlink()
    elif change == "unfinished":
        index.rename(made / "plan.json")
    elif change == "cut index":
        index.write_bytes(index.read_bytes()[:100])
    elif change == "version":
        index.write_text(index.read_text().replace('"version": 1', '"version": 7', 1))
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", r"train-00000\S+ has 5,000 bytes, but index.json beside it says 1"),
        ("missing", r"cannot read \S+train-00000\S+ \(No such file"),
        ("no index", r"holds no records \(there is no index.json\)"),
        ("unfinished", "not complete: run the same command"),
        ("cut index", "index.json is damaged"),
        ("version", "of version 7"),
    ],
)
def test_an_incomplete_folder_is_one_sentence(
    pixels: Path, tmp_path: Path, change: str, message: str
) -> None:
    made = damaged(pixels, tmp_path / "made", change)
    with pytest.raises(UserError, match=message) as caught:
        Records(path=str(made)).source("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_a_wrong_path_is_one_sentence(path: str) -> None:
    with pytest.raises(UserError, match=r"there is no folder|data.path is not set"):
        Records(path=path).source("train")


def test_damaged_pixels_are_found_when_they_are_read(
    pixels: Path, tmp_path: Path
) -> None:
    made = damaged(pixels, tmp_path / "made", "flipped")
    source = Records(path=str(made)).source("train")
    source.gather(np.array([len(source) - 1]))
    with pytest.raises(
        RuntimeError, match=r"train-00000\S+ is damaged \(.*hash mismatch"
    ) as caught:
        source.gather(np.arange(len(source)))
    said = str(caught.value)
    assert "copy that file again, or make the records again" in said
    assert f"python -m jaxcls.prepare verify --path {made} finds" in said
    with pytest.raises(UserError, match=r"train-00000\S+ is damaged .*1 of \d files"):
        verify(made)


def test_a_damaged_file_of_jpegs_is_an_error_of_reading(
    jpegs: Path, tmp_path: Path
) -> None:
    made = damaged(jpegs, tmp_path / "made", "flipped")
    encoded = Records(path=str(made)).encoded("train")
    with pytest.raises(OSError, match=r"train-00000\S+ is damaged"):
        for index in range(len(encoded)):
            encoded.read(index)
    skipping = Records(path=str(made), on_bad_image="skip").source("train")
    mask = skipping.gather(np.arange(len(skipping)))["mask"]
    assert mask.sum() == len(mask) - 1
    said = str(skipping.explain(int(np.argmin(mask))))
    assert "train-00000" in said and f"verify --path {made} finds" in said


def test_a_file_that_was_exchanged_is_found(pixels: Path, tmp_path: Path) -> None:
    made = copy(pixels, tmp_path / "made")
    one, other, *_ = sorted(made.glob("train-*"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"train-00000\S+ is damaged: its SHA-256"):
        verify(made)


def test_raw_images_cannot_be_cropped_on_the_host(pixels: Path) -> None:
    node = Records(path=str(pixels), canvas=HostRandomResizedCrop(size=12))
    with pytest.raises(UserError, match="squares of 16 pixels"):
        node.source("train")
    Records(path=str(pixels), canvas=CenterSquare(size=16)).source("train")
    with pytest.raises(UserError, match="no files to decode"):
        Records(path=str(pixels)).encoded("train")


class TestRemote:
    """A folder on a server, of which a folder on this machine takes the place."""

    @pytest.fixture
    def server(
        self, jpegs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        from etils import epath

        monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "cache"))
        bucket = copy(jpegs, tmp_path / "bucket")
        local = epath.Path
        monkeypatch.setattr(
            epath, "Path", lambda url: local(url.replace("gs://bucket", str(bucket)))
        )
        return bucket

    def test_is_copied_once(self, server: Path, jpegs: Path, tmp_path: Path) -> None:
        here = Records(path=str(jpegs)).encoded("train")
        there = Records(path="gs://bucket/").encoded("train")
        assert repr(there) == repr(here)
        assert there.read(7) == here.read(7)
        copies = list((tmp_path / "cache").rglob("*.array_record"))
        assert {path.name for path in copies} == {p.name for p in jpegs.glob("train-*")}
        for path in server.glob("*.array_record"):
            path.unlink()  # is not needed again
        assert repr(Records(path="gs://bucket").encoded("train")) == repr(here)

    def test_what_arrives_damaged_is_not_kept(
        self, server: Path, tmp_path: Path
    ) -> None:
        damaged_file = sorted(server.glob("train-*"))[1]
        content = bytearray(damaged_file.read_bytes())
        content[100] ^= 1
        damaged_file.write_bytes(content)
        with pytest.raises(UserError, match=r"train-00001\S+ is damaged: its SHA-256"):
            Records(path="gs://bucket").encoded("train")
        kept = [path.name for path in (tmp_path / "cache").rglob("train-00001*")]
        assert not kept

    def test_a_server_without_records_is_one_sentence(self, server: Path) -> None:
        with pytest.raises(
            UserError, match="cannot read the records at gs://bucket/none"
        ):
            Records(path="gs://bucket/none").source("train")


def test_an_encoded_reads_without_an_index_given(jpegs: Path) -> None:
    encoded = RecordFiles(jpegs, "test")
    assert len(encoded) == 6 and os.fspath(jpegs) not in repr(encoded)


@pytest.mark.parametrize("where", [0, 10, 65_540, 98_000, -1, -65_530, -131_000])
def test_no_damage_of_a_file_is_more_than_an_error(
    pixels: Path, tmp_path: Path, where: int
) -> None:
    made = copy(pixels, tmp_path / "made")
    first = sorted(made.glob("train-*"))[0]
    content = bytearray(first.read_bytes())
    content[where] ^= 1
    first.write_bytes(content)
    with pytest.raises(UserError, match="train-00000"):
        verify(made)
    source = Records(path=str(made)).source("train")
    expected = Records(path=str(pixels)).source("train").gather(np.arange(30))
    try:
        images = source.gather(np.arange(30))["image"]
    except RuntimeError as error:
        assert "train-00000" in str(error)
    else:  # where it was changed, there is nothing
        np.testing.assert_array_equal(images, expected["image"])
