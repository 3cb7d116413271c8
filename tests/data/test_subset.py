"""Parts, other class names and mixtures of sources, against the records one by one."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.data import ArraySource, CenterSquare, Dataset, Digits, ImageFolder
from jaxcls.data.loader import Loader, TrainBatches, load_rows
from jaxcls.data.mixture import MixedSource, Mixture
from jaxcls.data.opening import open_split
from jaxcls.data.relabelled import Relabelled, with_class_names
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import Source, Split
from jaxcls.errors import UserError
from jaxcls.options import check


def numbered(n: int, first: int = 0, names: str = "abc") -> ArraySource:
    """Records whose one pixel is their number from `first`."""
    images = np.arange(first, first + n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return ArraySource(f"from-{first}", images, np.arange(n) % len(names), tuple(names))


class Seeded(Source):
    """Records of 3 classes that are not in memory; bad where the index divides by 4."""

    class_names = tuple("abc")
    labels = np.arange(20) % 3

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": index % 3}

    def __repr__(self) -> str:
        return "seeded(20)"

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        drawn = np.zeros(len(indices), int) if row_seeds is None else row_seeds
        images = np.uint8(indices + drawn.astype(int)).reshape(-1, 1, 1, 1)
        return {"image": images, "label": indices % 3, "mask": indices % 4 != 0}

    def explain(self, index: int) -> str | None:
        return f"file {index}: torn" if index % 4 == 0 else None


class OneByOne(Source):
    """The records of another source without what a source need not have."""

    def __init__(self, source: Source):
        self.source = source
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> object:
        return self.source[index]

    def __repr__(self) -> str:
        return "one-by-one"


@dataclasses.dataclass(kw_only=True)
class Given(Dataset):
    """A dataset of numbered records."""

    n: int = 12
    first: int = 0
    names: str = "abc"

    def source(self, split: Split) -> Source:
        return numbered(self.n, self.first, self.names)


# Few records


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


# Class names


def test_labels_follow_their_names() -> None:
    test = ArraySource(
        "test",
        np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1),
        np.array([0, 1, 1, 0]),
        ("dog", "cat"),
    )
    for source in (test, OneByOne(test)):
        found = with_class_names(source, ("bird", "cat", "dog"))  # type: ignore[arg-type]
        assert found.class_names == ("bird", "cat", "dog")
        assert load_rows(found, np.arange(4))["label"].tolist() == [2, 1, 1, 2]
        assert [found[i]["label"] for i in range(4)] == [2, 1, 1, 2]
        assert repr(found) == repr(source)
    assert found is not test and with_class_names(test, ("dog", "cat")) is test


def test_a_class_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with_class_names(numbered(5, names="ab"), tuple("cba"))
    said = capsys.readouterr().err
    assert said == (
        "note: from-0(5 images 1x1x1) has no images of c; labels are those of "
        "training\n"
    )
    with_class_names(numbered(5, names="ab"), tuple("ba"))
    assert capsys.readouterr().err == ""


def test_a_class_that_training_does_not_know_is_an_error() -> None:
    with pytest.raises(UserError) as error:
        with_class_names(
            ArraySource(
                "t", np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), ("cat", "dogs")
            ),
            ("bird", "cat", "dog"),
        )
    assert str(error.value) == (
        "t(2 images 1x1x1) has classes unknown in training: dogs. Did you mean 'dog'? Training "
        "has 3 classes: bird, cat, dog."
    )


def test_a_wrong_label_stays_wrong() -> None:
    class Wrong(Seeded):
        def gather(
            self, indices: np.ndarray, row_seeds: np.ndarray | None = None
        ) -> dict[str, np.ndarray]:
            return {
                "image": np.zeros((len(indices), 1, 1, 1), np.uint8),
                "label": indices,
            }

    relabelled = Relabelled(Wrong(), tuple("cba"))  # type: ignore[arg-type]
    assert load_rows(relabelled, np.array([0, 2]))["label"].tolist() == [2, 0]
    with pytest.raises(RuntimeError, match=r"record 3 of seeded\(20\) has a label"):
        load_rows(relabelled, np.array([0, 3]))


# Mixtures


def test_a_mixture_is_its_sources_one_after_the_other() -> None:
    parts = [numbered(7, 0), OneByOne(numbered(5, 100)), Seeded()]
    mixed = MixedSource(parts, (1.0, 1.0, 2.0))  # type: ignore[arg-type]
    assert len(mixed) == 32 and mixed.class_names == tuple("abc")
    mixed = pickle.loads(pickle.dumps(mixed))
    ids = np.array([31, 0, 7, 12, 6, 11, 7, 30])
    seeds = np.arange(8, dtype=np.uint64) * 10
    batch = load_rows(mixed, ids, seeds)
    expected = [19 + 0, 0, 100, 0 + 30, 6, 104, 100, 18 + 70]
    assert batch["image"].ravel().tolist() == expected
    assert batch["label"].tolist() == [19 % 3, 0, 0, 0, 0, 1, 0, 0]
    assert batch["mask"].tolist() == [True, True, True, False, True, True, True, True]
    for row, index in enumerate(ids[[1, 2, 4, 5]]):
        assert mixed[int(index)]["image"].item() == [0, 100, 6, 104][row]
    assert mixed.explain(12) == "file 0: torn" and mixed.explain(13) is None
    assert repr(mixed) == (
        "mixture(1 of from-0(7 images 1x1x1), 1 of one-by-one, 2 of seeded(20))"
    )


def test_a_mixture_keeps_its_proportions_in_every_epoch() -> None:
    data = Mixture(
        datasets=(Given(n=10), Given(n=90, first=100, sampling=Sampling(limit=10))),
        weights=(0.75, 0.25),
    )
    check(data)
    source = open_split(data, "train")
    assert len(source) == 40
    batches = TrainBatches(source, seed=0, batch_size=8, num_steps=50)
    with Loader(batches) as loader:
        seen = [batch["image"].ravel() for batch in loader]
    for epoch in range(10):
        pixels = np.concatenate(seen[5 * epoch : 5 * epoch + 5])
        assert (pixels < 100).sum() == 30
        assert np.bincount(pixels[pixels < 100]).tolist() == [3] * 10
    assert len(open_split(data, "test")) == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": (1.0,)}, "2 datasets and 1 weights"),
        ({"weights": (1.0, 0.0)}, r"data.weights\[1\] must be above 0, not 0.0"),
        ({"datasets": (), "weights": ()}, r"data.datasets must be not empty, not \(\)"),
        ({"sampling": Sampling(balance=True)}, "data.sampling.balance"),
        ({"sampling": Sampling(limit=3)}, "data.sampling.limit"),
        ({"datasets": (Given(), Given(workers=2))}, r"datasets\[1\].workers"),
        (
            {"datasets": (Given(sampling=Sampling(repeats=2)), Given())},
            r"datasets\[0\].sampling.repeats",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_named(options: dict, said: str) -> None:
    good = {"datasets": (Given(), Given(first=50)), "weights": (1.0, 2.0)}
    check(Mixture(**good))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        check(Mixture(**{**good, **options}), "data")  # type: ignore[arg-type]


def test_a_mixture_has_one_list_of_classes() -> None:
    data = Mixture(datasets=(Given(), Given(names="abd")), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="different classes"):
        data.source("train")


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
