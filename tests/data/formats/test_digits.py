"""The embedded digits against scikit-learn's."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcls.data import (
    ArraySource,
    Digits,
)


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
