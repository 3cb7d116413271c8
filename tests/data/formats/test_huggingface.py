"""Datasets of Hugging Face's library, made here: no network is asked."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.data.formats.huggingface import HuggingFace
from jaxcls.data.formats.image_list import TableImages
from jaxcls.errors import UserError
from tests.data.formats.test_folder import make, png

pytestmark = pytest.mark.filterwarnings("default")  # what the library itself warns of


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that save_to_disk has written: 6 training images and 3 for testing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip(
        "datasets", reason="the extra huggingface is not installed"
    )
    (tmp_path / "file.png").write_bytes(png(77))
    features = datasets.Features(
        img=datasets.Image(),
        kind=datasets.ClassLabel(names=["cat", "dog"]),
        size=datasets.Value("int64"),
        name=datasets.Value("string"),
    )

    def table(first: int, count: int) -> Any:
        rows = range(first, first + count)
        images: list[dict[str, Any]] = [{"bytes": png(i), "path": None} for i in rows]
        images[-1] = {"bytes": None, "path": str(tmp_path / "file.png")}
        columns = {
            "img": images,
            "kind": [i % 2 for i in rows],
            "size": [10 if i % 3 else 2 for i in rows],
            "name": ["cow" if i % 2 else "ant" for i in rows],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    path = tmp_path / "pets"
    datasets.DatasetDict({"train": table(0, 6), "test": table(100, 3)}).save_to_disk(
        str(path)
    )
    return str(path)


def error_of(split: str = "train", **options: str) -> str:
    with pytest.raises(UserError) as error:
        HuggingFace(**options).encoded(split)  # type: ignore[arg-type]
    return str(error.value)


def read(images: TableImages) -> list[bytes]:
    return [images.read(i) for i in range(len(images))]


def test_images_come_as_they_were_stored(saved: str) -> None:
    train, test = (
        HuggingFace(name=saved).encoded(split) for split in ("train", "test")
    )
    assert read(train) == [*(png(i) for i in range(5)), png(77)]
    assert read(test) == [png(100), png(101), png(77)]
    assert train.labels.tolist() == [0, 1] * 3 and train.labels.dtype == np.int32
    assert train.class_names == test.class_names == ("cat", "dog")
    assert repr(train).startswith(
        "pets[train](6 images in 2 classes, "
    ) and saved not in repr(train)
    assert test.where(1) == "record 1 of pets[test]"


def test_a_part_of_a_split(saved: str) -> None:
    part = HuggingFace(name=saved, train="train[:50%]", test="test[1:]+train[5:]")
    assert read(part.encoded("train")) == [png(0), png(1), png(2)]
    assert read(part.encoded("test")) == [png(101), png(77), png(77)]


def test_the_way_to_a_worker(saved: str) -> None:
    source = HuggingFace(name=saved).source("train")
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == repr(source)
    np.testing.assert_array_equal(
        again.gather(np.arange(6))["image"], source.gather(np.arange(6))["image"]
    )


@pytest.mark.parametrize(
    ("column", "names", "labels"),
    [
        ("size", ("2", "10"), [0, 1, 1, 0, 1, 1]),
        ("name", ("ant", "cow"), [0, 1, 0, 1, 0, 1]),
    ],
)
def test_classes_that_are_not_declared(
    saved: str, column: str, names: tuple[str, ...], labels: list[int]
) -> None:
    train = HuggingFace(name=saved, label_column=column).encoded("train")
    assert train.class_names == names and train.labels.tolist() == labels
    assert (
        HuggingFace(name=saved, label_column=column).encoded("test").class_names
        == names
    )


def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip(
        "datasets", reason="the extra huggingface is not installed"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = make(
        tmp_path / "in",
        *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in "12"),
    )
    train = HuggingFace(name=str(root)).encoded("train")
    assert train.class_names == ("a", "b") and train.labels.tolist() == [0, 0, 1, 1]
    assert read(train) == [png(i) for i in range(4)]


def test_mistakes_are_said(saved: str, tmp_path: Path) -> None:
    said = error_of(name=saved, image_column="image")
    assert "data.image_column is 'image', but" in said and "Did you mean 'img'?" in said
    assert "data.label_column is 'knid'" in error_of(name=saved, label_column="knid")
    said = error_of(name=saved, train="tarin")
    assert (
        "'tarin' (data.train)" in said
        and "Did you mean 'train'? Its splits: train, test" in said
    )
    assert "cannot be had" in error_of(name=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"--config\.data\.name="):
        HuggingFace().validate()


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'run pip install -e ".[huggingface]"' in error_of(name="uoft-cs/cifar10")


def test_neither_tensorflow_nor_torch_is_imported(saved: str) -> None:
    assert not {"tensorflow", "torch"} & set(sys.modules) and os.path.isdir(saved)
