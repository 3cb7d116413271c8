"""ImageNet in the layouts that people have, with and without lists of the validation classes."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from jaxcls.data.formats.folder import FileImages
from jaxcls.data.formats.imagenet import (
    ImageNet,
    read_validation_list,
)
from jaxcls.errors import UserError
from jaxcls.imagenet_classes import imagenet_classes
from tests.data.formats.test_folder import make

TENCH, SNAKE, DOG = "n01440764", "n01751748", "n02105855"
"""Logits 0, 65 and 230."""
VAL = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]
OF_VAL = [SNAKE, DOG, TENCH, DOG]


def listed(images: FileImages) -> dict[str, str]:
    return {
        os.path.basename(images.where(i)): images.class_names[images.labels[i]]
        for i in range(len(images))
    }


def tree(root: Path, base: str = "") -> Path:
    """Three training classes, and flat validation images."""
    make(
        root / base,
        *(f"train/{s}/{s}_{i}.JPEG" for s in (DOG, TENCH, SNAKE) for i in range(2)),
    )
    make(root / base, *(f"val/{name}" for name in VAL))
    return root


def test_the_order_is_that_of_the_logits() -> None:
    names = imagenet_classes()
    synsets = list(names)
    assert len(synsets) == 1000 and synsets == sorted(synsets)
    known = {
        TENCH: "tench",
        SNAKE: "sea snake",
        "n02123045": "tabby",
        "n03888257": "parachute",
        "n02979186": "cassette player",
        "n15075141": "toilet tissue",
        "n03445777": "golf ball",
    }
    assert {synset: names[synset] for synset in known} == known
    index = {TENCH: 0, SNAKE: 65, DOG: 230, "n02123045": 281, "n15075141": 999}
    assert {synset: synsets.index(synset) for synset in index} == index


@pytest.mark.parametrize("base", ["", "ILSVRC/Data/CLS-LOC", "CLS-LOC"])
def test_training_images(tmp_path: Path, base: str) -> None:
    train = ImageNet(path=str(tree(tmp_path, base))).encoded("train")
    assert train.class_names == ("tench", "sea snake", "Shetland sheepdog")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert repr(train).startswith(
        f"{Path(tmp_path, base).name}/train(6 images in 3 classes"
    )


EXPECTED = dict(
    zip(
        VAL,
        ["sea snake", "Shetland sheepdog", "tench", "Shetland sheepdog"],
        strict=True,
    )
)


def meta(path: Path) -> None:
    """The development kit's table: numbers in another order, inner nodes above 1000."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(490, SNAKE, 0), (7, DOG, 0), (1, TENCH, 0), (1001, "n00001740", 3)]
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    scipy.io.savemat(path, {"synsets": np.array(rows, dtype=kinds)[:, None]})


LISTS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(
        f"{n[:-5]},{s} 1 2 3 4 {s} 5 6 7 8 \n"
        for n, s in reversed([*zip(VAL, OF_VAL, strict=True)])
    ),
    "imagenet_2012_validation_synset_labels.txt": "\n".join(OF_VAL),
    "val.txt": "".join(
        f"{n} {list(imagenet_classes()).index(s)}\n"
        for n, s in zip(VAL, OF_VAL, strict=True)
    ),
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "490\n7\n1\n7\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("given", [False, True])
def test_flat_validation_images_by_each_list(
    tmp_path: Path, name: str, given: bool
) -> None:
    root = tree(tmp_path / "in")
    path = tmp_path / ("lists" if given else "in") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LISTS[name])
    meta(path.with_name("meta.mat"))
    images = ImageNet(path=str(root), val_labels=str(path) if given else "").encoded(
        "test"
    )
    assert listed(images) == EXPECTED
    assert images.class_names == ("tench", "sea snake", "Shetland sheepdog")


def test_flat_validation_images_without_a_list(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{s}/x.JPEG" for s in imagenet_classes()))
    make(
        tmp_path, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000003.JPEG"
    )
    images = ImageNet(path=str(tmp_path)).encoded("test")
    assert images.labels.tolist() == [65, 230] and len(images.class_names) == 1000


def test_validation_in_folders_and_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, f"val/{DOG}/a.JPEG", f"val/{SNAKE}/b.JPEG")
    images = ImageNet(path=str(tmp_path)).encoded("test")
    assert images.labels.tolist() == [65, 230] and len(images.class_names) == 1000
    assert "(998 in all)" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="no folder train: there is nothing to train on"
    ):
        ImageNet(path=str(tmp_path)).encoded("train")
    make(tmp_path, f"train/{DOG}/a.JPEG")
    with pytest.raises(UserError, match=f"does not have: {SNAKE}"):
        ImageNet(path=str(tmp_path)).encoded("test")
    make(tmp_path, "train/cat/a.JPEG")
    with pytest.raises(
        UserError, match=r"no synsets of ImageNet-1k: cat\. Use ImageFolder"
    ):
        ImageNet(path=str(tmp_path)).encoded("train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("n01440764\nn00000001\n", "line 2 of .* is 'n00000001'"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "line 1 of"),
        ("photo.JPEG 3\n", "line 1 of"),
        ("1\n", r"meta\.mat beside it"),
        (b"\xff\xfe", "cannot read the list"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        read_validation_list(str(path))


def test_mistakes_are_said(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="neither train nor val"):
        ImageNet(path=str(tmp_path)).encoded("test")
    root = tree(tmp_path)
    make(root, "val/photo.jpg")
    with pytest.raises(UserError, match=r"does not say of what class photo\.jpg is"):
        ImageNet(path=str(root)).encoded("test")
    with pytest.raises(UserError, match="cannot read the list of classes"):
        ImageNet(path=str(root), val_labels=str(tmp_path / "none.txt")).encoded("test")
    with pytest.raises(UserError, match=r"--config\.data\.path="):
        ImageNet().validate()
