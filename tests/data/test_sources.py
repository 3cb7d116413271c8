"""The embedded digits against scikit-learn's, and what an ArraySource promises."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcls.data import (
    DATASETS,
    ArraySource,
    Dataset,
    Digits,
    Record,
    Source,
    create_dataset,
)
from jaxcls.errors import UserError
from jaxcls.options import check


@pytest.fixture(scope="module")
def splits() -> dict[str, ArraySource]:
    return {"train": Digits().source("train"), "test": Digits().source("test")}


def grey(sixteenths: np.ndarray) -> np.ndarray:
    """0..16 spread over 0..255, in whole numbers so that nothing rounds by accident."""
    return (np.asarray(sixteenths, int) * 510 + 16) // 32


def test_digits_are_scikit_learns(splits: dict[str, ArraySource]) -> None:
    digits = load_digits()
    order = sorted(range(1797), key=lambda i: (digits.target[i], i))
    in_test = set(order[::5])
    for split, chosen in (
        ("test", sorted(in_test)),
        ("train", [i for i in range(1797) if i not in in_test]),
    ):
        source = splits[split]
        assert len(source) == len(chosen)
        expected = np.stack([grey(digits.images[i]) for i in chosen])[..., None]
        np.testing.assert_array_equal(source.images, expected)
        np.testing.assert_array_equal(source.labels, digits.target[chosen])
    assert (len(splits["train"]), len(splits["test"])) == (1437, 360)


def test_grey_levels_use_the_whole_range(splits: dict[str, ArraySource]) -> None:
    levels = set(np.unique(splits["train"].images))
    assert levels == set(grey(np.arange(17)).tolist())
    assert {0, 255} <= levels


def test_each_class_is_split_in_proportion(splits: dict[str, ArraySource]) -> None:
    test = Counter(splits["test"].labels.tolist())
    train = Counter(splits["train"].labels.tolist())
    assert set(test) == set(train) == set(range(10))
    for label in range(10):
        assert abs(test[label] - (test[label] + train[label]) / 5) < 1


def test_the_splits_are_the_same_each_time(splits: dict[str, ArraySource]) -> None:
    again = Digits(workers=3, prefetch=7).source("train")
    np.testing.assert_array_equal(again.images, splits["train"].images)
    assert repr(again) == repr(splits["train"]) != repr(splits["test"])
    assert "0x" not in repr(again) and "/" not in repr(again)
    assert again.class_names == splits["test"].class_names == tuple("0123456789")


def make_source(n: int = 12) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, 2, 1), dtype=np.uint8)
    return ArraySource("toy", images, np.arange(n) % 3, ("a", "b", "c"))


def test_gather_is_the_records_one_by_one() -> None:
    source = make_source()
    ids = np.array([7, 0, 11, 7])
    batch = source.gather(ids)
    assert batch["label"].dtype == np.int32 and batch["image"].dtype == np.uint8
    for row, index in enumerate(ids):
        record = source[int(index)]
        np.testing.assert_array_equal(batch["image"][row], record["image"])
        assert batch["label"][row] == record["label"] == index % 3
        assert type(record["label"]) is int


class Squares(Source):
    """Five images of a grey level, the least that a source has to have."""

    class_names = ("even", "odd")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Record:
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": index % 2}

    def __repr__(self) -> str:
        return "squares(5)"


def test_a_source_of_a_users_own_has_all_that_a_source_has() -> None:
    source = Squares()
    batch = source.gather(np.array([3, 0]))
    assert batch["image"][:, 0, 0, 0].tolist() == [3, 0]
    assert batch["label"].tolist() == [1, 0]
    assert source.labels is None and source.strata is None
    assert source.max_bad_share == 0.001
    assert source.explain(3) == "record 3 of squares(5)"


def test_a_source_without_records_says_what_it_lacks() -> None:
    class Empty(Squares):
        __getitem__ = Source.__getitem__

    with pytest.raises(RuntimeError, match="has to define __getitem__ or gather"):
        Empty().gather(np.array([3]))
    with pytest.raises(TypeError, match="abstract class"):
        Source()  # type: ignore[abstract]


def test_a_source_survives_the_way_to_a_worker() -> None:
    source = make_source()
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, Source)
    assert repr(again) == repr(source) == "toy(12 images 3x2x1)"
    assert again.class_names == source.class_names
    np.testing.assert_array_equal(again.images, source.images)
    np.testing.assert_array_equal(again.labels, source.labels)


IMAGES = np.zeros((4, 2, 2, 1), np.uint8)
LABELS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"toy: .*uint8.*float32 \(4, 2, 2, 1\)"),
        (IMAGES[..., 0], LABELS, r"toy: .*\(4, 2, 2\)"),
        (IMAGES, LABELS[:3], r"toy: 4 images and labels of shape \(3,\)"),
        (IMAGES[:0], LABELS[:0], r"toy: 0 images .* shape \(0,\).* at least one"),
        (IMAGES, LABELS / 2, "toy: labels must be integers, not float64"),
        (IMAGES, LABELS == 1, "toy: labels must be integers, not bool"),
        (IMAGES, LABELS[:, None], r"toy: .*\(4, 1\)"),
        (IMAGES, LABELS + 1, "toy: labels run from 1 to 2, but there are 2 class"),
        (IMAGES, LABELS - 1, "toy: labels run from -1 to 0"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    ArraySource("toy", IMAGES, LABELS, ("a", "b"))
    with pytest.raises(ValueError, match=message):
        ArraySource("toy", images, labels, ("a", "b"))


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [("workers", 0, 256), ("threads", 1, 256), ("prefetch", 1, 1024)],
)
def test_loading_options_out_of_range(option: str, low: int, high: int) -> None:
    for value in (low - 1, high + 1):
        said = rf"^data\.{option} must lie in {low}\.\.{high}, not {value}\.$"
        with pytest.raises(UserError, match=said):
            check(Digits(**{option: value}), "data")
    for value in (low, high):
        check(Digits(**{option: value}))


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_dataset_is_made_by_name(name: str) -> None:
    made = create_dataset(name)
    assert type(made) is DATASETS[name]
    assert made == DATASETS[name]() and made is not create_dataset(name)
    try:
        check(made)
    except UserError as error:  # which option says where the images are
        assert re.search(r"is not set: .*--config\.data\.(path|name)=", str(error))


def test_digits_have_a_name() -> None:
    assert create_dataset("digits") == Digits()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "unknown dataset 'digit'. Did you mean 'digits'? Known datasets: "),
        ("xyz", "unknown dataset 'xyz'. Known datasets: "),
        ("", "unknown dataset ''. Known datasets: "),
    ],
)
def test_an_unknown_dataset_suggests(name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        create_dataset(name)
    assert str(error.value) == said + ", ".join(DATASETS) + "."


def test_a_dataset_must_say_where_its_records_are() -> None:
    class Forgetful(Dataset):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*source"):
        Forgetful()  # type: ignore[abstract]
