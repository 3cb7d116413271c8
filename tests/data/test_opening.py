"""What opening a split of a dataset does, and says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.data import CenterSquare, Dataset, Digits, ImageFolder
from jaxcls.data.loader import load_rows
from jaxcls.data.mixture import Mixture
from jaxcls.data.opening import open_split
from jaxcls.data.relabelled import with_class_names
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import Source, Split
from jaxcls.errors import UserError
from tests.data.examples import Given


def test_a_limit_leaves_some_of_each_class_for_training() -> None:
    data = Digits(sampling=Sampling(limit=3))
    few, whole = open_split(data, "train"), data.source("train")
    assert len(few) == 30
    assert np.bincount(few.labels).tolist() == [3] * 10  # type: ignore[attr-defined]
    assert len(open_split(data, "test")) == 360
    assert repr(few) != repr(whole) and repr(whole) in repr(few)
    assert repr(few) == repr(open_split(data, "train"))
    found = load_rows(few, np.arange(30))
    for row in range(30):
        record = few[row]
        np.testing.assert_array_equal(found["image"][row], record["image"])
        assert found["label"][row] == record["label"]
        assert any((record["image"] == image).all() for image in whole.images)  # type: ignore[attr-defined]
    other = Digits(sampling=Sampling(limit=3, limit_seed=1))
    assert repr(open_split(other, "train")) != repr(few)
    assert not np.array_equal(
        load_rows(open_split(other, "train"), np.arange(30))["image"], found["image"]
    )


def test_the_share_of_bad_images_is_that_of_the_dataset(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    strict, stricter, default = (
        ImageFolder(path=str(tmp_path), canvas=CenterSquare(size=4), **options)
        for options in ({"max_bad_share": 0.25}, {"max_bad_share": 0.1}, {})
    )
    assert open_split(Given(), "train").max_bad_share == 0.001
    assert open_split(default, "train").max_bad_share == 0.001
    assert open_split(strict, "test").max_bad_share == 0.25
    mixture = Mixture(datasets=(strict, stricter), weights=(1.0, 1.0))
    assert open_split(mixture, "train").max_bad_share == 0.1
    strict.sampling.limit = 1
    few = open_split(strict, "train")
    assert few.max_bad_share == 0.25
    assert with_class_names(few, tuple("cba")).max_bad_share == 0.25


def test_what_is_no_source_is_named() -> None:
    class Duck:
        class_names = ("a", "b")

        def __len__(self) -> int:
            return 2

    @dataclasses.dataclass(kw_only=True)
    class Pond(Dataset):
        def source(self, split: Split) -> Source:
            return Duck()  # type: ignore[return-value]

    for split in ("train", "test"):
        with pytest.raises(
            UserError, match=r"Pond.source gives a Duck, .* of jaxcls.data.Source"
        ):
            open_split(Pond(), split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (32, 40, "is 40 x 32, and images become 65 x 65: --config.data.canvas.size=32"),
        (33, 200, ""),
    ],
)
def test_images_that_are_much_enlarged_are_said_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    width: int,
    height: int,
    said: str,
) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (width, height)).save(tmp_path / name / "x.png")
    data = ImageFolder(path=str(tmp_path), canvas=CenterSquare(size=65))
    for split in ("test", "train", "train"):
        open_split(data, split)
    error = capsys.readouterr().err
    assert error.count("note: the first training image") == bool(said)
    assert said in error
    for path in tmp_path.glob("train/*/*"):
        path.write_bytes(b"")
    open_split(data, "train")  # that it is no image is said when it is loaded
