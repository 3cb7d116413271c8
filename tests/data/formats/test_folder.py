"""Folders of class folders: what is found, in what order, and what is refused."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls import options
from jaxcls.data.formats.folder import FileImages, ImageFolder
from jaxcls.data.formats.image_list import Labels
from jaxcls.errors import UserError


def png(shade: int) -> bytes:
    """A grey 4 x 6 image."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def make(root: Path, *names: str) -> Path:
    """Writes images of different shades; their names end in "/" for empty folders."""
    for shade, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(shade))
    return root


def listed(images: FileImages, root: Path) -> dict[str, str]:
    """Each file with its class."""
    return {
        os.path.relpath(images.where(i), root): images.class_names[images.labels[i]]
        for i in range(len(images))
    }


def error_of(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        ImageFolder(path=str(folder), **options).encoded("test")  # type: ignore[arg-type]
    return str(error.value)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make(
        tmp_path / "pets",
        "train/dog/2.jpg",
        "train/cat/b.PNG",
        "train/cat/a.jpeg",
        "train/ant/deep/er/c.webp",
        "val/dog/9.tiff",
        "val/cat/9.gif",
        "val/ant/9.bmp",
    )


def test_each_file_has_the_class_of_its_folder(pets: Path) -> None:
    train = ImageFolder(path=str(pets)).encoded("train")
    assert train.class_names == ("ant", "cat", "dog")
    assert [train.where(i) for i in range(4)] == [
        str(pets / "train" / name)
        for name in ("ant/deep/er/c.webp", "cat/a.jpeg", "cat/b.PNG", "dog/2.jpg")
    ]
    assert train.labels.tolist() == [0, 1, 1, 2] and train.labels.dtype == np.int32
    assert train.read(3) == png(0) and train.read(2) == png(1)
    test = ImageFolder(path=str(pets)).encoded("test")
    assert listed(test, pets) == {
        "val/ant/9.bmp": "ant",
        "val/cat/9.gif": "cat",
        "val/dog/9.tiff": "dog",
    }


def test_the_pixels_come_through(pets: Path) -> None:
    batch = ImageFolder(path=str(pets)).source("train").gather(np.array([3, 1]))
    assert batch["label"].tolist() == [2, 1]
    assert (batch["image"][0] == 0).all() and (batch["image"][1] == 2).all()


def test_a_copy_elsewhere_is_the_same_data(pets: Path, tmp_path: Path) -> None:
    said = repr(ImageFolder(path=str(pets)).encoded("train"))
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "pets"
    pets.rename(moved)
    images = ImageFolder(path=f"{moved}/").encoded("train")
    assert repr(images) == said
    assert said.startswith("pets/train(4 images in 3 classes, ") and "other" not in said
    again = pickle.loads(pickle.dumps(images))
    assert repr(again) == said and again.read(0) == images.read(0)
    (moved / "train/cat/a.jpeg").rename(moved / "train/dog/a.jpeg")
    assert repr(ImageFolder(path=str(moved)).encoded("train")) != said


def test_a_million_files_travel_as_bytes() -> None:
    names = [f"class{i % 1000:04d}/image{i:07d}.jpg" for i in range(100_000)]
    labels = np.arange(100_000) % 1000
    classes = [str(i) for i in range(1000)]
    images = FileImages(Labels("many", labels, classes), "/", names)
    assert len(pickle.dumps(images)) < 50 * len(names)
    assert images.where(99_999) == "/class0999/image0099999.jpg"


@pytest.mark.parametrize(
    ("order", "names"),
    [("lexical", ("1", "10", "2", "a")), ("natural", ("1", "2", "10", "a"))],
)
def test_classes_in_the_order_asked_for(
    tmp_path: Path, order: str, names: tuple
) -> None:
    make(
        tmp_path,
        *(f"{part}/{c}/x.jpg" for c in "2 10 a 1".split() for part in ("train", "val")),
    )
    for split in ("train", "test"):
        images = ImageFolder(path=str(tmp_path), class_order=order).encoded(split)  # type: ignore[arg-type]
        assert images.class_names == names
        by_name = [images.class_names[label] for label in images.labels]
        assert all(f"/{c}/" in images.where(i) for i, c in enumerate(by_name))


def test_val_comes_before_validation_and_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Test", "validation", "val", "val"):
        make(tmp_path, f"{name}/a/{name}.jpg", "Train/a/x.jpg")
        images = ImageFolder(path=str(tmp_path)).encoded("test")
        assert f"/{name}/a/" in images.where(0)
    said = capsys.readouterr().err
    assert said.count("val, validation, Test: val is what is evaluated") == 1


def drawn(name: str) -> float:
    """Where a name falls in 0..1, in another way."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16


def test_without_folders_the_names_divide(tmp_path: Path) -> None:
    names = [f"{c}/{i}.jpg" for c in "abc" for i in range(100)]
    make(tmp_path, *names)
    folder = ImageFolder(path=str(tmp_path), test_share=0.3)
    train = listed(folder.encoded("train"), tmp_path)
    test = listed(folder.encoded("test"), tmp_path)
    assert set(test) == {name for name in names if drawn(name) < 0.3}
    assert set(train) == set(names) - set(test) and 60 < len(test) < 120
    assert folder.encoded("train").class_names == folder.encoded("test").class_names
    make(tmp_path, "b/another.jpg", "aa/new.jpg")
    assert set(listed(folder.encoded("test"), tmp_path)) - {
        "b/another.jpg",
        "aa/new.jpg",
    } == set(test)


def test_a_class_without_test_images_is_said(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "val/cat/9.gif").unlink()
    test = ImageFolder(path=str(pets)).encoded("test")
    assert test.class_names == ("ant", "cat", "dog") and test.labels.tolist() == [0, 2]
    assert "pets/val has no image of cat." in capsys.readouterr().err


def test_an_unknown_class_is_an_error(pets: Path) -> None:
    make(pets, "val/doge/x.jpg")
    assert "val has classes that" in error_of(pets)
    assert "doge. Did you mean 'dog'?" in error_of(pets)


def test_what_is_left_out_is_said(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(pets, "train/empty/", "train/loose.jpg", "train/__MACOSX/cat/._a.jpg")
    make(
        pets,
        "train/.hidden/x.jpg",
        "train/cat/.DS_Store",
        "train/cat/notes.txt",
        "train/cat/README",
    )
    train = ImageFolder(path=str(pets)).encoded("train")
    assert len(train) == 4 and train.class_names == ("ant", "cat", "dog")
    said = capsys.readouterr().err
    assert "without images, no classes: empty." in said
    assert "2 files (" in said and "1 .txt" in said and "1 without ending" in said
    assert "no class folder is left out: 1 image (loose.jpg)" in said
    assert "hidden" not in said and "MACOSX" not in said and "DS_Store" not in said
    make(pets, "val/empty/x.jpg")
    assert "empty" in error_of(pets)  # no class of training


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(make(tmp_path / "pets", "cat/a.jpg")) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(png(7))
    images = ImageFolder(path=str(tmp_path / "pets"), test_share=0.999).encoded("test")
    assert images.class_names == ("caf\\xe9", "cat")
    assert images.read(0) == png(7)
    assert images.where(0).endswith("/caf\\xe9/\\xff.jpg")
    repr(images).encode() + images.where(0).encode()


def test_links_within_the_folder_are_followed(pets: Path) -> None:
    (pets / "train/cat/linked.jpg").symlink_to(pets / "train/dog/2.jpg")
    (pets / "train/cow").symlink_to("dog")
    train = listed(ImageFolder(path=str(pets)).encoded("train"), pets)
    assert train["train/cat/linked.jpg"] == "cat" and train["train/cow/2.jpg"] == "cow"


@pytest.mark.parametrize(
    "name", ["val/cat/out.jpg", "val/cat/out", "val/cow", "val/cat/deep/out.png"]
)
def test_links_out_of_the_folder_are_refused(
    pets: Path, tmp_path: Path, name: str
) -> None:
    outside = make(tmp_path, "pets2/x.jpg", "secret.jpg")
    (pets / name).parent.mkdir(exist_ok=True)
    is_file = name.endswith(("jpg", "png"))
    (pets / name).symlink_to(outside / ("secret.jpg" if is_file else "pets2"))
    said = error_of(pets)
    assert str(pets / name) in said and "a link leads out of" in said


def test_a_split_folder_that_leads_out_is_refused(pets: Path, tmp_path: Path) -> None:
    (pets / "val").rename(tmp_path / "elsewhere")
    (pets / "val").symlink_to(tmp_path / "elsewhere")
    assert "elsewhere" in error_of(pets)


def test_a_link_in_a_circle_is_refused(pets: Path) -> None:
    (pets / "val/cat/up").symlink_to(pets / "val/cat")
    assert "leads in a circle" in error_of(pets)
    (pets / "val/cat/up").unlink()
    (pets / "val/cat/there").symlink_to(pets / "val/dog")
    (pets / "val/dog/back").symlink_to(pets / "val/cat")
    assert "leads in a circle" in error_of(pets)


def test_a_broken_link_is_a_file_that_cannot_be_read(pets: Path) -> None:
    (pets / "train/cat/gone.jpg").symlink_to(pets / "train/cat/nowhere.jpg")
    source = ImageFolder(path=str(pets)).source("train")
    with pytest.raises(RuntimeError, match=r"gone\.jpg"):
        source.gather(np.arange(len(source)))


def test_mistakes_are_said(tmp_path: Path) -> None:
    make(tmp_path / "pets", "cat/a.jpg")
    make(tmp_path / "r_noshard", "cat/a.jpg")
    assert f"there is no folder {tmp_path}/pest. Did you mean 'pets'?" in error_of(
        tmp_path / "pest"
    )
    assert "is a file" in error_of(tmp_path / "pets/cat/a.jpg")
    assert "did you mean" not in error_of(tmp_path / "nosuch").lower()
    assert "no image in a class folder (0 folders found)" in error_of(
        tmp_path / "pets/cat"
    )
    make(tmp_path / "hollow", "cat/", "dog/")
    assert "(2 folders found)" in error_of(tmp_path / "hollow")
    make(tmp_path / "half", "train/cat/a.jpg")
    assert f"set data.path to {tmp_path}/half/train" in error_of(tmp_path / "half")
    make(tmp_path / "other", "Test/cat/a.jpg", "Test/dog/b.jpg")
    said = error_of(tmp_path / "other")
    assert "has Test, but no folder train" in said
    assert f"set data.path to {tmp_path}/other/Test" in said
    with pytest.raises(UserError, match=r"--config\.data\.path="):
        ImageFolder().validate()
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="test_share"):
            options.check(ImageFolder(path="x", test_share=share), "data")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, *(f"{c}/{i}.jpg" for c in ("bus", "train") for i in range(9)))
    assert ImageFolder(path=str(tmp_path)).encoded("train").class_names == (
        "bus",
        "train",
    )


@pytest.mark.parametrize("place", ["train/cat", "val/cat"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_plain_file_is_refused(pets: Path, place: str, linked: bool) -> None:
    os.mkfifo(pets / ("pipe" if linked else f"{place}/x.jpg"))
    if linked:
        (pets / place / "x.jpg").symlink_to(pets / "pipe")
    with pytest.raises(UserError, match=f"{place}/x.jpg is no plain file"):
        for split in ("train", "test"):
            ImageFolder(path=str(pets)).encoded(split)
    (pets / place / "x.jpg").rename(pets / place / "x.fifo")  # no image by its name
    ImageFolder(path=str(pets)).encoded("train")
